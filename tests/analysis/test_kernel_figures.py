"""The figures of Fig. 1 and 3: what is on them."""

from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpelk.analysis.kernel_figures import draw_embedding, draw_grids, draw_kernel
from mmpelk.analysis.kernels import LearntEmbedding, LearntKernel, learnt_embedding, learnt_kernel
from mmpelk.models import PeLK

ARCH = dict(depths=(1, 2), channels=(8, 16), kernel_sizes=(13, 9), center_size=5)


def panels(figure: Figure) -> list[Axes]:
    """The axes of a figure but its colour bars; with a title and units."""
    shown = [axes for axes in figure.axes if axes.get_label() != '<colorbar>']
    for axes in shown:
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    return shown


def test_every_region_is_outlined_and_numbered() -> None:
    figure = draw_grids([(2, 1, 2), (7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 7)])
    assert figure.get_suptitle()
    grids = (2, 1, 2), (7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 7)
    for axes, grid in zip(panels(figure), grids, strict=True):
        assert [text.get_text() for text in axes.texts] == [str(index) for index in range(len(grid) ** 2)]
        widths = np.repeat(grid, grid)  # of the ring of each position
        np.testing.assert_array_equal(axes.images[0].get_array(), np.outer(widths, widths))
        assert tuple(axes.images[0].get_extent()) == (0, sum(grid), sum(grid), 0), 'the first row is above'
        for patch, text, (height, width) in zip(axes.patches, axes.texts, product(grid, grid), strict=True):
            assert (patch.get_height(), patch.get_width()) == (height, width)
            assert text.get_position() == (patch.get_x() + width / 2, patch.get_y() + height / 2)
    assert [label.get_text() for label in panels(figure)[1].get_xticklabels()] == list('74211111247')
    for ticks in (panels(figure)[0].get_xticks(), panels(figure)[0].get_yticks()):
        assert list(ticks) == [1, 2.5, 4], 'in the middle of their rings'
    assert panels(figure)[1].get_title() == '31 x 31 positions by 11 x 11 parameters'
    bar = next(axes for axes in figure.axes if axes.get_label() == '<colorbar>')
    assert [label.get_text() for label in bar.get_yticklabels()] == ['1', '4', '16', '49']


def test_small_regions_are_not_numbered_and_share_a_tick() -> None:
    axes = panels(draw_grids([(17, 16, 8, 4, 2, *[1] * 7, 2, 4, 8, 16, 17)]))[0]
    assert 0 < len(axes.texts) < 17**2 == len(axes.patches)
    assert '1 each' in [label.get_text() for label in axes.get_xticklabels()]


def test_what_is_on_the_figure_of_a_kernel() -> None:
    model = PeLK(ARCH)
    kernel = learnt_kernel(model, model.state_dict(), 0, 0)
    figure = draw_kernel(kernel, [2, 0])
    assert 'stages.0.0.mixer.large.weight: the branch' in figure.get_suptitle()
    shown = panels(figure)
    assert [axes.get_title() for axes in shown] == ['channel 2', 'channel 0'] * 2
    assert [axes.images[0].get_array().shape for axes in shown] == [(9, 9)] * 2 + [(13, 13)] * 2
    assert [len(axes.patches) for axes in shown] == [0, 0, 81, 81]
    wanted = [kernel.weight[2], kernel.weight[0], kernel.dense[2], kernel.dense[0]]
    for axes, want in zip(shown, wanted, strict=True):  # zero in the middle, and a colour bar each
        low, high = axes.images[0].get_clim()
        assert low == -high < 0
        np.testing.assert_array_equal(axes.images[0].get_array(), want)
        assert high == want.abs().max()
    assert len(figure.axes) == 2 * len(shown)
    assert [axes.get_ylabel() for axes in shown] == [
        'parameters, 9 x 9\n\nrow, rings', 'row, rings', 'expanded, 13 x 13\n\nrow, positions', 'row, positions'
    ]  # fmt: skip


def test_kernels_without_rings_of_zeros_and_deployed_ones() -> None:
    kernel = LearntKernel('w', torch.zeros(6, 5, 5), (1,) * 5, deployed=True)
    figure = draw_kernel(kernel)
    assert figure.get_suptitle() == 'w: norms and small kernel merged'
    shown = panels(figure)
    assert [axes.get_title() for axes in shown] == [f'channel {index}' for index in range(4)], 'in one row'
    assert [axes.images[0].get_clim() for axes in shown] == [(-1, 1)] * 4
    for channels in ([-1], [6], [0, 6]):
        with pytest.raises(ValueError, match='the kernel has the channels 0 to 5'):
            draw_kernel(kernel, channels)
    figure = draw_embedding(LearntEmbedding('table', None, torch.ones(1, 5, 5), torch.ones(1, 4, 7)))
    assert figure.get_suptitle() == 'table: with the norm of the branch'
    assert [tuple(axes.images[0].get_extent()) for axes in panels(figure)] == [(0, 5, 5, 0), (0, 7, 4, 0)]
    assert 'of a map of 4 x 7' in panels(figure)[1].get_ylabel()


def test_what_is_on_the_figure_of_an_embedding() -> None:
    model = PeLK(ARCH)
    learnt = learnt_embedding(model, model.state_dict(), 0, 0, (8, 6))
    figure = draw_embedding(learnt)
    assert figure.get_suptitle() == 'stages.0.positional_embedding: before the norm of the branch'
    shown = panels(figure)
    # Three convolved channels: h, W h, M.
    assert [axes.images[0].get_array().shape for axes in shown] == [(13, 13)] * 6 + [(8, 6)] * 3
    for axes, want in zip(shown, [*learnt.embedding, *learnt.weighted, *learnt.map], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), want)
    assert [axes.get_xlabel() for axes in shown[2::3]] == ['column, positions'] * 2 + ['column, pixels']
