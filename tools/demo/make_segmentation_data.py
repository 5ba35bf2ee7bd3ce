"""Draw the demo's segmentation set: small pictures in which the class of some objects is decided far away from them.

Every picture has three textures, discs, boxes, two walls on opposite borders, and tents beside both walls. Tents of
all classes look the same. A tent's class is the colour of the wall on the *other* side; the wall beside it is a decoy,
drawn independently. See docs/demo.md for the distances, and for what follows from them.

The layout is ADE20K's: ``images/{training,validation}/*.jpg`` and ``annotations/{training,validation}/*.png``, where 0
is "other", which ``reduce_zero_label=True`` turns into the ignored label.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

WALL_COLOURS = {'white': (245, 245, 245), 'black': (12, 12, 12), 'red': (205, 30, 30)}
WALLS = tuple(f'wall_{colour}' for colour in WALL_COLOURS)
TENTS = tuple(f'tent_{colour}' for colour in WALL_COLOURS)
CLASSES = ('sand', 'grass', 'water', 'disc', 'box', *WALLS, *TENTS)

SIZE = 128  # side of a picture
WALL = 9  # width of the walls, which stand on two opposite borders
STRIP = 26  # width of the strips beside the walls, which hold the tents
FAR = SIZE - 2 * WALL - STRIP  # no tent is nearer to the wall that decides its class, in pixels along the longer axis

_VERSION = 1  # part of the stamp: raise it whenever the pictures change
_OVERSAMPLING = 4
_TRIES = 50  # to find room for an object
_COLOURS = {'disc': (150, 80, 140), 'box': (80, 90, 110), 'tent': (235, 190, 60)}

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Thing:
    """An object: a class, its centre (x, y) and its radius in pixels, its colour and its rotation in radians.

    The radius of a wall is half its length.
    """

    name: str
    x: float
    y: float
    radius: float
    colour: tuple[int, int, int]
    angle: float = 0.0

    def touches(self, other: 'Thing') -> bool:
        """Whether the circles around both objects overlap, a margin included."""
        return float(np.hypot(self.x - other.x, self.y - other.y)) < self.radius + other.radius + 2


def draw_scene(seed: int, split: int, index: int) -> tuple[Image.Image, Labels]:
    """Picture ``index`` of a split and its label map ``(SIZE, SIZE)``; the same numbers give the same picture.

    Successive pictures run through all pairs of wall colours, so that the tents' classes are balanced and the decoy
    tells nothing.
    """
    rng = np.random.default_rng([seed, split, index])
    names = list(WALL_COLOURS)
    walls = names[index % 3], names[index // 3 % 3]
    things = _sides(rng, walls)
    things += _fillers(rng)
    picture, labels = _background(rng)
    picture, labels = _haze(rng, picture, labels)
    for thing in things:
        picture, labels = _paint(rng, picture, labels, thing)
    light = 1 + 0.15 * _smooth_noise(rng, 2)[..., None]
    picture = picture * light + rng.normal(0, 7, picture.shape)
    if rng.random() < 0.5:  # walls at the top and the bottom instead of left and right
        picture, labels = picture.transpose(1, 0, 2), labels.T
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)), labels


def _sides(rng: np.random.Generator, walls: tuple[str, str]) -> list[Thing]:
    """Both sides: the tents on the left take their class from the wall on the right, and the other way round."""
    things: list[Thing] = []
    for left, own, other in ((WALL, walls[0], walls[1]), (SIZE - WALL - STRIP, walls[1], walls[0])):
        for _ in range(rng.integers(2, 5)):
            bounds = (left, 0, left + STRIP, SIZE)
            _place(rng, things, bounds, f'tent_{other}', rng.uniform(10.5, 12.0))
        length, x = rng.uniform(0.55, 0.9) * SIZE, WALL / 2 if left == WALL else SIZE - WALL / 2
        y = rng.uniform(length / 2, SIZE - length / 2)
        things.append(Thing(f'wall_{own}', x, y, length / 2, WALL_COLOURS[own]))
    return things


def _fillers(rng: np.random.Generator) -> list[Thing]:
    """Discs and boxes between the strips."""
    things: list[Thing] = []
    for _ in range(rng.integers(2, 5)):
        name = 'disc' if rng.random() < 0.5 else 'box'
        _place(rng, things, (WALL + STRIP, 0, SIZE - WALL - STRIP, SIZE), name, rng.uniform(8.0, 12.0))
    return things


def _place(rng: np.random.Generator, things: list[Thing], bounds: tuple[int, ...], name: str, radius: float) -> None:
    """Append an object inside ``bounds`` (left, top, right, bottom) that touches none, if there is room."""
    left, top, right, bottom = bounds
    colour = _colour(rng, name.partition('_')[0])
    angle = rng.uniform(0, np.pi) if name == 'box' else 0.0
    for _ in range(_TRIES):
        x, y = rng.uniform(left + radius, right - radius), rng.uniform(top + radius, bottom - radius)
        thing = Thing(name, x, y, radius, colour, angle)
        if not any(thing.touches(other) for other in things):
            things.append(thing)
            return


def _colour(rng: np.random.Generator, kind: str) -> tuple[int, int, int]:
    red, green, blue = np.add(_COLOURS[kind], rng.integers(-20, 21, 3)).tolist()
    return red, green, blue


def _smooth_noise(rng: np.random.Generator, cells: int) -> Array:
    """Noise of about ``cells`` blobs a side, in [-1, 1], ``(SIZE, SIZE)``."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64).clip(-1, 1)


def _background(rng: np.random.Generator) -> tuple[Array, Labels]:
    """Regions of sand, grass and water: nearest of some random points, seen through a warp."""
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    points, kinds = rng.uniform(0, SIZE, (5, 2)), rng.integers(0, 3, 5)
    warped = rows + 10 * _smooth_noise(rng, 6), columns + 10 * _smooth_noise(rng, 6)
    distance = np.hypot(warped[0][..., None] - points[:, 0], warped[1][..., None] - points[:, 1])
    region = kinds[distance.argmin(-1)]
    tint = rng.normal(0, 8, (3, 3))
    wave = np.sin((rows + 6 * _smooth_noise(rng, 4)) * rng.uniform(0.7, 1.0))
    grain = (rng.normal(0, 14, (SIZE, SIZE)), 26 * _smooth_noise(rng, 24), 18 * wave)
    base = np.array([(186, 168, 128), (112, 140, 92), (104, 132, 160)]) + tint
    picture = np.stack([base[kind] + grain[kind][..., None] for kind in range(3)])
    return np.take_along_axis(picture, region[None, ..., None], 0)[0], (region + 1).astype(np.uint8)


def _haze(rng: np.random.Generator, picture: Array, labels: Labels) -> tuple[Array, Labels]:
    """A pale patch under the objects that belongs to no class, as the zero of ADE20K."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    centre, radius = rng.uniform(0, SIZE, 2), rng.uniform(8, 18)
    inside = np.hypot(rows - centre[0], columns - centre[1]) + 5 * _smooth_noise(rng, 8) < radius
    picture = np.where(inside[..., None], 0.4 * picture + 0.6 * 190, picture)
    return picture, np.where(inside, 0, labels).astype(np.uint8)


def _paint(rng: np.random.Generator, picture: Array, labels: Labels, thing: Thing) -> tuple[Array, Labels]:
    """The object over the picture, with an unlabelled contour of a pixel."""
    mask = Image.new('L', (SIZE * _OVERSAMPLING,) * 2)
    draw = ImageDraw.Draw(mask)
    x, y, radius = (value * _OVERSAMPLING for value in (thing.x, thing.y, thing.radius))
    if thing.name == 'disc':
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    elif thing.name in WALLS:
        half = WALL / 2 * _OVERSAMPLING
        draw.rectangle((x - half, y - radius, x + half, y + radius), fill=255)
    else:
        corners = 4 if thing.name == 'box' else 3
        turns = thing.angle - np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
        draw.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in turns], fill=255)
    small = mask.resize((SIZE, SIZE), Image.Resampling.BOX)
    alpha = np.asarray(small, dtype=np.float64)[..., None] / 255
    surface = np.array(thing.colour, dtype=np.float64)
    if thing.name not in WALLS:
        surface = surface + 16 * _smooth_noise(rng, 32)[..., None]
    inside = alpha[..., 0] > 0.5
    contour = (np.asarray(small.filter(ImageFilter.MaxFilter(3))) > 0) & ~inside
    labels = np.where(contour, 0, np.where(inside, CLASSES.index(thing.name) + 1, labels)).astype(np.uint8)
    return alpha * surface + (1 - alpha) * picture, labels


def write_dataset(root: Path, counts: dict[str, int], seed: int) -> bool:
    """Write the set under ``root`` unless it is there already.

    Args:
        root: Folder of the set; one that another version, seed or size of this set has filled is replaced.
        counts: Number of pictures per split.
        seed: Seed of all pictures; splits share none.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: If ``root`` holds something that this tool did not write.
    """
    stamp = root / 'demo.json'
    wanted = dict(version=_VERSION, seed=seed, counts=counts, classes=CLASSES)
    if stamp.exists() and json.loads(stamp.read_text(encoding='utf-8')) == json.loads(json.dumps(wanted)):
        return False
    if root.exists() and not stamp.exists() and any(root.iterdir()):
        raise ValueError(f'{root} is not empty and was not made by this tool; give another --out or remove it')
    partial_root = root.with_name(f'{root.name}.partial')
    for folder in (root, partial_root):
        shutil.rmtree(folder, ignore_errors=True)
    for number, (split, count) in enumerate(counts.items()):
        images, annotations = (partial_root / kind / split for kind in ('images', 'annotations'))
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for index in range(count):
            picture, labels = draw_scene(seed, number, index)
            picture.save(images / f'{index:05d}.jpg', quality=95)
            Image.fromarray(labels).save(annotations / f'{index:05d}.png')
    (partial_root / stamp.name).write_text(json.dumps(wanted, indent=2), encoding='utf-8')
    partial_root.rename(root)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/demo_segmentation'), help='folder of the set')
    parser.add_argument('--training', type=int, default=450, help='number of training pictures')
    parser.add_argument('--validation', type=int, default=90, help='number of held-out pictures')
    args = parser.parse_args()
    written = write_dataset(args.out, dict(training=args.training, validation=args.validation), seed=0)
    print(f'{args.out}: {args.training} training and {args.validation} held-out pictures', end='')
    print(' written' if written else ' are there already')


if __name__ == '__main__':
    main()
