"""The counting itself, and Fig. 5. The rows of Tables 2 to 4 are counted in ``tests/reproduction/test_counts.py``."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmpelk.analysis.complexity import (
    Complexity,
    Component,
    LargeKernelCall,
    LeftOut,
    checkpoint_densities,
    count_complexity,
    uniform_densities,
)
from mmpelk.models import EnlargedConv2d, PeLK
from mmpelk.ops import backends, executed, force_backend, peripheral_conv2d, sharing_grid
from mmpelk.ops.backends import BACKENDS, PROCESSORS, REFERENCE_PROCESSOR, Backend
from mmpelk.ops.executed import executed_operations

NANO = dict(
    depths=(1, 1, 2, 1), channels=(8, 12, 16, 24), kernel_sizes=(13, 11, 9, 7), sharing_grids=(None, None, None, None)
)


@pytest.fixture(scope='module')
def nano() -> PeLK:
    torch.manual_seed(0)
    return PeLK(NANO).eval()


def test_totals_are_the_sums_of_hand_counts(nano: PeLK) -> None:
    complexity = count_complexity(nano, (64, 48))
    flops, small = dict.fromkeys(('stem', 'downsampling', 'large_kernels', 'ffn'), 0), 0
    maps = [(16, 12), (8, 6), (4, 3), (2, 1)]
    for stage, (height, width) in enumerate(maps):
        channels, depth = NANO['channels'][stage], NANO['depths'][stage]
        patch = 3 * 16 if stage == 0 else NANO['channels'][stage - 1] * 4
        flops['stem' if stage == 0 else 'downsampling'] += height * width * channels * patch
        mixed = int(3 / 8 * channels)
        flops['large_kernels'] += depth * height * width * mixed * NANO['kernel_sizes'][stage] ** 2
        small += depth * height * width * mixed * 5**2
        flops['ffn'] += depth * height * width * 8 * channels**2
    assert {c.name: c.flops for c in complexity.components if c.flops} == flops
    assert complexity.flops == sum(flops.values())
    assert [left_out.flops for left_out in complexity.left_out if left_out.name == 'small_kernels'] == [small]
    assert complexity.params == sum(parameter.numel() for parameter in nano.parameters())
    params = dict.fromkeys(('large_kernels', 'small_kernels', 'embedding', 'norms_and_scales'), 0)
    for channels, depth, size in zip(NANO['channels'], NANO['depths'], NANO['kernel_sizes'], strict=True):
        mixed = int(3 / 8 * channels)
        params['large_kernels'] += depth * mixed * len(sharing_grid(size)) ** 2
        params['small_kernels'] += depth * mixed * 5**2
        params['embedding'] += mixed * size**2
    params['norms_and_scales'] = sum(
        value.numel()
        for name, value in nano.named_parameters()
        if any(part == 'gamma' or part.rstrip('0123456789').endswith('norm') for part in name.split('.'))
    )
    found = {c.name: c.params for c in complexity.components}
    assert {name: found[name] for name in params} == params
    assert set(found) == {*params, *flops}
    (embedding,) = (left_out for left_out in complexity.left_out if left_out.name == 'embedding')
    assert (embedding.params, embedding.flops) == (0, sum(call.embedding_operations for call in complexity.calls))
    assert all(call.has_map for call in complexity.calls)
    with pytest.raises(ValueError, match='nobody'):
        count_complexity(nano, (64, 48), {'nobody': 0.5})


def test_images_of_any_number_of_channels(nano: PeLK) -> None:
    counts = [count_complexity(PeLK(NANO, in_channels=channels), (64, 48)) for channels in (1, 3, 6)]
    per_channel = 16 * 12 * NANO['channels'][0] * 4**2
    assert [count.flops - counts[1].flops for count in counts] == [-2 * per_channel, 0, 3 * per_channel]


class Attention(nn.Module):
    """Products of matrices that no layer makes, on tokens ``(1, L, 3)`` out of one linear layer."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.projection = form, nn.Linear(3, 3, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.projection(image.flatten(2).transpose(1, 2))
        if self.form == 'mm':
            tokens = tokens[0]
        if self.form == 'fused':
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return (tokens @ tokens.transpose(-2, -1)) @ tokens


@pytest.mark.parametrize('form', ['bmm', 'mm', 'fused'])
def test_products_of_matrices_count(form: str) -> None:
    tokens = 4 * 6
    assert count_complexity(Attention(form), (4, 6)).flops == tokens * 3 * 3 + 2 * tokens * tokens * 3


@pytest.mark.parametrize(
    ('layer', 'operations'),
    [  # of each of the 2 x 10 x 8 numbers that come out
        (nn.Upsample(scale_factor=2, mode='bilinear'), 4),
        (nn.Upsample(scale_factor=2, mode='nearest'), 1),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.BatchNorm2d(2)), 1 + 2),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.BatchNorm2d(2, affine=False)), 1 + 1),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.GroupNorm(1, 2)), 1 + 5),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.GroupNorm(1, 2, affine=False)), 1 + 4),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.LayerNorm(8)), 1 + 5),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.LayerNorm(8, elementwise_affine=False)), 1 + 4),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(3)), 1 + 1),
    ],
    ids=[
        *('bilinear', 'nearest', 'batch norm', 'plain batch norm', 'group norm', 'plain group norm', 'layer norm'),
        *('plain layer norm', 'pooling'),
    ],
)
def test_norms_and_resizing_count_as_in_mmengine(layer: nn.Module, operations: int) -> None:
    complexity = count_complexity(nn.Sequential(nn.Conv2d(3, 2, 1), layer), (5, 4))
    assert [left_out.flops for left_out in complexity.left_out] == [operations * 2 * 10 * 8]


def test_heads_of_regions_are_parts() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 4, 1)
            boxes = nn.Sequential(nn.Sequential(nn.Conv2d(4, 2, 1)))  # one of a cascade
            self.roi_head = nn.ModuleDict(dict(bbox_head=boxes, mask_head=nn.Conv2d(4, 1, 1)))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [head(self.backbone(x)) for head in self.roi_head.values()]

    complexity = count_complexity(Detector(), (8, 8))
    assert [complexity.part(name) for name in ('bbox_head', 'mask_head')] == [64 * 4 * 2, 64 * 4]
    densities = uniform_densities(Detector(), 0.5)
    assert densities == {'backbone.weight': 0.5, 'head.weight': 0.5}, "a detector's heads stay dense"
    assert count_complexity(Detector(), (8, 8), densities).part('backbone') == 2 * 64 * 12 / 2, 'run by each head'


def test_norms_of_heads_count_and_those_of_the_backbone_are_left_out() -> None:
    class Segmentor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.decode_head = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
            self.auxiliary_head = nn.Linear(4, 2)

        def extract_feat(self, x: Tensor) -> Tensor:
            return self.backbone(x)

    model = Segmentor().train()
    counted = count_complexity(model, (8, 6), {'backbone.0.weight': 0.5})
    assert not model.training
    norms = 2 * 48 * 4  # a multiplication and an addition
    head, resized = 4 * 48 * 4 * 2, 4 * 48 * (4 + 2 * 2)
    assert [(each.part, each.name, each.flops, each.flops_sparse) for each in counted.components if each.flops] == [
        ('backbone', 'backbone_other', 48 * 12, 48 * 6),
        ('decode_head', 'decode_head', head, head),
        ('decode_head', 'norms_and_resizing', resized, resized),
    ]
    assert [(each.name, each.flops) for each in counted.left_out if each.flops] == [('norms_and_resizing', norms)]
    assert counted.part('decode_head') == head + resized


def test_layers_of_convnext_are_components() -> None:
    block = nn.Sequential(
        OrderedDict(depthwise_conv=nn.Conv2d(3, 3, 7, padding=3, groups=3), pointwise_conv1=nn.Conv2d(3, 12, 1))
    )
    counted = count_complexity(nn.Sequential(block), (8, 6))
    assert {each.name: each.flops for each in counted.components} == dict(large_kernels=48 * 3 * 49, ffn=48 * 3 * 12)


def test_operations_of_the_embedding() -> None:
    call = LargeKernelCall((2, 3, 4, 5), (1, 3, 1), 'dense', has_map=True)
    table, lookups, sums = 5**2 + 2 * 6**2, 4 * 6 + 4 * 5, 2 * 4 * 5
    assert call.embedding_operations == 3 * (table + lookups + sums)
    assert replace(call, has_map=False).embedding_operations == 0


def test_enlarged_convolutions_and_passing_channels_count() -> None:
    class Enlarged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.ModuleList([nn.Conv2d(3, 4, 1), EnlargedConv2d(4, 13, (3, 3), bias=True)])
            self.auxiliary_head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            stem, enlarged = self.backbone
            x = enlarged(stem(x))
            return peripheral_conv2d(x, enlarged.weight[:2], enlarged.sharing_grid, partial=True)

    model = Enlarged()
    counted = count_complexity(model, (8, 6))
    (large,) = (component for component in counted.components if component.name == 'large_kernels')
    assert large.params == sum(parameter.numel() for parameter in model.backbone[1].parameters())
    assert large.flops == 8 * 6 * 4 * 13**2
    assert [(left_out.name, left_out.params) for left_out in counted.left_out] == [('auxiliary_head', 4 * 2 + 2)]
    assert [(call.shape, call.has_map) for call in counted.calls] == [((1, 4, 8, 6), False), ((1, 2, 8, 6), False)]
    for shape in ((8, 0), (0, 8), (8, 8, 8)):
        with pytest.raises(ValueError, match='two positive integers'):
            count_complexity(model, shape)


def test_report_of_components_and_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tuple(LargeKernelCall((1, 2, 8, 8), sharing_grid(size), 'fft', has_map=False) for size in (13, 9))
    names = ('stem', 'large_kernels', 'small_kernels', 'embedding')
    parts = [Component(name, 'backbone', 0, 10**place, 7000, 0) for place, name in enumerate(names)]
    counted = Complexity(tuple(parts), (LeftOut('auxiliary_head', 50000, 0, ''),), calls)
    assert counted.params_as_published == 50011
    operations = {
        name: executed_operations([(name, call.shape, call.sharing_grid) for call in calls]) for name in BACKENDS
    }
    report = counted.to_dict()
    assert [report[name] for name in ('params', 'params_sparse', 'flops', 'flops_sparse')] == [0, 1111, 28000, 0]
    report = report['large_kernels']
    assert report['executed'] == operations
    assert operations['dense'] != operations['fft'] == report['chosen_on_cpu']['executed']
    assert report['chosen_on_cpu']['backends'] == ['fft']
    large = 7000 + operations['fft'] - sum(call.dense_flops for call in calls)
    executed_by = dict(zip((('backbone', name) for name in names), (7000, large, 7000, 7000), strict=True))
    assert counted.executed_by_component() == executed_by
    monkeypatch.setitem(BACKENDS, 'fft', Backend('hidden', lambda x, *_: torch.empty_like(x), lambda x, *_: x))
    executed._operations.cache_clear()
    assert list(counted.executed_by_component().values()) == [7000, None, 7000, 7000]
    executed._operations.cache_clear()


@pytest.mark.parametrize('backend', ['dense', 'dft', 'fft'])
def test_deployed_model_has_the_same_flops(nano: PeLK, backend: str) -> None:
    """Whether the operator's kernel is prepared, as some backends do, or not."""
    deployed = PeLK(NANO).eval()
    deployed.switch_to_deploy()
    with force_backend(backend):
        counted = count_complexity(deployed, (64, 48))
        x = torch.zeros(1, 3, 64, 48)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            deployed(x)
    assert counted.flops == count_complexity(nano, (64, 48)).flops
    assert {call.backend for call in counted.calls} == {backend}
    large = sum(call.dense_flops for call in counted.calls)
    assert large > 0
    by_operator = counter.get_flop_counts()['Global']
    assert sum(count for operator, count in by_operator.items() if 'peripheral' in str(operator)) == 2 * large


def test_checkpoint_densities_follow_masks_then_zeros(nano: PeLK) -> None:
    state = {name: torch.ones_like(value) for name, value in nano.state_dict().items()}
    masked, zeroed = 'stages.0.0.pointwise_conv1.weight', 'stages.0.0.mixer.large.weight'
    state[masked + '_mask'] = torch.arange(state[masked].numel()).view_as(state[masked]) % 4 == 0
    state[masked].zero_()  # active weights that have just been grown
    state[zeroed].flatten()[::2] = 0
    # Masks of what the model has not, such as a head that is left out.
    state |= {'head.weight': torch.ones(2, 2), 'head.weight_mask': torch.ones(2, 2, dtype=torch.bool)}
    densities = checkpoint_densities(nano, state)
    rings = state[zeroed].numel()
    assert densities.pop(masked) == 0.25
    assert densities.pop(zeroed) == (rings // 2) / rings
    assert set(densities.values()) == {1.0}
    dense, sparse = (count_complexity(nano, (64, 48), each) for each in (None, checkpoint_densities(nano, state)))
    layer = nano.get_submodule('stages.0.0.pointwise_conv1')
    saved = 0.75 * 16 * 12 * layer.weight.numel()
    large = 16 * 12 * 3 * 13**2 * (rings - rings // 2) / rings
    assert dense.flops - sparse.flops_sparse == pytest.approx(saved + large, abs=2)


def test_densities_that_do_not_fit_are_refused(nano: PeLK) -> None:
    state = nano.state_dict()
    name = 'stages.0.0.mixer.large.weight'
    for other in (state[name][:1], state[name].transpose(0, 1)):  # of as many numbers
        with pytest.raises(ValueError, match='in the checkpoint and'):
            checkpoint_densities(nano, state | {name: other})
    del state[name]
    with pytest.raises(ValueError, match='the checkpoint has no'):
        checkpoint_densities(nano, state)
    for density in (0.0, 1.1):
        with pytest.raises(ValueError, match='density is in'):
            uniform_densities(nano, density)


def test_dense_backend_executes_the_dense_form(nano: PeLK) -> None:
    """On maps as large as the kernels' reach; smaller ones it spares what reads outside."""
    complexity = count_complexity(nano, (256, 256))
    dense_form = next(c.flops for c in complexity.components if c.name == 'large_kernels')
    assert complexity.executed('dense') == dense_form


@pytest.mark.parametrize('machine', PROCESSORS)
def test_choice_that_is_counted_is_the_named_processors(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every machine, trained and deployed."""
    monkeypatch.setattr(backends, 'THIS_PROCESSOR', machine)
    network = PeLK(NANO | dict(kernel_sizes=(51, 49, 47, 13))).eval()
    chosen = []
    for _ in range(2):
        default, *named = (
            count_complexity(network, (224, 224), **options)
            for options in ({}, *(dict(processor=processor) for processor in PROCESSORS))
        )
        assert default == next(count for count in named if count.processor == REFERENCE_PROCESSOR)
        chosen.append([[large.backend for large in count.calls] for count in named])
        network.switch_to_deploy()
    assert chosen[0] == chosen[1]
    assert chosen[0][0] != chosen[0][1], 'else nothing is shown'
    with pytest.raises(ValueError, match="unknown class of processors 'Z80'; known: AVX2"):
        count_complexity(network, (64, 64), processor='Z80')


@pytest.mark.parametrize('backend', ['dft', 'fft'])
def test_what_calls_share_counts_for_none(backend: str) -> None:
    """The second call finds the first one's matrices; twice the channels are twice the work all the same."""
    first, second = (executed_operations([(backend, (1, count, 23, 26), sharing_grid(13))]) for count in (4, 8))
    assert second == 2 * first


@pytest.mark.parametrize('backend', ['fft', 'dft'])
def test_executed_operations_do_not_depend_on_the_workspace(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for limit in ('', '1'):
        monkeypatch.setenv('MMPELK_WORKSPACE_MB', limit)
        executed._operations.cache_clear()
        found.append(executed_operations([(backend, (2, 128, 56, 56), sharing_grid(51))]))
    assert found[0] == found[1] is not None


@pytest.mark.parametrize('backend', ['fft', 'dft'])
def test_fast_backends_execute_less_and_hardly_feel_the_kernel_size(backend: str) -> None:
    shape = (1, 8, 64, 128)
    small, large = (executed_operations([(backend, shape, sharing_grid(size))]) for size in (51, 101))
    assert small is not None
    assert large is not None
    assert small < 0.6 * 8 * 64 * 128 * 51**2
    assert large < 2 * small  # dense: 3.9 times


_COUNTED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    'a sum': (lambda x: x + x, 128),
    'a sum of complex numbers': (lambda x: torch.complex(x, x) - torch.complex(x, x), 2 * 128),
    'a product': (lambda x: x * x, 128),
    'a product of complex numbers': (lambda x: torch.complex(x, x) * torch.complex(x, x), 4 * 128),
    'a product of matrices': (lambda x: x @ x, 8 * 128),
    'a product of two matrices': (lambda x: x[0, 0, :, :4] @ x[0, 0, :4], 4 * 64),
    'a product of complex matrices': (lambda x: torch.complex(x, x) @ torch.complex(x, x), 4 * 8 * 128),
    'a product of matrices and a sum': (lambda x: torch.addmm(x[0, 0], x[0, 0, :, :4], x[0, 0, :4]), 4 * 64),
    'products of matrices and a sum': (lambda x: torch.baddbmm(x[0], x[0, :, :, :4], x[0, :, :4]), 4 * 128),
    'a sum of products': (lambda x: torch.addcmul(x, x, x), 128),
    'a sum in place': (lambda x: x.clone().add_(x).sub_(x), 2 * 128),
    'sums along an axis': (lambda x: x.cumsum(-1), 128),
    'a sum of integers': (lambda x: x * (torch.ones_like(x, dtype=torch.int64) + 1), 128),
    'a convolution': (lambda x: F.conv2d(x, x.new_ones(2, 1, 3, 3), padding=1, groups=2), 9 * 128),
    'a real transform': (torch.fft.rfft2, 5 * 128 * 6 // 2),
    'a real transform and back': (lambda x: torch.fft.irfft2(torch.fft.rfft2(x)), 5 * 128 * 6),
    'a complex transform': (lambda x: torch.fft.fft2(torch.complex(x, x)), 5 * 128 * 6),
    'a sum of a copy': (lambda x: F.pad(x, (1, 1)).permute(0, 1, 3, 2).contiguous() + 1, 2 * 8 * 10),
}


@pytest.mark.parametrize('name', _COUNTED)
def test_operations_are_counted_as_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a map of 128 numbers; transforms of 64 points."""
    function, count = _COUNTED[name]
    monkeypatch.setitem(BACKENDS, name, Backend(name, lambda x, *_: function(x), lambda *_: torch.empty(0)))
    assert executed_operations([(name, (1, 2, 8, 8), (1, 1, 1))]) == count


def test_backend_that_hides_its_work_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.empty_like(x)

    monkeypatch.setitem(BACKENDS, 'hidden', Backend('hidden', hidden, hidden))
    assert executed_operations([('hidden', (1, 2, 8, 8), (1, 1, 1))]) is None
    for reason in ('unavailable_reason', 'unsupported_reason'):
        refusing = replace(BACKENDS['dense'], **{reason: lambda *_: 'not here'})
        monkeypatch.setitem(BACKENDS, reason, refusing)
        assert executed_operations([('dense', (1, 2, 8, 8), (1, 1, 1)), (reason, (1, 2, 8, 8), (1, 1, 1))]) is None
