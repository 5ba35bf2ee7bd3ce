"""Pictures with labels, in memory: read from a folder, and drawn into batches."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmpelk.errors import UserError

IGNORED = 255
# Folders of pictures and labels of a split: CamVid as it is downloaded, and the toolboxes' way.
_LAYOUTS = (
    ('{split}', '{split}annot'),
    ('images/{split}', 'annotations/{split}'),
    ('img_dir/{split}', 'ann_dir/{split}'),
)


@dataclass(frozen=True)
class Split:
    """Pictures of one size with their labels.

    Attributes:
        images: ``(N, 3, H, W)``, uint8, RGB.
        labels: ``(N, H, W)``, uint8; 255 is ignored.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """SHA-256 of the pictures and labels, its first 16 digits."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]


def read_split(root: Path, split: str, classes: int, ignored: int | None) -> Split:
    """Read the pictures of a split.

    Args:
        root: The data set's folder.
        split: ``train``, ``val`` or ``test``.
        classes: Number of classes; labels are indices.
        ignored: Value of the labels that is no class, beside 255.

    Raises:
        UserError: If the layout is unknown, a picture has no label, sizes differ, or a label is no class.
    """
    folders = [(root / image.format(split=split), root / label.format(split=split)) for image, label in _LAYOUTS]
    found = [(images, labels) for images, labels in folders if images.is_dir() and labels.is_dir()]
    if not found:
        tried = ', '.join(f'{images.relative_to(root)}/ with {labels.relative_to(root)}/' for images, labels in folders)
        raise UserError(f'{root} has no pictures of the split {split}; these layouts are known: {tried}')
    images, labels = [], []
    for path in sorted(path for path in found[0][0].iterdir() if path.suffix.lower() in ('.png', '.jpg', '.jpeg')):
        label_path = found[0][1] / f'{path.stem}.png'
        if not label_path.is_file():
            raise UserError(f'{path} has no label: {label_path} is missing')
        image, label = np.asarray(Image.open(path).convert('RGB')), np.array(Image.open(label_path))
        if label.ndim != 2 or label.shape != image.shape[:2]:
            raise UserError(f'{label_path} is no map of indices of the size of its picture')
        if ignored is not None:
            label[label == ignored] = IGNORED
        if (wrong := label[(label >= classes) & (label != IGNORED)]).size:
            raise UserError(f'{label_path} holds the value {wrong[0]}, which is no class: see --classes and --ignore')
        images.append(torch.from_numpy(image.copy()))
        labels.append(torch.from_numpy(label.astype(np.uint8)))
    if len({image.shape for image in images}) != 1:
        raise UserError(f'the pictures in {found[0][0]} differ in size, or there are none; resize them')
    return Split(torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.stack(labels))


def batches(
    split: Split, size: tuple[int, int], batch: int, iterations: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches: each picture scaled by 0.75 to 1.5 of the test's scale, cropped or padded to ``size``, flipped.

    They depend on the seed alone, so that all networks see the same.

    Yields:
        ``(B, 3, *size)``, float32 in 0 to 1, and ``(B, *size)``, int64.
    """
    generator = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(iterations):
        chosen = []
        for _ in range(batch):
            if not order:
                order = generator.permutation(len(split)).tolist()
            chosen.append(_drawn(split, order.pop(), size, generator))
        images, labels = zip(*chosen, strict=True)
        yield torch.stack(images), torch.stack(labels)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 pictures ``(N, 3, H, W)`` at another size, float32 in 0 to 1."""
    return F.interpolate(images.float() / 255, size, mode='bilinear', antialias=True, align_corners=False)


def _drawn(split: Split, index: int, size: tuple[int, int], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    scale = generator.uniform(0.75, 1.5)
    scaled = (round(size[0] * scale), round(size[1] * scale))
    image = resized(split.images[index : index + 1], scaled)[0]
    label = F.interpolate(split.labels[index][None, None], scaled, mode='nearest-exact')[0, 0]
    rows, columns = (max(0, side - have) for side, have in zip(size, scaled, strict=True))
    image = F.pad(image, (0, columns, 0, rows), value=0.5)
    label = F.pad(label, (0, columns, 0, rows), value=IGNORED)
    top, left = (int(generator.integers(0, have - side + 1)) for side, have in zip(size, label.shape, strict=True))
    image, label = (part[..., top : top + size[0], left : left + size[1]] for part in (image, label))
    if generator.random() < 0.5:
        image, label = image.flip(-1), label.flip(-1)
    return image, label.long()
