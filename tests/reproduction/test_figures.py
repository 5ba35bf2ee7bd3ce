"""The pictures of Fig. 5 and 6 and of the mixers: what is on them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from mmpelk.analysis.complexity import Complexity, Component, LeftOut
from reproduction import mixers, scaling, shares
from reproduction.counts import upernet
from reproduction.marks import Results
from reproduction.shares import BACKBONE, BESIDE, MODEL, Share, flop_shares
from tests.commands import call

SHARES = [
    *(Share(MODEL, name, 10 * percent, percent) for name, percent in (('backbone', 10), ('neck', 20), ('head', 70))),
    *(Share(BACKBONE, name, percent, percent) for name, percent in (('FFN', 75), ('large kernels', 25))),
    Share(BESIDE, 'positional embedding', 1, 1),
]


@pytest.mark.slow
def test_shares_of_the_papers_figure() -> None:
    pytest.importorskip('mmseg')
    complexity = upernet('PeLK-T')[1]
    found = flop_shares(complexity)
    assert [share.name for share in found if share.whole == MODEL] == ['backbone', 'decode_head']
    percents = {share.name: share.percent for share in found}
    assert f'{percents["backbone"]:.1f}' == '12.5'
    assert f'{percents["large kernels"]:.1f}' == '24.6'  # the paper: about 25
    assert f'{percents["positional embedding"]:.2f}' == '0.05'  # as the paper
    assert next(share.name for share in found if share.whole == BACKBONE) == 'FFN'
    for whole, total in ((MODEL, complexity.flops_sparse), (BACKBONE, complexity.part('backbone'))):
        pieces = [share for share in found if share.whole == whole]
        assert sum(share.percent for share in pieces) == pytest.approx(100)
        assert sum(share.flops for share in pieces) == total


def test_names_of_shares() -> None:
    """Stem and downsampling are one, what the paper does not name keeps its name, the embedding is beside the whole."""
    flops = dict(stem=10, downsampling=20, ffn=60, backbone_other=10, small_kernels=0)
    components = tuple(Component(name, 'backbone', 0, 0, 2 * count, count) for name, count in flops.items())
    found = flop_shares(Complexity(components, (LeftOut('embedding', 0, 1, ''),), ()))
    assert [(share.name, share.percent) for share in found if share.whole != MODEL] == [
        ('FFN', 60),
        ('downsampling, stem included', 30),
        ('backbone other', 10),
        ('positional embedding', 1),
    ]


def test_figure_of_shares() -> None:
    figure = shares.draw(SHARES)
    for axes, pieces in zip(figure.axes, (SHARES[:3], SHARES[3:]), strict=True):
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert all(share.name in text for text, share in zip(reversed(texts), pieces, strict=True))
    assert [(bar.get_y(), bar.get_height()) for bar in figure.axes[0].patches] == [(0, 10), (10, 20), (30, 70)]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., scaling.Size]:
    """In the place of the hundreds of networks whose sizes are drawn; those that are counted are in test_scaling."""

    def measure(curve: str, sides: int | tuple[int, ...], center_size: int = 5) -> scaling.Size:
        side = sides if isinstance(sides, int) else sides[0]
        return scaling.Size(side, side, 10**6 * side * (1 + list(scaling.CURVES).index(curve)))

    monkeypatch.setattr(scaling, 'measure', measure)
    return measure


def test_figures_of_curves(measured: Callable[..., scaling.Size]) -> None:
    for curve, line in zip(scaling.CURVES, scaling.draw().axes[0].get_lines(), strict=False):
        assert list(line.get_xdata()) == list(range(7, 152, 2)), curve
        assert line.get_ydata()[-1] == measured(curve, 151).network / 1e6, curve


@pytest.mark.slow
@pytest.mark.usefixtures('measured')
@pytest.mark.parametrize(
    ('name', 'words'), [('shares', 'FFN large kernels'), ('scaling', "k' stripe"), ('mixers', 'dense, same widths')]
)
def test_commands_print_and_draw(name: str, words: str, tmp_path: Path) -> None:
    pytest.importorskip('mmseg')
    printed = call(f'reproduction.{name}', '--out', 'new/figure.png', cwd=tmp_path)
    assert set(words.split()) <= set(printed.split())
    picture = cv2.imread(str(tmp_path / 'new/figure.png'), cv2.IMREAD_GRAYSCALE)
    assert min(picture.shape) > 200
    assert picture.std() > 10


def test_mixers_that_nobody_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixers, 'Results', lambda: Results(tmp_path))
    printed = call('reproduction.mixers', cwd=tmp_path, code=1)
    assert 'python -m benchmarks.mixer_comparison writes it' in printed
