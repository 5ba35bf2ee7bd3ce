"""Pictures of 10 to 14 bits in files of 16, as cameras and microscopes write them, which are read as nearly black."""

import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import UserError

_REMEDY = (
    'as of a sensor with fewer bits, and readers, which divide them by 256, make it nearly black: multiply the values '
    'so that they fill 16 bits, or write pictures of 8 bits'
)


def dim_bits(image: np.ndarray, path: str | Path) -> int | None:
    """How many of the 16 bits of its file a picture uses at most, if it was read with 8 and leaves two or more unused.

    Args:
        image: What was read, of any shape. Black pictures and other types than uint8 say nothing.
        path: The local file. PNG, TIFF and PPM are looked into.
    """
    brightest = int(image.max(initial=0)) if image.dtype == np.uint8 else 0
    if not 0 < brightest <= 64 or _file_bits(path) != 16:
        return None
    return 8 + (brightest - 1).bit_length()  # readers round 4095 / 256 to 15 or to 16


def refuse_dim(image: np.ndarray, path: str | Path) -> None:
    """Refuse a picture of 12 bits or fewer in a file of 16. A picture of 13 or 14 bits may show a dark scene.

    Raises:
        UserError: It names the file and the remedy.
    """
    bits = dim_bits(image, path)
    if bits is not None and bits <= 12:
        raise UserError(f"'{path}' has values below {2**bits} in 16 bits, {_REMEDY}")


def refuse_dim_set(images: list[tuple[np.ndarray, str]], name: str) -> None:
    """Refuse a data set whose pictures all leave two or more of 16 bits unused.

    Args:
        images: Some of its pictures, as read, and their files. Black ones are left out.
        name: What to call the data set.

    Raises:
        UserError: It names a file and the remedy.
    """
    found = [dim_bits(image, path) for image, path in images if image.any()]
    bits = [each for each in found if each is not None]
    if found and len(bits) == len(found):
        raise UserError(
            f'the pictures of {name} have values below {2 ** max(bits)} in 16 bits, such as '
            f"'{images[0][1]}', {_REMEDY}. A transform that reads them in another way goes in the place of the first "
            'one of the pipeline'
        )


def _file_bits(path: str | Path) -> int | None:
    """Bits of a channel in a PNG, TIFF or PPM file; ``None`` of others, and of what cannot be read here."""
    try:
        with open(path, 'rb') as file:
            head = file.read(64)
            if head.startswith(b'\x89PNG'):
                return head[24]
            if head[:4] in (b'II*\0', b'MM\0*'):
                return _tiff_bits(file, '<' if head[:1] == b'I' else '>', head)
            found = re.match(rb'P[56]\s+(?:#.*\n\s*)*\d+\s+\d+\s+(\d+)\s', head)
            return 16 if found and int(found[1]) > 255 else None
    except (OSError, IndexError, struct.error):
        return None


def _tiff_bits(file: BinaryIO, order: str, head: bytes) -> int | None:
    (offset,) = struct.unpack(f'{order}I', head[4:8])
    file.seek(offset)
    (count,) = struct.unpack(f'{order}H', file.read(2))
    entries = file.read(12 * count)
    for start in range(0, 12 * count, 12):
        tag, _, number = struct.unpack(f'{order}HHI', entries[start : start + 8])
        if tag == 258:  # BitsPerSample: here for two channels, elsewhere for more
            value = entries[start + 8 : start + 12]
            if number > 2:
                file.seek(struct.unpack(f'{order}I', value)[0])
                value = file.read(2)
            return int(struct.unpack(f'{order}H', value[:2])[0])
    return None
