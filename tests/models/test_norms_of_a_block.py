"""When a block gives its norms to kernels, in inference and in training. A stand-in is those kernels, on a CPU."""

import copy
from collections.abc import Callable

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune
from torch.utils.hooks import RemovableHandle

from mmpelk.models import pelk
from mmpelk.models.mixers import MIXERS, MixerSpec, PeripheralMixer
from mmpelk.models.pelk import PeLKBlock, PeLKStage
from mmpelk.ops.branches import BranchTensors, peripheral_branches
from mmpelk.ops.mixed_norm import Norm, _by_operators, is_fused


def _is_fused(x: Tensor, training: bool = False) -> bool:
    return torch.is_grad_enabled() == training


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that the kernel was asked for; it runs wherever gradients are off."""
    dtypes = []

    def mixed_norm(*arguments: object) -> Tensor:
        *inputs, dtype = arguments
        large, small, x, _, _ = inputs
        assert all(each is None or each.stride(1) == 1 for each in (large, small, x))
        dtypes.append(dtype)
        return _by_operators(*inputs).to(dtype)  # type: ignore[arg-type, call-arg]

    monkeypatch.setattr(pelk, 'mixed_norm', mixed_norm)
    monkeypatch.setattr(pelk, 'is_fused', _is_fused)
    return dtypes


def _block(mixer: str = 'peripheral', mixed: int = 3, **spec: object) -> PeLKBlock:
    torch.manual_seed(0)
    block = PeLKBlock(7, MIXERS[mixer](MixerSpec(mixed, 5, **spec)), mixed, layer_scale_init_value=1.0)  # type: ignore[arg-type]
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return block.eval()


def _map() -> Tensor:
    return torch.randn(2, 7, 6, 5, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)


@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'autocast'])
@pytest.mark.parametrize('deploy', [False, True], ids=['as trained', 'deployed'])
@pytest.mark.parametrize(
    'spec',
    [
        dict(positional_embedding='in_bounds'),
        dict(positional_embedding='constant', norm_cfg=dict(type='SyncBN')),
        dict(small_kernel_size=0, mixer='dense'),
        dict(mixed=7),
    ],
    ids=['embedding', 'constant-SyncBN', 'one kernel', 'all channels'],
)
def test_same_map_in_the_dtype_of_the_linear_layer(
    spec: dict, deploy: bool, autocast: bool, asked: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x = _block(**spec), _map()
    embedding = torch.randn(3, 5, 5) if 'positional_embedding' in spec else None
    if deploy:
        block.mixer.switch_to_deploy(embedding)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        got = block(x, embedding)
        assert asked == [torch.bfloat16 if autocast else torch.float32]
        monkeypatch.setattr(pelk, 'is_fused', lambda x, training=False: False)
        want = block(x, embedding)
    tolerance = 0.05 if autocast else 1e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    assert len(asked) == 1


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class _Activated(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class _Sharded(nn.Parameter):
    """As of libraries that shard or quantise."""


class _OwnForward(PeripheralMixer):
    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, embedding)


def _hook(name: str) -> Callable[[PeLKBlock], object]:
    return lambda block: block.get_submodule(name).register_forward_hook(lambda module, inputs, output: output * 2)


def _set(name: str, module: nn.Module) -> Callable[[PeLKBlock], object]:
    return lambda block: block.set_submodule(name, module.eval())


TOUCHED: dict[str, Callable[[PeLKBlock], object]] = {
    **{
        f'hook-{name}': _hook(name)
        for name in ('mixer', 'mixer.large', 'mixer.small', 'mixer.large_norm', 'mixer.small_norm', 'norm')
    },
    'hook-pointwise_conv1': _hook('pointwise_conv1'),
    'hook-everywhere': lambda block: register_module_forward_hook(lambda module, inputs, output: None),
    'parametrised-batch_norm': lambda block: parametrize.register_parametrization(
        block.mixer.large_norm, 'weight', _Doubled()
    ),
    'parametrised-norm': lambda block: parametrize.register_parametrization(block.norm, 'bias', _Doubled()),
    'pruned-norm': lambda block: prune.l1_unstructured(block.norm, 'weight', 0.5),
    **{
        f'sharded-{name}': lambda block, name=name: setattr(
            block.get_submodule(name), 'weight', _Sharded(block.get_submodule(name).weight.detach())
        )
        for name in ('norm', 'mixer.large_norm', 'mixer.small_norm', 'mixer.large', 'mixer.small')
    },
    'pruned-kernel': lambda block: prune.l1_unstructured(block.mixer.small, 'weight', 0.5),
    'training': lambda block: block.mixer.small_norm.train(),
    'batch_statistics': _set('mixer.large_norm', nn.BatchNorm2d(3, track_running_stats=False)),
    'no_affine': _set('mixer.large_norm', nn.BatchNorm2d(3, affine=False)),
    'instance_norm': _set('mixer.small_norm', nn.InstanceNorm2d(3, affine=True, track_running_stats=True)),
    'batch_norm_of_ones_own': _set('mixer.small_norm', _Activated(3)),
    'folded_norm': _set('mixer.small_norm', nn.Identity()),
    'other_norm': _set('norm', nn.RMSNorm(7) if hasattr(nn, 'RMSNorm') else nn.Identity()),
    'norm_of_two_axes': _set('norm', nn.LayerNorm((5, 7))),
    'wrapped_linear': lambda block: _set('pointwise_conv1', nn.Sequential(block.pointwise_conv1))(block),
    'mixer_of_ones_own': lambda block: setattr(block.mixer, '__class__', _OwnForward),
    'another_mixer': _set('mixer', MIXERS['conv7'](MixerSpec(3, 7))),
}


@pytest.mark.parametrize('touch', TOUCHED)
@torch.no_grad()
def test_modules_that_may_compute_something_else_are_called(touch: str, asked: list[torch.dtype]) -> None:
    block, x = _block(), _map()
    handle = TOUCHED[touch](block)
    try:
        got = block(x)
        assert not asked
    finally:
        if isinstance(handle, RemovableHandle):
            handle.remove()
    assert got.shape == x.shape


@pytest.mark.parametrize('deploy', [False, True], ids=['as trained', 'deployed'])
def test_calls_that_are_for_the_operators(
    deploy: bool, asked: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x = _block(), _map()
    if deploy:
        block.mixer.switch_to_deploy()
    with torch.no_grad():
        torch.jit.trace(block, x, check_trace=False)
        block(x.as_subclass(nn.Parameter))  # type: ignore[arg-type]
        monkeypatch.setattr(pelk, 'is_fused', is_fused)
        block(x)  # on a CPU
    block(x)
    assert not asked


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of what the kernels in training were called with; they run wherever gradients are on."""
    dtypes = []

    def mix_and_norm(
        x: Tensor,
        tensors: BranchTensors,
        grid: list[int],
        backend: str | None,
        norms: list[nn.BatchNorm2d],
        norm: Norm,
        dtype: torch.dtype,
    ) -> Tensor:
        dtypes.append(dtype)
        weight, small, bias = tensors
        large, mixed = peripheral_branches(x[:, : len(weight)], weight, grid, small, bias, backend=backend)
        mixed = norms[0](large) + norms[1](mixed)
        parts = [mixed, x[:, len(weight) :]] if x.shape[1] > len(weight) else [mixed]
        out = torch.cat([part.permute(0, 2, 3, 1) for part in parts], -1)
        (weight, bias), eps = norm
        return nn.functional.layer_norm(out, x.shape[1:2], weight, bias, eps).to(dtype)

    monkeypatch.setattr(pelk, 'mix_and_norm', mix_and_norm)
    monkeypatch.setattr(pelk, 'is_fused', _is_fused)
    return dtypes


def _step(stage: PeLKStage) -> list[Tensor]:
    """Output, gradients and buffers after a step in training."""
    stage = copy.deepcopy(stage)
    x = _map().requires_grad_()
    out = stage(x)
    grads = torch.autograd.grad(out.square().sum(), [x, *stage.parameters()])
    return [out, *grads, *stage.buffers()]


@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'autocast'])
@pytest.mark.parametrize(
    ('spec', 'with_cp'),
    [
        (dict(positional_embedding='in_bounds'), False),
        (dict(mixer='dense'), True),
        (dict(mixed=7), False),
        (dict(norm_cfg=dict(type='SyncBN')), False),
        (dict(norm_cfg=dict(type='SyncBN'), reverted=True), False),
        (dict(backend='fft'), False),
    ],
    ids=['embedding', 'recomputed', 'all channels', 'SyncBN', 'reverted SyncBN', 'backend'],
)
def test_same_step_in_training(
    spec: dict, with_cp: bool, autocast: bool, trained: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dict(spec)
    reverted, backend = spec.pop('reverted', False), spec.pop('backend', None)
    block = _block(**spec)
    block.mixer.large.backend = backend
    if reverted:  # as on one device
        block = revert_sync_batchnorm(block)
    block.with_cp = with_cp
    blocks = [block, copy.deepcopy(block)]
    stage = PeLKStage(blocks, (3, 5, 5) if 'positional_embedding' in spec else None).train()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        got = _step(stage)
        assert trained == [torch.bfloat16 if autocast else torch.float32] * 2 * (1 + with_cp)
        monkeypatch.setattr(pelk, 'is_fused', lambda x, training=False: False)
        want = _step(stage)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert [int(tensor) for tensor in got if tensor.dtype == torch.int64] == [1 + with_cp] * 4


IN_TRAINING: dict[str, Callable[[PeLKBlock], object]] = {
    **{name: touch for name, touch in TOUCHED.items() if name != 'training'},
    'norm_eval': lambda block: None,
    'no_longer_tracked': lambda block: setattr(block.mixer.large_norm, 'track_running_stats', False),
    'cumulative_average': lambda block: setattr(block.mixer.large_norm, 'momentum', None),
    'one_norm_for_both': lambda block: setattr(block.mixer, 'small_norm', block.mixer.large_norm),
}


@pytest.mark.parametrize('touch', IN_TRAINING)
def test_modules_that_may_compute_something_else_in_training(touch: str, trained: list[torch.dtype]) -> None:
    block, x = _block(), _map().requires_grad_()
    handle = IN_TRAINING[touch](block)
    block.train()
    if touch == 'norm_eval':
        block.mixer.large_norm.eval()
    try:
        block(x).sum().backward()
        assert not trained
    finally:
        if isinstance(handle, RemovableHandle):
            handle.remove()


@pytest.mark.parametrize(
    ('norm', 'processes', 'error'),
    [
        (nn.SyncBatchNorm(3, process_group='its own'), 1, 'on GPU'),
        (nn.SyncBatchNorm(3, process_group='its own'), 2, 'on GPU'),
        (nn.BatchNorm3d(3), 1, 'expected 5D'),
    ],
    ids=['SyncBN alone', 'SyncBN', '3d'],
)
def test_norms_that_refuse_a_map(
    norm: nn.Module, processes: int, error: str, trained: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a group of processes ``SyncBN`` refuses a CPU; the kernels take its place if the group is this process."""
    block = _block().train()
    block.mixer.small_norm = norm
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(
        torch.distributed, 'get_world_size', lambda group=None: processes if group == 'its own' else 3 - processes
    )
    with pytest.raises(ValueError, match=error):
        block(_map())
    assert len(trained) == (type(norm) is nn.SyncBatchNorm and processes == 1)


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('mode', ['in_bounds', 'constant'])
@pytest.mark.usefixtures('asked', 'trained')
def test_a_block_without_its_embedding_is_refused(mode: str, grad: bool) -> None:
    block = _block(positional_embedding=mode).train(grad)
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match='call the stage, or each block as'):
        block(_map())


def test_calls_that_are_for_the_operators_in_training(
    trained: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x = _block().train(), _map()
    torch.jit.trace(block, x, check_trace=False)
    block(x.as_subclass(nn.Parameter))  # type: ignore[arg-type]
    with torch.no_grad():
        block(x)
    block.eval()(x)
    block.train()
    monkeypatch.setattr(pelk, 'is_fused', is_fused)
    block(x)  # on a CPU
    assert not trained
    monkeypatch.setattr(pelk, 'is_fused', _is_fused)
    block(x)
    assert trained
