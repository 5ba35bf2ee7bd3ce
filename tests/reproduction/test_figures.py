"""The pictures of Fig. 5 and 6 and of the mixers: what is on them, that they can be read in grey, and refusals."""

import importlib
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from mmengine.registry import MODELS, DefaultScope

from mmpelk import get_config
from mmpelk.analysis.complexity import Complexity, Component, LeftOut, count_complexity, uniform_densities
from reproduction import mixers, scaling, shares
from reproduction.marks import Results
from reproduction.shares import BACKBONE, BESIDE, MODEL, Share, flop_shares

GREY = 12  # levels of 255 by which neighbouring fills must differ at least, printed in grey
SHARES = [
    *(Share(MODEL, name, 10 * percent, percent) for name, percent in (('backbone', 10), ('neck', 20), ('head', 70))),
    *(Share(BACKBONE, name, percent, percent) for name, percent in (('FFN', 75), ('large kernels', 25))),
    Share(BESIDE, 'positional embedding', 1, 1),
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., str]:
    """Run a command in this process, in an empty folder; what was printed."""

    def run(name: str, *arguments: object, code: int = 0) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        returned: Any = 0
        try:
            importlib.import_module(f'reproduction.{name}').main()
        except SystemExit as end:
            returned = end.code
        printed = ''.join(capsys.readouterr())
        assert returned == code, printed
        return printed

    return run


def check_picture(path: Path) -> None:
    """A picture of some size that is not blank."""
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    assert min(picture.shape) > 200
    assert picture.std() > 10


def check_labels(axes: Axes) -> None:
    """Title, legend, and axes with their units."""
    assert axes.get_title() or axes.get_title(loc='left')
    assert axes.get_xlabel()
    assert axes.get_legend() is not None


@pytest.fixture(scope='module')
def upernet() -> Complexity:
    """Of the paper's Fig. 5: UperNet with PeLK-T, 2048x512, density 0.6."""
    pytest.importorskip('mmseg')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(get_config('seg/upernet_pelk_t_ade20k.py').model)
    return count_complexity(model, (512, 2048), uniform_densities(model, 0.6))


def backbone(embedding_operations: int = 0, **flops: int) -> list[Share]:
    """Shares of a backbone, from FLOPs by component."""
    components = tuple(Component(name, 'backbone', 0, 0, 2 * count, count) for name, count in flops.items())
    left_out = (LeftOut('embedding', 0, embedding_operations, ''),) if embedding_operations else ()
    return [share for share in flop_shares(Complexity(components, left_out, ())) if share.whole != MODEL]


class TestShares:
    def test_of_the_papers_figure(self, upernet: Complexity) -> None:
        found = flop_shares(upernet)
        assert [share.name for share in found if share.whole == MODEL] == ['backbone', 'decode_head']
        percents = {share.name: share.percent for share in found}
        assert f'{percents["backbone"]:.1f}' == '12.5'
        assert f'{percents["large kernels"]:.1f}' == '24.6'  # the paper: about 25
        assert f'{percents["positional embedding"]:.2f}' == '0.05'  # as the paper
        assert next(share.name for share in found if share.whole == BACKBONE) == 'FFN'

    @pytest.mark.parametrize('whole', [MODEL, BACKBONE])
    def test_sum_to_the_whole(self, upernet: Complexity, whole: str) -> None:
        pieces = [share for share in flop_shares(upernet) if share.whole == whole]
        total = upernet.flops_sparse if whole == MODEL else upernet.part('backbone')
        assert sum(share.percent for share in pieces) == pytest.approx(100)
        assert sum(share.flops for share in pieces) == total

    @pytest.mark.parametrize(
        ('flops', 'expected'),
        [
            (dict(stem=10, downsampling=30, ffn=60), [('FFN', 60), ('downsampling, stem included', 40)]),
            (dict(ffn=70, backbone_other=30, small_kernels=0), [('FFN', 70), ('backbone other', 30)]),
            (dict(ffn=100, embedding_operations=1), [('FFN', 100), ('positional embedding', 1)]),
        ],
        ids=['stem-and-downsampling-are-one', 'what-has-no-name-in-the-paper', 'embedding-beside-the-whole'],
    )
    def test_names(self, flops: dict[str, int], expected: list[tuple[str, int]]) -> None:
        assert [(share.name, share.percent) for share in backbone(**flops)] == expected

    def test_command(self, run: Callable[..., str], tiny_config: Path, tmp_path: Path) -> None:
        pytest.importorskip('mmseg')
        out, report = tmp_path / 'shares.png', tmp_path / 'shares.json'
        printed = run('shares', tiny_config, '--shape', 64, 64, '--out', out, '--json', report)
        check_picture(out)
        for name in ('backbone', 'decode head', 'FFN', 'large kernels', 'downsampling', 'positional embedding'):
            assert name in printed
        assert '(p)' not in printed, 'the paper states them of another network'
        written = json.loads(report.read_text())
        assert (written['shape'], written['density']) == ([64, 64], 0.6)
        assert sum(one['percent'] for one in written['shares'] if one['whole'] == MODEL) == pytest.approx(100)

    def test_what_is_on_the_figure(self) -> None:
        figure = shares.draw(SHARES, 'nano, 64 x 64, density 0.6')
        assert figure.get_suptitle() == 'nano, 64 x 64, density 0.6'
        for axes, pieces in zip(figure.axes, (SHARES[:3], SHARES[3:]), strict=True):
            check_labels(axes)
            texts = [text.get_text() for text in axes.get_legend().get_texts()]
            assert all(share.name in text for text, share in zip(reversed(texts), pieces, strict=True))
        bars = figure.axes[0].patches
        assert [(bar.get_y(), bar.get_height()) for bar in bars] == [(0, 10), (10, 20), (30, 70)]
        for below, above in pairwise(bars):
            grey = [255 * np.dot(to_rgb(bar.get_facecolor()[:3]), (0.299, 0.587, 0.114)) for bar in (below, above)]
            assert abs(grey[0] - grey[1]) > GREY
            assert below.get_hatch() != above.get_hatch()


class TestScaling:
    def test_command(self, run: Callable[..., str], tmp_path: Path) -> None:
        out, report = tmp_path / 'new' / 'sizes.png', tmp_path / 'new' / 'sizes.json'
        printed = run('scaling', '--kernel-sizes', 7, 51, '--out', out, '--json', report)
        check_picture(out)
        row = next(line for line in printed.splitlines() if line.split()[:1] == ['51'])
        # K, rings, parameters per channel; M of peripheral, stripe, dense, peripheral with h.
        assert row.split()[::2] + row.split()[1:2] == ['51', '(c)', '(c)', '(c)', '(c)', '(c)', '(c)', '13']
        assert row.split()[1::2] == ['13', '169', '29.4', '31.6', '45.5', '33.1']
        assert json.loads(report.read_text())['stripe']['51']['kernel'] == 510

    def test_what_is_on_the_figure(self) -> None:
        figure = scaling.draw([7, 31, 51], center_size=5)
        for axes in figure.axes:
            check_labels(axes)
            lines = axes.get_lines()
            # Told apart without colour: no two have both line and marker in common.
            assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines)
        dense = figure.axes[0].get_lines()[0]
        assert list(dense.get_xdata()) == list(range(7, 52, 2))
        assert dense.get_ydata()[-1] == scaling.measure('dense', 51).network / 1e6


def test_mixers(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run('mixers', '--out', tmp_path / 'curves.png')
    check_picture(tmp_path / 'curves.png')
    schedules = mixers.read_schedules(Results())
    assert printed.count('dense, same') == len(schedules) == 2
    for axes in mixers.draw(schedules).axes:
        check_labels(axes)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['scaling', '--kernel-sizes', 7, 50], 'kernel_size must be an odd positive integer, got 50'),
        (['shares', 'absent.py'], "there is no config 'absent.py'"),
        (['shares', 'CONFIG', '--density', 0], 'density is in (0, 1], got 0.0'),
        (['mixers', '--results', '.'], "no mixer_comparison.json in '.'; python benchmarks/mixer_comparison.py writes"),
    ],
)
def test_mistakes_are_told(run: Callable[..., str], tiny_config: Path, words: list[object], message: str) -> None:
    pytest.importorskip('mmseg')
    name, *options = (tiny_config if word == 'CONFIG' else word for word in words)
    assert run(name, *options, code=1).splitlines()[-1].startswith(f'error: {message}')
