"""The paper's token mixer: a peripheral kernel beside a small one, merged into one kernel for deployment."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from mmpelk.ops.positional import positional_constant, positional_map, summed_area_table

from .peripheral_conv import PeripheralConv2d

__all__ = ['EmbeddingMode', 'PeripheralMixer', 'check_small_kernel_size', 'drop_masks', 'norm_as_affine']

EmbeddingMode = Literal['in_bounds', 'constant']


class PeripheralMixer(nn.Module):
    """``[peripheral K x K (+ embedding) -> norm] + [dense small x small -> norm]``, depthwise.

    The parallel small kernel and the norm of each branch follow RepLKNet and SLaK, as Section 3 of the PeLK paper says.
    :meth:`switch_to_deploy` folds the norms and the small kernel into one peripheral kernel with a bias; the
    embedding's term stays as a summed-area table.

    Args:
        channels: Number of channels.
        kernel_size: Side ``K`` of the large kernel, odd.
        sharing_grid: Explicit grid, or ``None`` for Eq. 2.
        center_size: Side of the fine-grained centre.
        small_kernel_size: Side of the parallel dense kernel, odd; 0 leaves the branch out.
        embedding_mode: How Eq. 3 treats positions outside the map; ``None`` expects no embedding.
        norm_cfg: Norm of each branch.
        deploy: Build the merged form.
    """

    embedding_table: Tensor

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        sharing_grid: Sequence[int] | None = None,
        center_size: int = 5,
        small_kernel_size: int = 5,
        embedding_mode: EmbeddingMode | None = None,
        norm_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        check_small_kernel_size(small_kernel_size)
        self.small_kernel_size = min(small_kernel_size, kernel_size)
        self.embedding_mode = embedding_mode
        self.deployed = deploy
        self.large = PeripheralConv2d(channels, kernel_size, sharing_grid, center_size, bias=deploy)
        if deploy:
            if embedding_mode == 'in_bounds':
                self.register_buffer('embedding_table', torch.zeros(channels, kernel_size + 1, kernel_size + 1))
            return
        norm_cfg = norm_cfg or dict(type='BN')
        self.large_norm = build_norm_layer(norm_cfg, channels)[1]
        if self.small_kernel_size:
            size = self.small_kernel_size
            self.small = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
            self.small_norm = build_norm_layer(norm_cfg, channels)[1]

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Mix ``(N, C, H, W)``; ``embedding`` is the stage's ``(C, K, K)``, ignored once deployed."""
        if self.deployed:
            return self.large(x, self._deployed_map(x))
        out = self.large_norm(self.large(x, self._embedding_map(x, embedding)))
        if self.small_kernel_size:
            out = out + self.small_norm(self.small(x))
        return out

    def _embedding_map(self, x: Tensor, embedding: Tensor | None) -> Tensor | None:
        if self.embedding_mode is None or embedding is None:
            return None
        weight, grid = self.large.weight, self.large.sharing_grid
        if self.embedding_mode == 'constant':
            return positional_constant(weight, grid, embedding)[:, None, None].expand(x.shape[1:])
        return positional_map(summed_area_table(weight, grid, embedding), x.shape[-2:])

    def _deployed_map(self, x: Tensor) -> Tensor | None:
        return positional_map(self.embedding_table, x.shape[-2:]) if self.embedding_mode == 'in_bounds' else None

    @torch.no_grad()
    def switch_to_deploy(self, embedding: Tensor | None = None) -> None:
        """Merge the branches in place: the same function in eval mode, with one kernel on the same grid.

        Args:
            embedding: The stage's ``(C, K, K)``, or ``None``.

        Raises:
            ValueError: If the small kernel is larger than the grid's fine-grained centre, or a norm has no running
                statistics to fold.
        """
        if self.deployed:
            return
        grid = self.large.sharing_grid
        margin = _centre_margin(grid, self.small_kernel_size)
        scale, bias = norm_as_affine(self.large_norm)
        weight = self.large.weight.double() * scale
        if self.embedding_mode is not None and embedding is not None:
            if self.embedding_mode == 'constant':
                bias = bias + positional_constant(weight, grid, embedding.double())
            else:
                table = summed_area_table(weight, grid, embedding.double())
                self.register_buffer('embedding_table', table.to(self.large.weight.dtype))
        if self.small_kernel_size:
            small_scale, small_bias = norm_as_affine(self.small_norm)
            weight = weight + nn.functional.pad(self.small.weight.double() * small_scale, [margin] * 4)
            bias = bias + small_bias
            del self.small, self.small_norm
        del self.large_norm
        drop_masks(self.large)
        self.large.weight.copy_(weight)
        self.large.bias = nn.Parameter(bias.to(self.large.weight), requires_grad=self.large.weight.requires_grad)
        self.deployed = True


def _centre_margin(grid: Sequence[int], small_kernel_size: int) -> int:
    """Rings between the rim of a peripheral kernel and a small kernel laid on its centre."""
    margin = (len(grid) - small_kernel_size) // 2
    if margin < 0 or any(width != 1 for width in grid[margin : len(grid) - margin]):
        raise ValueError(
            f'a small kernel of {small_kernel_size} does not fit the fine-grained centre of the sharing grid '
            f'{list(grid)}; train with small_kernel_size of at most the centre, or keep the model as trained'
        )
    return margin


def check_small_kernel_size(size: int) -> None:
    """Refuse a small kernel that has no centre.

    Raises:
        ValueError: If ``size`` is neither odd nor 0.
    """
    if size and (size < 0 or size % 2 == 0):
        raise ValueError(f'small_kernel_size must be odd, or 0 for no small kernel, got {size}')


def drop_masks(conv: nn.Module) -> None:
    """Take the sparsity masks off a kernel that others are merged into: their zeros are not its own.

    Args:
        conv: The module that holds the kernel; changed in place.
    """
    for name, _ in list(conv.named_buffers(recurse=False)):
        if name.endswith('_mask'):
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
    state = {name: value.double() for name, value in norm.state_dict().items()}
    if 'running_var' not in state:
        raise ValueError(f'{type(norm).__name__} has no running statistics to fold; deploy needs BN or SyncBN branches')
    mean, ones = state['running_mean'], torch.ones_like(state['running_var'])
    scale = state.get('weight', ones) / torch.sqrt(state['running_var'] + cast(float, norm.eps))
    return scale.view(-1, 1, 1, 1), state.get('bias', 0 * ones) - mean * scale
