"""The paper's mixer: a peripheral kernel beside a small one, merged into one kernel for deployment."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmpelk.ops.branches import peripheral_branches
from mmpelk.ops.positional import positional_constant, positional_map, summed_area_table
from mmpelk.ops.positional_op import central_embedding, positional_term
from mmpelk.ops.sharing_grid import resolve_sharing_grid

from ..peripheral_conv import PeripheralConv2d
from .base import Mixer, MixerSpec, build_norm, drop_masks, norm_as_affine
from .constants import DeployedConstants

__all__ = ['PeripheralMixer']

# torch 2.1 has it under a private name alone.
_is_compiling = torch.compiler.is_compiling if hasattr(torch.compiler, 'is_compiling') else torch._utils.is_compiling


class PeripheralMixer(Mixer):
    """``[peripheral K x K (+ embedding) -> norm] + [dense small x small -> norm]``, depthwise.

    The parallel small kernel and the norm of each branch follow RepLKNet and SLaK, as Section 3 of the PeLK paper says.
    :meth:`switch_to_deploy` folds the norms and the small kernel into one peripheral kernel with a bias; the
    embedding's term stays as a summed-area table.
    """

    name = 'peripheral'
    has_sharing_grid = has_embedding = True
    embedding_table: Tensor

    def __init__(self, spec: MixerSpec) -> None:
        super().__init__(spec)
        channels, size = spec.channels, spec.kernel_size
        self.embedding_mode = spec.positional_embedding
        self._constants = DeployedConstants()
        self.large = PeripheralConv2d(channels, size, self.grid_of(spec), bias=spec.deploy)
        if spec.deploy:
            if self.embedding_mode == 'in_bounds':
                self.register_buffer('embedding_table', torch.zeros(channels, size + 1, size + 1))
            return
        self.large_norm = build_norm(spec)
        self.build_small_branch(spec)

    @classmethod
    def grid_of(cls, spec: MixerSpec) -> tuple[int, ...]:
        """Ring widths of the large kernel, whose centre is at most the kernel."""
        return resolve_sharing_grid(spec.kernel_size, spec.sharing_grid, min(spec.center_size, spec.kernel_size))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        if self.deployed:
            if self.passes_rest:
                return self._constants.mix(self, x)
            return self.large(x, self._deployed_map(x))
        if self._branches_at_once:
            large, small = peripheral_branches(
                x,
                self.large.weight,
                self.large.sharing_grid,
                self.small.weight,
                embedding if self.embedding_mode else None,
                backend=self.large.backend,
            )
            return self.large_norm(large) + self.small_norm(small)
        out = self.large_norm(self.large(x, self._embedding_map(x, embedding)))
        if self.small_kernel_size:
            out = out + self.small_norm(self.small(x))
        return out

    def shared_embedding(self, embedding: Tensor, x: Tensor) -> Tensor:
        """What a map of this size reads of it, in the order in which the operators read it."""
        if self.embedding_mode != 'in_bounds' or self.deployed or _is_traced():  # traced graphs serve maps of any size
            return embedding
        return central_embedding(embedding, x.shape[-2:])

    @property
    def _branches_at_once(self) -> bool:
        """In training both kernels are one operator, unless somebody watches or replaced them. Traced graphs keep the
        plain form."""
        if not self.small_kernel_size or self.embedding_mode == 'constant' or _is_traced():
            return False
        kernels = [self.large, self.small]
        # Private: torch has no public way to ask whether a module has hooks, which calling it alone runs.
        watched = any(kernel._forward_hooks or kernel._forward_pre_hooks for kernel in kernels)
        return torch.is_grad_enabled() and not watched and list(map(type, kernels)) == [PeripheralConv2d, nn.Conv2d]

    def _embedding_map(self, x: Tensor, embedding: Tensor | None) -> Tensor | None:
        if self.embedding_mode is None or embedding is None:
            return None
        weight, grid = self.large.weight, self.large.sharing_grid
        if self.embedding_mode == 'constant':
            return positional_constant(weight, grid, embedding)[:, None, None].expand(x.shape[1:])
        return positional_term(weight, embedding, grid, *x.shape[-2:])

    @property
    def passes_rest(self) -> bool:
        """Deployed, for inference: the operator writes the whole map. Traced graphs keep the plain form."""
        # An exporter may have put another module in place of the convolution.
        is_ours = isinstance(self.large, PeripheralConv2d)
        return self.deployed and is_ours and not torch.is_grad_enabled() and not _is_traced()

    def deployed_bias(self, x: Tensor) -> Tensor | None:
        """What is added to the convolution of maps of the size of ``x``: a number or a map per channel."""
        table = self._deployed_map(x)
        if table is None or self.large.bias is None:
            return self.large.bias if table is None else table.to(x.dtype)
        total = table.to(x.dtype) + self.large.bias.to(x.dtype)[:, None, None]
        return total.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last, as the network's maps

    def _apply(self, *args: Any, **kwargs: Any) -> 'PeripheralMixer':
        """Moves and casts exchange the memory of parameters without a count."""
        self._constants.clear()
        return super()._apply(*args, **kwargs)

    def _deployed_map(self, x: Tensor) -> Tensor | None:
        return positional_map(self.embedding_table, x.shape[-2:]) if self.embedding_mode == 'in_bounds' else None

    @torch.no_grad()
    def switch_to_deploy(self, embedding: Tensor | None = None) -> None:
        """As :meth:`Mixer.switch_to_deploy`: one kernel on the same grid.

        Raises:
            ValueError: If the small kernel is larger than the grid's fine-grained centre, too.
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
        small_weight, small_bias = self.take_small_branch([margin] * 4)
        del self.large_norm
        drop_masks(self.large)
        self.large.weight.copy_(weight + small_weight)
        bias = (bias + small_bias).to(self.large.weight)
        self.large.bias = nn.Parameter(bias, requires_grad=self.large.weight.requires_grad)
        self.deployed = True


def _is_traced() -> bool:
    """Whether a graph is being made of the calls."""
    return _is_compiling() or torch.jit.is_tracing()


def _centre_margin(grid: Sequence[int], small_kernel_size: int) -> int:
    """Rings between the rim of a peripheral kernel and a small kernel laid on its centre."""
    margin = (len(grid) - small_kernel_size) // 2
    if margin < 0 or any(width != 1 for width in grid[margin : len(grid) - margin]):
        raise ValueError(
            f'a small kernel of {small_kernel_size} does not fit the fine-grained centre of the sharing grid '
            f'{list(grid)}; train with small_kernel_size of at most the centre, or keep the model as trained'
        )
    return margin
