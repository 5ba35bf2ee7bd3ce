"""What every mixer is: built from one description, merged for deployment by one method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook  # private: torch has no public way to ask
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mmpelk.ops.branches import BranchTensors
from mmpelk.ops.mixed_norm import Norm

from ..layers import build_norm
from ..peripheral_conv import EmbeddingMode, PeripheralConv2d, is_traced

_PLAIN_TENSORS = (nn.Parameter, Tensor)
_transform = torch._C._functorch.peek_interpreter_stack  # private: torch has no public way to ask
# In eval mode each is a scale and a shift per channel. Subclasses may do more, such as an activation.
_BATCH_NORMS = {nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward}
_AFFINE_NORMS = {*_BATCH_NORMS, nn.InstanceNorm2d.forward}


@dataclass(frozen=True)
class MixerSpec:
    """What a mixer is built from. A mixer ignores or refuses what it does not have.

    Attributes:
        channels: Number of channels.
        kernel_size: Side ``K`` of the large kernel, odd.
        sharing_grid: Explicit grid, full or from the rim to the centre; ``None`` follows Eq. 2.
        center_size: Side of the fine-grained centre that Eq. 2 keeps.
        small_kernel_size: Side of the parallel dense kernel, odd; 0 leaves the branch out.
        positional_embedding: How Eq. 3 treats positions outside the map; ``None`` expects no embedding.
        norm_cfg: Norm of each branch; ``None`` is ``BN``.
        deploy: Build the merged form that :meth:`Mixer.switch_to_deploy` makes.

    Raises:
        ValueError: If ``small_kernel_size`` is neither odd nor 0.
    """

    channels: int
    kernel_size: int
    sharing_grid: Sequence[int] | None = None
    center_size: int = 5
    small_kernel_size: int = 5
    positional_embedding: EmbeddingMode | None = None
    norm_cfg: dict | None = None
    deploy: bool = False

    def __post_init__(self) -> None:
        size = self.small_kernel_size
        if size and (size < 0 or size % 2 == 0):
            raise ValueError(f'small_kernel_size must be odd, or 0 for no small kernel, got {size}')


class Branches(NamedTuple):
    """Outputs of a mixer's kernels, and the batch norms in eval mode that belong to each; none of a merged kernel."""

    large: Tensor
    small: Tensor | None
    norms: list[Norm]


class TrainingBranches(NamedTuple):
    """What both kernels of a mixer take beside the map, and the batch norms in training mode that belong to them."""

    tensors: BranchTensors
    grid: Sequence[int]
    backend: str | None
    norms: list[nn.BatchNorm2d]


class Mixer(nn.Module):
    """Mixes the positions of a map, channel by channel; the base of all that ``PeLK(mixer=...)`` takes.

    A subclass builds ``large`` and its norms, and the parallel small kernel by :meth:`build_small_branch`.

    Args:
        spec: What to build.

    Raises:
        ValueError: If the mixer has no sharing grid or embedding, and the spec asks for one.
    """

    name: ClassVar[str]
    has_sharing_grid: ClassVar[bool] = False
    has_embedding: ClassVar[bool] = False

    def __init__(self, spec: MixerSpec) -> None:
        super().__init__()
        self.check(spec)
        self.small_kernel_size = min(spec.small_kernel_size, spec.kernel_size)
        self.deployed = spec.deploy

    @classmethod
    def check(cls, spec: MixerSpec) -> None:
        """Refuse what the mixer does not have."""
        if spec.sharing_grid is not None and not cls.has_sharing_grid:
            raise ValueError(
                f"mixer='{cls.name}' has no sharing grid: leave sharing_grids out, or take mixer='peripheral'"
            )
        if spec.positional_embedding is not None and not cls.has_embedding:
            raise ValueError(
                f"mixer='{cls.name}' has no positional embedding: set positional_embedding=None, or take "
                "mixer='peripheral' or 'dense'"
            )

    def forward(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> Tensor:
        """Mix ``(N, C, H, W)``.

        Args:
            x: The map.
            embedding: For mixers that have one the stage's ``(C, K, K)``, or the central part that the map reads, or
                what takes the place of it and of :meth:`fused_kernels`; not read once deployed.

        Raises:
            ValueError: If the mixer has an embedding and gets none.
        """
        raise NotImplementedError

    def fused_kernels(self, x: Tensor) -> tuple[PeripheralConv2d, nn.Conv2d] | None:
        """For training: the peripheral and the small kernel, if ``forward`` takes what a stage computes of them.

        ``None`` if a hook, a wrapper or another class may change what the mixer or they do.
        """
        return None

    def passes_rest(self, x: Tensor) -> bool:
        """Whether ``forward`` takes the whole of ``x``, mixes its first channels and passes the others unchanged."""
        return False

    def branches(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> Branches | None:
        """For inference: what ``forward`` adds up, and the norms that it puts before; ``None`` to call ``forward``.

        Args:
            x: ``(N, C, H, W)``, of which the first channels are mixed.
            embedding: As ``forward`` takes it.
        """
        return None

    def training_branches(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> TrainingBranches | None:
        """In training: what ``forward`` takes for one operator that runs both kernels; ``None`` to call ``forward``.

        Args:
            x: ``(N, C, H, W)``, of which the first channels are mixed.
            embedding: As ``forward`` takes it.
        """
        return None

    def switch_to_deploy(self, embedding: Tensor | None = None) -> None:
        """Merge what can be merged, in place: the same function in eval mode. A second call changes nothing.

        Args:
            embedding: The stage's ``(C, K, K)``, or ``None``.

        Raises:
            ValueError: If the branches cannot be merged, or a norm has no running statistics to fold.
        """
        raise NotImplementedError

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Rows and columns of the input that an output position reads: those of the largest kernel along each axis."""
        kernels = [module for module in self.modules() if isinstance(module, nn.Conv2d | PeripheralConv2d)]
        sizes = [size if isinstance(size := kernel.kernel_size, tuple) else (size, size) for kernel in kernels]
        return max((rows for rows, _ in sizes), default=1), max((columns for _, columns in sizes), default=1)

    def settle(self) -> None:
        """:func:`settle` everything that is about to be merged."""
        for name, module in list(self.named_modules()):
            # Kernels and norms; what computes their parameters is theirs.
            is_leaf = name and next(module.children(), None) is None and '.parametrizations.' not in f'.{name}.'
            if is_leaf or parametrize.is_parametrized(module):
                settle(module, name)

    def build_small_branch(self, spec: MixerSpec) -> None:
        """Add ``small`` and ``small_norm``, if there is to be a small kernel."""
        if size := self.small_kernel_size:
            self.small = depthwise_conv(spec.channels, size, size, bias=False)
            self.small_norm = build_norm(spec.norm_cfg, spec.channels)

    @torch.no_grad()
    def take_small_branch(self, padding: Sequence[int]) -> tuple[Tensor, Tensor] | tuple[int, int]:
        """Remove the small branch and return its folded kernel, zero-padded, and bias, in float64; zeros without one.

        Args:
            padding: Columns to the left and right and rows above and below, as ``F.pad`` takes them.
        """
        if not self.small_kernel_size:
            return 0, 0
        weight, bias = folded(self.small, self.small_norm)
        weight = nn.functional.pad(weight, list(padding))
        del self.small, self.small_norm
        return weight, bias


def depthwise_conv(channels: int, height: int, width: int, bias: bool) -> nn.Conv2d:
    """Depthwise convolution that keeps the size of the map."""
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels, bias=bias)


def is_untouched(*kernels: nn.Module) -> bool:
    """Whether kernels are as they were built: without hooks, wrappers, replacements or parametrisations.

    Only then may a mixer read their weights instead of calling them. That is also false while a graph is made of the
    calls, of which every kernel shall be a part, and for a transform of torch.func, such as vmap, whose tensors must
    not be kept. Every forward of every block asks, so that it is written for speed.
    """
    if is_traced() or _has_any_global_hook() or _transform() is not None:
        return False
    for kernel in kernels:  # noqa: SIM110 - a generator takes as long as all that it asks
        if is_hooked(kernel) or not _is_as_built(kernel):
            return False
    return True


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, or a ``forward`` that was replaced on the instance."""
    own = module.__dict__
    return bool(own['_backward_hooks'] or own['_backward_pre_hooks']) or _computes_otherwise(own)


def _computes_otherwise(own: dict[str, Any]) -> bool:
    """Whether hooks or a replaced ``forward`` may change what a module of these attributes computes."""
    # Private, as torch has no public way to ask whether a module has hooks.
    hooks = own['_forward_hooks'] or own['_forward_pre_hooks']
    return bool(hooks) or 'forward' in own or '_compiled_call_impl' in own


def _is_as_built(kernel: nn.Module) -> bool:
    """Whether a kernel has the class, the kind of weight and the padding that it was built with."""
    own = kernel.__dict__
    # Sharded, quantised and fake tensors are of other classes.
    if type(own['_parameters'].get('weight')) not in _PLAIN_TENSORS:
        return False
    if type(kernel) is nn.Conv2d:  # whose padding people change for panoramas and tiles
        return own['padding_mode'] == 'zeros' and own['stride'] == own['dilation'] == (1, 1)
    return type(kernel) is PeripheralConv2d


def plain_norm(norm: nn.Module) -> Norm | None:
    """Tensors and epsilon of a batch norm in eval mode or a layer norm over channels; ``None`` for any other.

    Also ``None`` where hooks, parametrisations or another class decide what the norm computes.
    """
    own = norm.__dict__
    if type(norm) is nn.LayerNorm:
        tensors = (
            [own['_parameters'].get(name) for name in ('weight', 'bias')] if len(norm.normalized_shape) == 1 else []
        )
    elif type(norm).forward in _BATCH_NORMS and not norm.training:
        tensors = [own['_buffers'].get(name) for name in ('running_mean', 'running_var')]
        tensors += [own['_parameters'].get(name) for name in ('weight', 'bias')]
    else:
        return None
    if not tensors or is_hooked(norm) or any(type(tensor) not in _PLAIN_TENSORS for tensor in tensors):
        return None
    return cast(list[Tensor], tensors), cast(float, norm.eps)


def is_plain_in_training(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a norm computes in training what ``nn.BatchNorm2d`` does, with all that it can have and nothing besides.

    By its ``forward``, whatever its class: mmengine's ``revert_sync_batchnorm`` makes one of its own. So does
    ``nn.SyncBatchNorm`` where there are no other processes. Without a momentum the running statistics are averages over
    all batches, of which the processor knows the number.
    """
    own, forward = norm.__dict__, type(norm).forward
    if forward is nn.SyncBatchNorm.forward:
        if _has_other_processes(cast(nn.SyncBatchNorm, norm)):
            return False
    elif forward is not nn.BatchNorm2d.forward or isinstance(norm, nn.BatchNorm1d | nn.BatchNorm3d):
        return False  # those of other dimensions refuse images
    if not norm.training or norm.momentum is None or is_hooked(norm):
        return False
    tensors = [own['_parameters'].get(name) for name in ('weight', 'bias')]
    tensors += [own['_buffers'].get(name) for name in ('running_mean', 'running_var', 'num_batches_tracked')]
    return bool(norm.track_running_stats) and all(type(tensor) in _PLAIN_TENSORS for tensor in tensors)


def _has_other_processes(norm: nn.SyncBatchNorm) -> bool:
    """Whether the statistics of a norm are those of several processes, as its ``forward`` finds out."""
    is_alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    return not is_alone and torch.distributed.get_world_size(norm.process_group) > 1


def settle(module: nn.Module, name: str) -> None:
    """Fold what computes a kernel's or norm's parameters into them: parametrisations, weight norm, pruning.

    Args:
        module: The kernel or norm, which is about to be merged into another.
        name: What to call it in messages.

    Raises:
        ValueError: If something else decides what it computes: hooks, a ``forward`` of its own, another class.
    """
    if parametrize.is_parametrized(module):
        for tensor in list(cast(nn.ModuleDict, module.parametrizations)):
            parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
            value = getattr(module, tensor)
            if not isinstance(value, nn.Parameter):  # as torch leaves what took no gradient
                delattr(module, tensor)
                module.register_parameter(tensor, nn.Parameter(value.detach()))
    fold_pruning(module)
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
    is_kernel = isinstance(module, nn.Conv2d | PeripheralConv2d)
    if _computes_otherwise(module.__dict__) or (is_kernel and not _is_as_built(module)):
        raise ValueError(
            f'{name} ({type(module).__name__}) cannot be merged: a hook, a wrapper, another class or another padding '
            'decides what it computes. Take that off it before switch_to_deploy, or keep the model as trained'
        )


def fold_pruning(module: nn.Module) -> None:
    """Put pruned parameters in the place of those that torch's pruning computes at every call."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # as its own `is_pruned` finds them


@torch.no_grad()
def folded(kernel: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of a kernel with the norm behind it, both settled.

    The norm may be the identity that mmcv's ``fuse_conv_bn`` leaves of one.
    """
    weight, bias = cast(Tensor, kernel.weight).double(), cast('Tensor | None', kernel.bias)
    bias = weight.new_zeros(len(weight)) if bias is None else bias.double()
    if isinstance(norm, nn.Identity):
        return weight, bias
    scale, shift = norm_as_affine(norm)
    return weight * scale, shift + bias * scale.flatten()


def norm_as_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm does in eval mode.

    Args:
        norm: A norm with running statistics.

    Returns:
        Scale ``(C, 1, 1, 1)`` and bias ``(C,)``, in float64.

    Raises:
        ValueError: If the norm has no running statistics.
    """
    state = norm.state_dict()
    if 'running_var' not in state:
        raise ValueError(f'{type(norm).__name__} has no running statistics to fold; deploy needs BN or SyncBN branches')
    # torchvision's; and those of transformers' detectors, such as DetrFrozenBatchNorm2d, whose epsilon is no attribute.
    of_transformers = type(norm).__module__.startswith('transformers.')
    is_frozen = type(norm).__name__.endswith('FrozenBatchNorm2d')
    if type(norm).forward not in _AFFINE_NORMS and not is_frozen:
        raise ValueError(
            f'{type(norm).__name__} may do more than a batch norm and is not merged; deploy needs BN or SyncBN branches'
        )
    return affine_of(state, 1e-5 if is_frozen and of_transformers else cast(float, norm.eps))


def affine_of(state: dict[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """:func:`norm_as_affine` of the state dict of a batch norm."""
    state = {name: value.double() for name, value in state.items()}
    mean, ones = state['running_mean'], torch.ones_like(state['running_var'])
    scale = state.get('weight', ones) / torch.sqrt(state['running_var'] + eps)
    return scale.view(-1, 1, 1, 1), state.get('bias', 0 * ones) - mean * scale.flatten()
