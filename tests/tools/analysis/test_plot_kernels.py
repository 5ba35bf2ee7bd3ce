"""The command of grids, kernels and embeddings: its figures and refusals."""

from pathlib import Path
from unittest import mock

import cv2
import pytest
import torch
from matplotlib.figure import Figure

from mmpelk.models import PeLK
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.ops import sharing_grid
from tests.commands import call, load_tool
from tests.paths import TOOLS

TOOL = TOOLS / 'analysis' / 'plot_kernels.py'
ARCH = dict(depths=(1, 2), channels=(8, 16), kernel_sizes=(13, 9), center_size=5)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A config, and a tiny network's checkpoints by their form."""
    folder = tmp_path_factory.mktemp('checkpoint')
    torch.manual_seed(0)
    model = PeLK(ARCH, out_indices=(0, 1)).eval()
    paths = {'config': folder / 'nano.py'}
    for form, state in (('trained', model.state_dict()), ('deployed', deploy_state_dict(model, model.state_dict()))):
        paths[form] = folder / f'{form}.pth'
        torch.save(dict(state_dict={f'backbone.{name}': value for name, value in state.items()}), paths[form])
    backbone = dict(type='mmpelk.PeLK', arch=ARCH, out_indices=(0, 1))
    paths['config'].write_text(f"model = dict(type='EncoderDecoder', backbone={backbone})\n")
    return paths


def check_picture(path: Path) -> None:
    """A picture of some size that is not blank."""
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    assert min(picture.shape) > 200
    assert picture.std() > 10


@pytest.mark.slow
def test_grids(tmp_path: Path) -> None:
    for options in ([], ['--kernel-size', 31, '--center-size', 7], ['--grid', 2, 1, 2], ['--grid', 1]):
        printed = call(TOOL, 'grid', *options, cwd=tmp_path)
        assert printed.strip() == 'work_dirs/analysis/sharing_grids.png'
        check_picture(tmp_path / printed.strip())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('form', 'options'), [('trained', ['--stage', 1, '--block', 1]), ('deployed', ['--channels', 2])]
)
@pytest.mark.parametrize('command', ['kernel', 'embedding'])
def test_kernels(checkpoint: dict[str, Path], tmp_path: Path, command: str, form: str, options: list[object]) -> None:
    given = [checkpoint[form], '--config', checkpoint['config'], *options]
    call(TOOL, command, *given, '--out', 'figure.png', cwd=tmp_path)
    check_picture(tmp_path / 'figure.png')


def figure_of(*words: object) -> Figure:
    tool = load_tool(TOOL)
    with mock.patch('sys.argv', ['plot_kernels.py', *map(str, words)]):
        return tool.figure_of(tool.parse_args())


def test_figures_are_of_what_is_asked_for(checkpoint: dict[str, Path]) -> None:
    for words, sizes in (
        ([], [(2, 1, 2), (7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 7)]),
        (['--center-size', 7], [(2, 1, 2), sharing_grid(31, 7)]),
        (['--kernel-size', 13, 9, '--center-size', 7], [(1, 2, *[1] * 7, 2, 1), (1,) * 9]),
        (['--grid', 2, 1, 2, '--grid', 1], [(2, 1, 2), (1,)]),
    ):
        titles = [f'{sum(grid)} x {sum(grid)} positions by {len(grid)} x {len(grid)} parameters' for grid in sizes]
        panels = [axes for axes in figure_of('grid', *words).axes if axes.get_label() != '<colorbar>']
        assert [axes.get_title() for axes in panels] == titles
    for form, command, words, title, side in (
        ('trained', 'kernel', ['--stage', 1, '--block', 1], 'stages.1.1.mixer.large.weight: the branch', 9),
        ('trained', 'embedding', ['--stage', 1], 'stages.1.positional_embedding: before', 9),
        ('deployed', 'embedding', ['--stage', 1, '--block', 1], 'stages.1.1.mixer.embedding_table: with', 9),
        ('deployed', 'embedding', ['--map-size', 4, 7], 'stages.0.0.mixer.embedding_table: with', (4, 7)),
    ):
        given = [checkpoint[form], '--config', checkpoint['config'], '--channels', 2, *words]
        figure = figure_of(command, *given)
        assert figure.get_suptitle().startswith(title)
        *_, last = (axes for axes in figure.axes if axes.get_label() != '<colorbar>')
        assert last.get_title() == 'channel 2'
        assert last.images[0].get_array().shape == (side if isinstance(side, tuple) else (side, side))


def test_refuses(checkpoint: dict[str, Path], tmp_path: Path) -> None:
    for arguments, message in (
        (['grid', '--grid', '2', '1', '1'], 'a sharing grid is symmetric about its centre, got [2, 1, 1]'),
        (['grid', '--kernel-size', '30'], 'kernel_size must be an odd positive integer, got 30'),
        (['kernel', 'absent.pth', '--config', 'CONFIG'], "the checkpoint 'absent.pth' does not exist"),
        (['kernel', 'TRAINED', '--config', 'CONFIG', '--channels', '3'], 'the kernel has the channels 0 to 2'),
        (['kernel', 'TRAINED', '--config', 'CONFIG', '--stage', '2'], 'there is no block 0 in stage 2'),
        (['embedding', 'TRAINED', '--config', 'CONFIG', '--map-size', '0', '4'], 'two positive integers, got (0, 4)'),
        (
            ['embedding', 'TRAINED', '--config', 'CONFIG', '--cfg-options', 'model.backbone.type=ResNet'],
            'only mmpelk.PeLK has peripheral kernels',
        ),
    ):
        typed = [checkpoint.get(word.lower(), word) for word in arguments]
        printed = call(TOOL, *typed, cwd=tmp_path, code=1)
        assert printed.splitlines()[-1].startswith('error: ')
        assert message in printed
