"""Models as they are counted and measured: built without side effects, a detector's heads on dummy regions."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmpelk.analysis import inference
from mmpelk.analysis.inference import InferenceForm, build_model
from mmpelk.errors import UserError
from mmpelk.models import PeLK


class _Network(PeLK):
    def __init__(self, train_cfg: None, **arguments: Any) -> None:
        assert train_cfg is None
        assert DefaultScope.get_current_instance().scope_name == 'mmengine'  # where a recipe gives none
        super().__init__(**arguments)


@pytest.mark.parametrize('seed', [None, 3])
def test_building_changes_nothing_else(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = dict(depths=(1,), channels=(8,), kernel_sizes=(13,))
    constant = dict(type='Constant', layer='Conv2d', val=0.25)
    cfg = Config(dict(model=dict(type=_Network, train_cfg=dict(mixup=1), arch=arch, init_cfg=constant)))
    DefaultScope.get_instance('of the caller', scope_name='mmseg')
    given, built = copy.deepcopy(cfg.to_dict()), {}
    for state, wanted in ((1, seed), (2, seed), (1, 4)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        built[state, wanted] = build_model(cfg, wanted)
        assert torch.equal(torch.get_rng_state(), before)
    assert cfg.to_dict() == given
    one, again, other = (network.stages[0][0].pointwise_conv1.weight for network in built.values())
    assert torch.equal(one, again) == (seed is not None), 'the seed alone decides, where there is one'
    assert not torch.equal(one, other)
    assert bool((built[1, seed].downsample_layers[0][0].weight == 0.25).all()) == (seed is not None)

    def refuse(_cfg: Config) -> None:
        raise UserError("mmcv's operators are missing")

    monkeypatch.setattr(inference, 'check_operators', refuse)
    with pytest.raises(UserError, match='are missing'):
        build_model(cfg, seed)


class _Extractor(nn.Module):
    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.out_channels, self.roi_layers = channels, [SimpleNamespace(output_size=(side, side + 1))]


class _Detector(nn.Module):
    def __init__(self, shared: bool, own_extractor: bool) -> None:
        super().__init__()
        self.rpn_head = self.shared = nn.Identity()
        heads = nn.Module()
        heads.bbox_head = nn.ModuleList([nn.Identity(), nn.Identity()])
        heads.bbox_roi_extractor = nn.ModuleList([_Extractor(3, 7), _Extractor(3, 5)])
        heads.mask_head = nn.Identity()
        if own_extractor:
            heads.mask_roi_extractor = _Extractor(3, 14)
        heads.with_shared_head, heads.shared_head = shared, nn.Conv2d(3, 9, 1)
        self.roi_head: Any = heads
        self.test_cfg = SimpleNamespace(rpn=SimpleNamespace(max_per_img=20), rcnn=SimpleNamespace(max_per_img=4))

    def extract_feat(self, image: Tensor) -> Tensor:
        return image


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('own_extractor', [False, True])
def test_heads_of_a_detector_run_on_as_many_regions_as_it_keeps(shared: bool, own_extractor: bool) -> None:
    outputs = InferenceForm(_Detector(shared, own_extractor))(torch.rand(1, 3, 8, 8))
    channels, mask = 9 if shared else 3, (14, 15) if own_extractor else (7, 8)
    assert [tuple(output.shape) for output in outputs] == [
        (1, 3, 8, 8),
        (20, channels, 7, 8),
        (20, channels, 5, 6),
        (4, channels, *mask),
    ]
