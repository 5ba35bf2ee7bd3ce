"""Draw a small instance-segmentation data set in COCO's layout: discs, squares and triangles that hide one another.

    python tools/demo/make_detection_data.py data/shapes_instances

Colour says nothing about the class, sizes vary fourfold, and landscape and portrait images are mixed.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools.mask import encode as encode_mask

CLASSES = ('disc', 'square', 'triangle')
_SIZES = ((96, 128), (128, 96), (112, 112))  # (height, width)
_MIN_VISIBLE = 60  # pixels; what is hidden further has no label


@dataclass(frozen=True)
class Instance:
    """What remains visible of one shape."""

    category: int
    mask: np.ndarray  # (H, W), uint8, 0 or 1


def _outline(category: int, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Corners of a shape, ``(P, 1, 2)`` int32, as OpenCV draws them."""
    corners = (64, 4, 3)[category]
    angles = angle + 2 * math.pi * np.arange(corners) / corners
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return points.round().astype(np.int32)[:, None]


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[Instance]]:
    """Draw one image.

    Args:
        rng: Source of all choices.

    Returns:
        The image ``(H, W, 3)``, BGR, uint8, and its instances from back to front.
    """
    height, width = _SIZES[rng.integers(len(_SIZES))]
    # A dim, smooth background: minutes of training from scratch have to be enough to tell it from the shapes.
    image = cv2.resize(rng.uniform(0, 120, (4, 4, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    instances: list[Instance] = []
    for _ in range(rng.integers(1, 6)):
        category = int(rng.integers(len(CLASSES)))
        radius = float(np.exp(rng.uniform(math.log(10), math.log(36))))
        center = rng.uniform([radius / 2] * 2, [width - radius / 2, height - radius / 2])
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [_outline(category, center, radius, rng.uniform(0, 2 * math.pi))], 1)
        color = rng.uniform(0, 255, 3)
        color[rng.integers(3)] = rng.uniform(200, 255)
        image[mask > 0] = color
        instances = [Instance(other.category, other.mask * (1 - mask)) for other in instances]
        instances.append(Instance(category, mask))
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return image, [instance for instance in instances if instance.mask.sum() >= _MIN_VISIBLE]


def _annotation(instance: Instance) -> dict:
    """COCO's fields of an instance, but for the ids. Run lengths instead of polygons keep every pixel."""
    runs = encode_mask(np.asfortranarray(instance.mask))
    return dict(
        category_id=instance.category + 1,
        segmentation=dict(size=runs['size'], counts=runs['counts'].decode('ascii')),
        bbox=list(cv2.boundingRect(instance.mask)),
        area=int(instance.mask.sum()),
        iscrowd=0,
    )


def write_split(root: Path, split: str, count: int, rng: np.random.Generator) -> int:
    """Write ``count`` images and their annotation file.

    Args:
        root: Folder of the data set.
        split: ``'train2017'`` or ``'val2017'``.
        count: Number of images.
        rng: Source of all choices.

    Returns:
        Number of instances.
    """
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / 'annotations').mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, count + 1):
        image, instances = draw_image(rng)
        name = f'{image_id:012d}.png'
        cv2.imwrite(str(root / split / name), image)
        images.append(dict(id=image_id, file_name=name, height=image.shape[0], width=image.shape[1]))
        for instance in instances:
            annotations.append(dict(id=len(annotations) + 1, image_id=image_id, **_annotation(instance)))
    categories = [dict(id=index + 1, name=name, supercategory='shape') for index, name in enumerate(CLASSES)]
    content = dict(info={}, licenses=[], images=images, annotations=annotations, categories=categories)
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content), encoding='utf-8')
    return len(annotations)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out', type=Path, help='folder of the data set')
    parser.add_argument('--train', type=int, default=400, help='training images')
    parser.add_argument('--val', type=int, default=40, help='validation images')
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for split, count in (('train2017', args.train), ('val2017', args.val)):
        instances = write_split(args.out, split, count, rng)
        print(f'{args.out / split}: {count} images, {instances} instances')


if __name__ == '__main__':
    main()
