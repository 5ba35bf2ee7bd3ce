"""The classification demo: its digits, and the figure of its trainings."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from reproduction.variants import VariantRun
from tests.commands import call, load_tool
from tests.paths import ROOT, TOOLS


def test_demo_data(tmp_path: Path) -> None:
    datasets = pytest.importorskip('sklearn.datasets')
    call(TOOLS / 'demo' / 'make_classification_data.py', tmp_path / 'digits', cwd=tmp_path)
    for split, count in (('train', 1297), ('test', 500)):
        images = list((tmp_path / 'digits' / split).glob('*/*.png'))
        assert len(images) == count
        assert {path.parent.name for path in images} == set('0123456789')
    # Each is one of the set's own order, enlarged.
    digits = datasets.load_digits()
    for split, first in (('train', 0), ('test', 1297)):
        for index in (0, 1, 250):
            (path,) = (tmp_path / 'digits' / split).glob(f'*/{index:04}.png')
            assert path.parent.name == str(digits.target[first + index])
            image = cv2.imread(str(path))
            assert image.shape == (32, 32, 3)
            small = cv2.resize(image[..., 0], (8, 8), interpolation=cv2.INTER_AREA)
            assert np.abs(small - 255 / 16 * digits.images[first + index]).mean() < 16


@pytest.mark.slow
@pytest.mark.scope('mmpretrain')
def test_demo_figure(tmp_path: Path) -> None:
    module = load_tool(ROOT / 'benchmarks' / 'compare_classification.py')
    accuracies = {'pelk': (97.0, 98.0, 99.0), 'conv7': (96.0, 96.0, 96.0), 'stripe': (97.5, 97.0, 98.0)}
    results = {
        network: [VariantRun(network, seed, ((2, 50.0), (4, value)), {}) for seed, value in enumerate(finals)]
        for network, finals in accuracies.items()
    }
    documented = (ROOT / 'docs' / 'classification.md').read_text()
    for (name, parameters, top1, seeds), network in zip(module.make_table(results).rows, results, strict=True):
        assert f'| `{name.split()[0]}` | {int(parameters):,} |'.replace(',', ' ') in documented
        assert seeds == ', '.join(map(str, accuracies[network]))
        assert top1.startswith(f'{sum(accuracies[network]) / 3:.2f} ± ')
    assert module.make_table(results).rows[0][2] == '98.00 ± 1.00'
    module.plot(results, tmp_path / 'figure.png')
    assert cv2.imread(str(tmp_path / 'figure.png')).shape[2] == 3
