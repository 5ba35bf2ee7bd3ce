"""A stage computes the positional terms of its blocks at once: as each block does by itself."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize, weight_norm

from mmpelk.models import PeLK, pelk
from mmpelk.models.mixers import MixerSpec, PeripheralMixer
from mmpelk.models.pelk import PeLKBlock, PeLKStage
from mmpelk.ops import branches
from mmpelk.ops.branches import BranchTensors, stacked_branches


class _Block(PeLKBlock):
    """A class of a user's."""


class _Mixer(PeripheralMixer):
    """Likewise."""

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        assert isinstance(embedding, Tensor)
        return super().forward(x, embedding)


class _Wrapper(nn.Module):
    def __init__(self, block: PeLKBlock) -> None:
        super().__init__()
        self.block, self.mixer = block, block.mixer

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        assert isinstance(embedding, Tensor)
        return self.block(x, embedding)


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _with_one_kernel_on_another_grid(stage: PeLKStage) -> None:
    stage[1].mixer.large.sharing_grid = (1, 3, 1, 1, 1, 1, 1, 3, 1)


def _give_grids_as_lists(stage: PeLKStage) -> None:
    for block in stage:
        block.mixer.large.sharing_grid = list(block.mixer.large.sharing_grid)


def _wrap(stage: PeLKStage) -> None:
    stage[1] = _Wrapper(stage[1])


def _tie(stage: PeLKStage) -> None:
    stage[1].mixer.large.weight = stage[0].mixer.large.weight


# What is done to a stage of three blocks, and how many of them are then computed at once.
CHANGES: dict[str, tuple[Callable[[PeLKStage], object], int]] = {
    'as built': (lambda stage: None, 3),
    'grids as lists': (_give_grids_as_lists, 3),
    'one kernel for two blocks': (_tie, 3),
    'a frozen kernel': (lambda stage: stage[1].mixer.large.requires_grad_(False), 3),
    'a hook on a gradient': (lambda stage: stage[1].mixer.large.weight.register_hook(lambda grad: 3 * grad), 3),
    'checkpointing': (lambda stage: [setattr(block, 'with_cp', True) for block in stage], 3),
    'a hook on a kernel': (lambda stage: stage[1].mixer.large.register_forward_hook(lambda *_: None), 2),
    'a hook on a small kernel': (lambda stage: stage[1].mixer.small.register_forward_hook(lambda *_: None), 2),
    'a hook on a mixer': (lambda stage: stage[1].mixer.register_forward_pre_hook(lambda *_: None), 2),
    'a hook on a block': (lambda stage: stage[1].register_forward_pre_hook(lambda *_: None), 2),
    'a parametrisation': (
        lambda stage: parametrize.register_parametrization(stage[1].mixer.large, 'weight', _Doubled()),
        2,
    ),
    'weight norm': (lambda stage: weight_norm(stage[1].mixer.large), 2),
    'a wrapper': (_wrap, 2),
    'another class': (lambda stage: setattr(stage[1], '__class__', _Block), 2),
    'another class of a mixer': (lambda stage: setattr(stage[1].mixer, '__class__', _Mixer), 2),
    'another grid': (_with_one_kernel_on_another_grid, 2),
    'a compiled block': (lambda stage: setattr(stage[1], '_compiled_call_impl', stage[1]._call_impl), 2),
    'a deployed block': (lambda stage: stage[1].mixer.switch_to_deploy(stage.positional_embedding), 2),
    'one block alone': (lambda stage: [block.register_forward_hook(lambda *_: None) for block in list(stage)[1:]], 0),
}


def _stage(mode: str = 'in_bounds') -> PeLKStage:
    torch.manual_seed(0)
    spec = MixerSpec(4, 13, sharing_grid=(2, 2, 1, 1, 1, 1, 1, 2, 2), positional_embedding=mode)
    settings = dict(mixed_channels=4, drop_path_rate=0.3, layer_scale_init_value=1.0)
    stage = PeLKStage([PeLKBlock(11, PeripheralMixer(spec), **settings) for _ in range(3)], (4, 13, 13), mode)
    nn.init.normal_(stage.positional_embedding)
    return stage.double().train()


def _results(stage: PeLKStage, x: Tensor) -> list[Tensor | None]:
    torch.manual_seed(0)  # of the paths that are dropped
    stage.zero_grad()
    x = x.clone().requires_grad_()
    out = stage(x)
    (out.square() * torch.linspace(0.5, 1.5, out.shape[-1], dtype=out.dtype)).sum().backward()
    return [out, x.grad, *(parameter.grad for parameter in stage.parameters())]


@pytest.mark.parametrize('change', CHANGES)
def test_as_each_block_by_itself(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, the output and all gradients, of a map with odd sides that is smaller than the kernel."""
    at_once: list[int] = []

    def stack(x: Tensor, weights: list[Tensor], *others: object) -> list[BranchTensors]:
        at_once.append(len(weights))
        return stacked_branches(x, weights, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(pelk, 'stacked_branches', stack)
    stage, x = copy.deepcopy(_stage()), torch.randn(2, 11, 9, 7, dtype=torch.float64)
    alter, count = CHANGES[change]
    alter(stage)
    got = _results(stage, x)
    assert sum(at_once) == count
    monkeypatch.setattr(PeripheralMixer, 'fused_kernels', lambda self, x: None)
    want = _results(stage, x)
    assert sum(at_once) == count
    # Sums of some hundreds of numbers of size one.
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('mode', ['in_bounds', 'constant'])
def test_a_slice_keeps_the_embedding_and_its_mode(mode: str) -> None:
    stage, x = _stage(mode).eval(), torch.randn(2, 11, 9, 7, dtype=torch.float64)
    part = stage[:1]
    assert not part.training
    assert stage.train()[1:].training
    stage.eval()
    torch.testing.assert_close(part(x), stage[0](x, stage.positional_embedding))
    stage.load_state_dict(part.state_dict(), strict=False)  # which refuses another mode
    other, state = _stage('constant' if mode == 'in_bounds' else 'in_bounds'), stage.state_dict()
    with pytest.raises(ValueError, match='embedding_mode'):
        other.load_state_dict(state)
    del state['positional_embedding']
    other.load_state_dict(state, strict=False)  # of which nothing depends on the mode


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('mode', ['in_bounds', 'constant'])
@torch.no_grad()
def test_a_symbolic_trace_serves_maps_of_any_size(mode: str, deploy: bool) -> None:
    arch = dict(depths=(1, 2), channels=(8, 16), kernel_sizes=(13, 7), positional_embedding=mode)
    network = PeLK(arch, out_indices=(0, 1), gap_before_final_norm=False, layer_scale_init_value=1.0).eval()
    if deploy:
        network.switch_to_deploy()
    traced = torch.fx.symbolic_trace(network)
    for size in ((64, 48), (3, 5), (33, 70)):
        image = torch.randn(2, 3, *size)
        torch.testing.assert_close(traced(image), network(image))


@pytest.mark.parametrize('planes', [False, True], ids=['', 'planes'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_under_autocast(dtype: torch.dtype, planes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are cast as a convolution's, float64 stays; the term is summed in at least float32 and then cast."""
    monkeypatch.setattr(branches, '_in_planes', lambda x: planes)  # as on a GPU
    stage, x = _stage().to(dtype), torch.randn(2, 11, 9, 7, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16):
        got = _results(stage, x)
        monkeypatch.setattr(PeripheralMixer, 'fused_kernels', lambda self, x: None)
        want = _results(stage, x)
    # bfloat16 has eight bits; the sums that differ are those of its gradients.
    allowed = 2**-6 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(got, want, rtol=allowed, atol=allowed)
