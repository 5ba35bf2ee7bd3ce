"""Write scikit-learn's handwritten digits as PNGs in folders of classes: 1297 for training, 500 for testing.

    python tools/demo/make_classification_data.py data/demo_classification

The digits are real: 13 people wrote them (the test set of UCI's Optical Recognition of Handwritten Digits). 8 x 8
pixels with 17 grey levels are enlarged to 32 x 32, which adds nothing but lets a network with a stem see them.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

SIZE = 32
TEST = 500
_LEVELS = 16  # the largest grey value


def write_split(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images as ``root/LABEL/INDEX.png``.

    Args:
        root: Folder of the split.
        images: ``(N, 8, 8)``, 0 to 16.
        labels: ``(N,)``, 0 to 9.
    """
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        grey = cv2.resize(image * (255 / _LEVELS), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f'{index:04d}.png'), np.clip(grey, 0, 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder of the data set')
    args = parser.parse_args()
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        parser.error('the digits come with scikit-learn: pip install scikit-learn')
    digits = load_digits()
    # The last ones of the set's own order, as in scikit-learn's examples: a random draw would mix the writers.
    for split, part in (('train', slice(None, -TEST)), ('test', slice(-TEST, None))):
        write_split(args.out / split, digits.images[part], digits.target[part])
        print(f'{args.out / split}: {len(digits.target[part])} images')


if __name__ == '__main__':
    main()
