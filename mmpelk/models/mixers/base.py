"""What every mixer is: built from one description, merged for deployment by one method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from ..peripheral_conv import PeripheralConv2d
from ..weights.checkpoint import MASK_SUFFIX

__all__ = ['EmbeddingMode', 'Mixer', 'MixerSpec', 'depthwise_conv', 'drop_masks', 'norm_as_affine']

EmbeddingMode = Literal['in_bounds', 'constant']


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

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Mix ``(N, C, H, W)``.

        Args:
            x: The map.
            embedding: The stage's ``(C, K, K)``, or what :meth:`shared_embedding` made of it, for mixers that have one;
                not read once deployed.
        """
        raise NotImplementedError

    def shared_embedding(self, embedding: Tensor, x: Tensor) -> Tensor:
        """What all mixers of a stage make of its embedding before they mix maps of the size of ``x``."""
        return embedding

    @property
    def passes_rest(self) -> bool:
        """Whether ``forward`` takes maps of more channels than it mixes, and passes the others unchanged."""
        return False

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
        return max(rows for rows, _ in sizes), max(columns for _, columns in sizes)

    def build_small_branch(self, spec: MixerSpec) -> None:
        """Add ``small`` and ``small_norm``, if there is to be a small kernel."""
        if size := self.small_kernel_size:
            self.small = depthwise_conv(spec.channels, size, size, bias=False)
            self.small_norm = build_norm(spec)

    @torch.no_grad()
    def take_small_branch(self, padding: Sequence[int]) -> tuple[Tensor, Tensor] | tuple[int, int]:
        """Remove the small branch and return its folded kernel, zero-padded, and bias, in float64; zeros without one.

        Args:
            padding: Columns to the left and right and rows above and below, as ``F.pad`` takes them.
        """
        if not self.small_kernel_size:
            return 0, 0
        scale, bias = norm_as_affine(self.small_norm)
        weight = nn.functional.pad(self.small.weight.double() * scale, list(padding))
        del self.small, self.small_norm
        return weight, bias


def build_norm(spec: MixerSpec) -> nn.Module:
    """Norm of a branch."""
    return build_norm_layer(spec.norm_cfg or dict(type='BN'), spec.channels)[1]


def depthwise_conv(channels: int, height: int, width: int, bias: bool) -> nn.Conv2d:
    """Depthwise convolution that keeps the size of the map."""
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels, bias=bias)


def drop_masks(conv: nn.Module) -> None:
    """Remove the sparsity masks of a kernel before others are merged into it; the merged kernel is not sparse."""
    for name, _ in list(conv.named_buffers(recurse=False)):
        if name.endswith(MASK_SUFFIX):
            delattr(conv, name)


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
    return affine_of(state, cast(float, norm.eps))


def affine_of(state: dict[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """:func:`norm_as_affine` of the state dict of a batch norm."""
    state = {name: value.double() for name, value in state.items()}
    mean, ones = state['running_mean'], torch.ones_like(state['running_var'])
    scale = state.get('weight', ones) / torch.sqrt(state['running_var'] + eps)
    return scale.view(-1, 1, 1, 1), state.get('bias', 0 * ones) - mean * scale.flatten()
