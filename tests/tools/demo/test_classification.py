"""The classification demo: its digits, and the figure of its trainings."""

import json
from pathlib import Path

import cv2
import pytest
import torch
from torch import nn

from tests.commands import call, load_tool
from tests.paths import TOOLS


def test_demo_data(tmp_path: Path) -> None:
    pytest.importorskip('sklearn')
    call(TOOLS / 'demo' / 'make_classification_data.py', tmp_path / 'digits', cwd=tmp_path)
    for split, count in (('train', 1297), ('test', 500)):
        images = list((tmp_path / 'digits' / split).glob('*/*.png'))
        assert len(images) == count
        assert {path.parent.name for path in images} == set('0123456789')
    image = cv2.imread(str(images[0]))
    assert image.shape == (32, 32, 3)
    assert image.max() > 200


def test_demo_figure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """From logs and checkpoints as mmengine writes them."""
    accuracies = {'pelk': (97.0, 98.0, 99.0), 'conv7': (96.0, 96.0, 96.0), 'stripe': (97.5, 97.0, 98.0)}
    for network, finals in accuracies.items():
        for seed, final in enumerate(finals):
            folder = tmp_path / network / f'seed_{seed}'
            (folder / 'run' / 'vis_data').mkdir(parents=True)
            lines = [
                dict(loss=1.0, epoch=1, step=1),
                *({'accuracy/top1': v, 'step': e} for e, v in ((2, 50.0), (4, final))),
            ]
            (folder / 'run' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
            torch.save(dict(state_dict=nn.BatchNorm2d(5).state_dict()), folder / 'epoch_4.pth')
            (folder / 'last_checkpoint').write_text(str(folder / 'epoch_4.pth'))
    module = load_tool(TOOLS / 'demo' / 'compare_classification.py')
    results = module.read_results(tmp_path)
    assert [result.parameters for result in results] == [10, 10, 10]
    assert results[0].mean() == [50.0, 98.0]
    assert results[0].spread() == [0.0, 1.0]
    module.print_table(results)
    assert '98.00 ± 1.00' in capsys.readouterr().out
    module.plot(results, tmp_path / 'figure.png')
    assert cv2.imread(str(tmp_path / 'figure.png')).shape[2] == 3
    with pytest.raises(FileNotFoundError, match=r'run_cls\.sh makes them'):
        module.read_results(tmp_path / 'pelk')
