"""Shares of the FLOPs: Fig. 5."""

from collections.abc import Callable

import pytest
from mmengine.registry import MODELS, DefaultScope

from mmpelk import get_config
from mmpelk.analysis.complexity import Complexity, Component, LeftOut, count_complexity, uniform_densities
from mmpelk.analysis.shares import flop_shares


@pytest.fixture(scope='module')
def upernet_complexity() -> Complexity:
    """Of the paper's Fig. 5: UperNet with PeLK-T, 2048x512, density 0.6."""
    pytest.importorskip('mmseg')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(get_config('seg/upernet_pelk_t_ade20k.py').model)
    return count_complexity(model, (512, 2048), uniform_densities(model, 0.6))


class TestFlopShares:
    def test_of_the_papers_figure(self, upernet_complexity: Complexity) -> None:
        shares = flop_shares(upernet_complexity)
        assert shares.total == upernet_complexity.flops_sparse
        parts = {share.name: share for share in shares.parts}
        components = {share.name: share for share in shares.components}
        assert list(parts) == ['backbone', 'decode_head']
        assert f'{parts["backbone"].percent:.1f}' == '12.5'
        assert f'{components["large kernels"].percent:.1f}' == '24.6'  # the paper: about 25
        assert f'{components["positional embedding"].percent:.2f}' == '0.05'  # as the paper
        assert not components['positional embedding'].counted
        assert next(iter(components)) == 'FFN'

    @pytest.mark.parametrize('which', ['parts', 'components'])
    def test_sum_to_the_whole(self, upernet_complexity: Complexity, which: str) -> None:
        shares = flop_shares(upernet_complexity)
        counted = [share for share in getattr(shares, which) if share.counted]
        assert sum(share.percent for share in counted) == pytest.approx(100)
        # Every component is rounded to a whole FLOP by itself.
        whole = dict(parts=shares.total, components=shares.backbone_total)[which]
        assert abs(sum(share.flops for share in counted) - whole) <= len(counted)

    def test_stem_and_downsampling_are_one(self, make_complexity: Callable[..., Complexity]) -> None:
        components = flop_shares(make_complexity(stem=10, downsampling=30, ffn=60)).components
        assert [(share.name, share.flops) for share in components] == [('FFN', 60), ('downsampling, stem included', 40)]

    def test_what_has_no_name_in_the_paper_is_kept(self, make_complexity: Callable[..., Complexity]) -> None:
        shares = flop_shares(make_complexity(ffn=70, backbone_other=30, small_kernels=0))
        assert [(share.name, share.percent) for share in shares.components] == [('FFN', 70), ('backbone other', 30)]

    def test_the_embedding_is_beside_the_whole(self, make_complexity: Callable[..., Complexity]) -> None:
        *counted, embedding = flop_shares(make_complexity(embedding_operations=1, ffn=100)).components
        assert [share.percent for share in counted] == [100]
        assert (embedding.percent, embedding.counted) == (1, False)


@pytest.fixture
def make_complexity() -> Callable[..., Complexity]:
    """A backbone's complexity from FLOPs by component."""

    def make(embedding_operations: int = 0, **flops: int) -> Complexity:
        components = tuple(Component(name, 'backbone', 0, 0, 2 * count, count) for name, count in flops.items())
        left_out = (LeftOut('embedding', 0, embedding_operations, ''),) if embedding_operations else ()
        return Complexity(components, left_out, ())

    return make
