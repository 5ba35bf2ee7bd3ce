"""Pictures of fewer bits than their files have."""

import struct
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest

from mmpelk.analysis.drawings import Drawing
from mmpelk.analysis.erf import read_images
from mmpelk.errors import UserError
from mmpelk.export.network import real_image
from mmpelk.fault_tolerance.pictures import dim_bits, refuse_dim, refuse_dim_set


def write(path: Path, bits: int, shape: tuple[int, ...], dtype: type = np.uint16) -> tuple[np.ndarray, str]:
    """A picture of noise up to its brightest value, as it is read, and its name."""
    pixels: np.ndarray = np.random.default_rng(0).integers(0, 2**bits, shape).astype(dtype)
    pixels.flat[0] = 2**bits - 1
    assert cv2.imwrite(str(path), pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    return mmcv.imread(str(path)), str(path)


@pytest.mark.parametrize('shape', [(20, 30, 3), (20, 30)], ids=['colour', 'grey'])
@pytest.mark.parametrize('kind', ['png', 'tif', 'ppm'])
def test_number_of_bits(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    suffix = '.pgm' if kind == 'ppm' and len(shape) == 2 else f'.{kind}'
    for bits, found in ((10, 10), (12, 12), (14, 14), (15, None), (16, None)):
        image, name = write(tmp_path / f'{bits}{suffix}', bits, shape)
        assert dim_bits(image, name) == found, bits
        refuse_dim_set([write(tmp_path / f'full{suffix}', 16, shape), (image, name)], 'data')
        if found:
            with pytest.raises(UserError, match=f'below {2**bits} in 16 bits'):
                refuse_dim_set([(image, name), (0 * image, 'black')], 'data')
        if found == 14:
            refuse_dim(image, name)
    several = [write(tmp_path / f'{bits}{suffix}', bits, shape) for bits in (12, 10)]
    with pytest.raises(UserError, match='the pictures of data have values below 4096 in 16 bits'):
        refuse_dim_set(several, 'data')
    dark = write(tmp_path / f'dark{suffix}', 4, shape, np.uint8)
    for given in (dark, (0 * image, name)):
        refuse_dim(*given)
        refuse_dim_set([given], 'data')


@pytest.mark.parametrize(('head', 'bits'), [
    (b'P5\n# of a camera\n# in May\n3 2\n65535\n', 12),
    (b'P6 3 2 256 ', 12),
    (b'P5\n3 2\n255\n', None),
    (b'P4\n3 2\n', None),
    (b'GIF89a', None),
    *((b'\x89PNG\r\n\x1a\n' + rest, None) for rest in (b'', bytes(16) + b'\x08')),
    (b'II*\0' + bytes(3), None),
    (b'II*\0' + bytes([8, 0, 0, 0, 1, 0]), None),  # ends too soon
    (b'', None),
    *(
        (struct.pack(f'{order}2sHI', mark, 42, 8) + struct.pack(f'{order}HHHI', 1, 258, 3, number) + value, 12)
        for order, mark in (('<', b'II'), ('>', b'MM'))
        for number, value in (
            (1, struct.pack(f'{order}HH', 16, 0)),
            (2, struct.pack(f'{order}HH', 16, 16)),
            (3, struct.pack(f'{order}IIHHH', 26, 0, 16, 16, 16)),
        )
    ),
])  # fmt: skip
def test_what_files_say_of_their_bits(head: bytes, bits: int | None, tmp_path: Path) -> None:
    """In either order of bytes, for one channel and for several, with comments."""
    (tmp_path / 'a').write_bytes(head)
    assert dim_bits(np.full((2, 3), 9, np.uint8), tmp_path / 'a') == bits
    assert dim_bits(np.full((2, 3), 9, np.uint16), tmp_path / 'a') is None, 'read with all of them'


def test_every_reader_refuses_them(tmp_path: Path) -> None:
    _, name = write(tmp_path / 'a.png', 12, (20, 30, 3))
    for read in (
        lambda: list(Drawing(Path(name), tmp_path / 'out.png').draw(lambda image: image)),
        lambda: read_images([Path(name)], 1, 64),
        lambda: real_image(Path(name), (8, 8)),
    ):
        with pytest.raises(UserError, match=r"'.*a\.png' has values below 4096 .* multiply the values"):
            read()
