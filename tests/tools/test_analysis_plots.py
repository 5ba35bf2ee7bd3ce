"""The pictures of Fig. 1 and 3: what is on them, that they can be read in grey, and refusals."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mmpelk.analysis.kernels import learnt_embedding, learnt_kernel
from mmpelk.models import PeLK
from mmpelk.models.deploy import deploy_state_dict
from tests.commands import load_tool
from tests.paths import TOOLS

ARCH = dict(depths=(1, 2), channels=(8, 16), kernel_sizes=(13, 9), center_size=5)
GREY = 12  # levels of 255 by which neighbouring fills must differ at least, printed in grey


def load(name: str) -> ModuleType:
    """A tool as a module."""
    return load_tool(TOOLS / 'analysis' / f'{name}.py')


@pytest.fixture(scope='module', params=['plot_kernels'])
def any_tool(request: pytest.FixtureRequest) -> ModuleType:
    return load(request.param)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., str]:
    """Run a tool in this process, in an empty folder; what was printed."""

    def run(name: str, *arguments: object, code: int = 0) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        returned: Any = 0
        try:
            load(name).main()
        except SystemExit as end:
            returned = end.code
        printed = ''.join(capsys.readouterr())
        assert returned == code, printed
        return printed

    return run


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A config, and a tiny network's checkpoints by their form."""
    folder = tmp_path_factory.mktemp('checkpoint')
    torch.manual_seed(0)
    model = PeLK(ARCH, out_indices=(0, 1)).eval()
    trained = {f'backbone.{name}': value.clone() for name, value in model.state_dict().items()}
    deployed = {f'backbone.{name}': value for name, value in deploy_state_dict(model, model.state_dict()).items()}
    paths = {form: folder / f'{form}.pth' for form in ('trained', 'deployed')}
    torch.save(dict(state_dict=trained, meta={}), paths['trained'])
    torch.save(dict(state_dict=deployed, meta={}), paths['deployed'])
    paths['config'] = folder / 'nano.py'
    backbone = dict(type='mmpelk.PeLK', arch=ARCH, out_indices=(0, 1))
    paths['config'].write_text(f"model = dict(type='EncoderDecoder', backbone={backbone})\n")
    return paths


def check_picture(path: Path) -> None:
    """A picture of some size that is not blank."""
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    assert min(picture.shape) > 200
    assert picture.std() > 10


def check_labels(axes: Axes) -> None:
    """Title, and axes with their units."""
    assert axes.get_title() or axes.get_title(loc='left')
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def grey(colour: Any) -> float:
    """Luminance of a colour, 0 to 255."""
    return float(255 * np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def panels(figure: Figure) -> list[Axes]:
    """The axes of a figure but its colour bars."""
    return [axes for axes in figure.axes if axes.get_label() != '<colorbar>']


def test_help_shows_commands_that_exist(any_tool: ModuleType) -> None:
    assert any_tool.__doc__
    commands = [line for line in any_tool.__doc__.splitlines() if line.startswith('python ')]
    assert commands
    for command in commands:
        assert (TOOLS.parent / command.split()[1]).is_file()


class TestGrids:
    @pytest.mark.parametrize(
        'options',
        [[], ['--kernel-size', 101, '--center-size', 7], ['--grid', 2, 1, 2], ['--grid', 1, '--kernel-size', 3]],
        ids=['fig-1', 'large', 'explicit', 'of-one-position'],
    )
    def test_figure(self, run: Callable[..., str], tmp_path: Path, options: list) -> None:
        printed = run('plot_kernels', 'grid', *options)
        assert printed.strip() == 'work_dirs/analysis/sharing_grids.png'
        check_picture(tmp_path / printed.strip())

    def test_every_region_is_outlined_and_numbered(self) -> None:
        figure = load('plot_kernels').draw_grids([(2, 1, 2), (7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 7)])
        assert figure.get_suptitle()
        for axes, parameters in zip(panels(figure), (9, 121), strict=True):
            check_labels(axes)
            assert [text.get_text() for text in axes.texts] == [str(index) for index in range(parameters)]
            assert len(axes.patches) == parameters
        assert [label.get_text() for label in panels(figure)[1].get_xticklabels()] == list('74211111247')
        scale = next(axes for axes in figure.axes if axes.get_label() == '<colorbar>')
        assert scale.get_ylabel() == 'positions that share the parameter'

    def test_small_regions_are_not_numbered_and_share_a_tick(self) -> None:
        axes = panels(load('plot_kernels').draw_grids([(17, 16, 8, 4, 2, *[1] * 7, 2, 4, 8, 16, 17)]))[0]
        assert 0 < len(axes.texts) < 17**2 == len(axes.patches)
        assert '7 of 1' in [label.get_text() for label in axes.get_xticklabels()]

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (['--grid', 2, 1, 1], 'a sharing grid is symmetric about its centre, got [2, 1, 1]'),
            (['--kernel-size', 30], 'kernel_size must be an odd positive integer, got 30'),
        ],
    )
    def test_refuses(self, run: Callable[..., str], options: list, message: str) -> None:
        assert run('plot_kernels', 'grid', *options, code=1) == f'error: {message}\n'


class TestKernels:
    @pytest.mark.parametrize(
        ('form', 'options'),
        [
            ('trained', ['--stage', 1, '--block', 1]),
            ('trained', ['--deploy', '--channels', 2]),
            ('deployed', ['--channels', 0, 2]),
        ],
        ids=['trained', 'merged-here', 'deployed'],
    )
    @pytest.mark.parametrize('command', ['kernel', 'embedding'])
    def test_figure(
        self,
        run: Callable[..., str],
        checkpoint: dict[str, Path],
        tmp_path: Path,
        command: str,
        form: str,
        options: list,
    ) -> None:
        out = tmp_path / 'figure.png'
        run('plot_kernels', command, checkpoint[form], '--config', checkpoint['config'], *options, '--out', out)
        check_picture(out)

    @pytest.mark.parametrize('grid', [['--kernel-size', 13], ['--grid', 2, 2, 1, 1, 1, 1, 1, 2, 2]])
    def test_by_key(
        self, run: Callable[..., str], checkpoint: dict[str, Path], tmp_path: Path, grid: list[object]
    ) -> None:
        key = 'backbone.stages.0.0.mixer.large.weight'
        run('plot_kernels', 'kernel', checkpoint['trained'], '--key', key, *grid, '--out', tmp_path / 'figure.png')
        check_picture(tmp_path / 'figure.png')

    def test_what_is_on_the_figure_of_a_kernel(self) -> None:
        model = PeLK(ARCH)
        figure = load('plot_kernels').draw_kernel(learnt_kernel(model, model.state_dict(), 0, 0), [2, 0])
        assert 'stages.0.0.mixer.large.weight: the branch' in figure.get_suptitle()
        shown = panels(figure)
        for axes in shown:
            check_labels(axes)
        assert [axes.get_title() for axes in shown] == ['channel 2', 'channel 0'] * 2
        assert [axes.images[0].get_array().shape for axes in shown] == [(9, 9)] * 2 + [(13, 13)] * 2
        assert [len(axes.patches) for axes in shown] == [0, 0, 81, 81]
        for axes in shown:  # zero in the middle, and a colour bar each
            low, high = axes.images[0].get_clim()
            assert low == -high < 0
        assert len(figure.axes) == 2 * len(shown)

    def test_what_is_on_the_figure_of_an_embedding(self) -> None:
        model = PeLK(ARCH)
        figure = load('plot_kernels').draw_embedding(learnt_embedding(model, model.state_dict(), 0, 0, (8, 6)))
        shown = panels(figure)
        for axes in shown:
            check_labels(axes)
        # Three convolved channels: h, W h, M.
        assert [axes.images[0].get_array().shape for axes in shown] == [(13, 13)] * 6 + [(8, 6)] * 3
        assert [axes.get_xlabel() for axes in shown[2::3]] == ['column, positions'] * 2 + ['column, pixels']

    def test_scale_keeps_its_order_in_grey(self) -> None:
        levels = [grey(colour[:3]) for colour in colormaps[load('plot_kernels').SIGNED](np.linspace(0, 1, 64))]
        assert all(below < above for below, above in pairwise(levels))

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['kernel', 'absent.pth', '--key', 'k'], "the checkpoint 'absent.pth' does not exist"),
            (['kernel', 'TRAINED'], 'which sharing grid is it? Give --config CONFIG'),
            (
                ['kernel', 'TRAINED', '--key', 'large'],
                "no 'large'; its depthwise kernels: stages.0.0.mixer.large.weight",
            ),
            (['kernel', 'TRAINED', '--key', 'k', '--deploy'], '--deploy merges by the config'),
            (['kernel', 'TRAINED', '--config', 'CONFIG', '--channels', '3'], 'the kernel has the channels 0 to 2'),
            (['kernel', 'TRAINED', '--config', 'CONFIG', '--stage', '2'], 'there is no stage 2'),
            (['kernel', 'DEPLOYED', '--config', 'CONFIG', '--deploy'], 'is no trained checkpoint of'),
            (
                ['embedding', 'TRAINED', '--config', 'CONFIG', '--map-size', '0', '4'],
                'two positive integers, got (0, 4)',
            ),
            (
                ['embedding', 'TRAINED', '--config', 'CONFIG', '--cfg-options', 'model.backbone.type=ResNet'],
                'only mmpelk.PeLK has peripheral kernels',
            ),
        ],
    )
    def test_refuses(
        self, run: Callable[..., str], checkpoint: dict[str, Path], arguments: list[str], message: str
    ) -> None:
        names = {'CONFIG': 'config', 'TRAINED': 'trained', 'DEPLOYED': 'deployed'}
        typed = [checkpoint[names[word]] if word in names else word for word in arguments]
        printed = run('plot_kernels', *typed, code=1)
        assert printed.splitlines()[-1].startswith('error: ')
        assert message in printed
