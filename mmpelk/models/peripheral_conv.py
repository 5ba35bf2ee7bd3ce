"""The peripheral convolution as a module (Section 4.1 of the PeLK paper), with its positional term (Section 4.2)."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.fx
from torch import Tensor, nn

from mmpelk.ops import peripheral_conv2d
from mmpelk.ops.positional import positional_constant
from mmpelk.ops.positional_op import positional_term
from mmpelk.ops.sharing_grid import resolve_sharing_grid

from .flop_handles import register_flop_handles
from .weights.facts import refuse_another, write_fact

EmbeddingMode = Literal['in_bounds', 'constant']

# torch 2.1 has it under a private name alone.
_is_compiling = torch.compiler.is_compiling if hasattr(torch.compiler, 'is_compiling') else torch._utils.is_compiling


def is_traced() -> bool:
    """Whether a graph is being made of the calls."""
    return _is_compiling() or torch.jit.is_tracing()


class PeripheralConv2d(nn.Module):
    """Depthwise ``K x K`` convolution with ``k' x k'`` parameters, stride 1, zero padding that keeps the size.

    Args:
        channels: Number of channels ``C``.
        kernel_size: Side ``K`` of the dense kernel, odd.
        sharing_grid: An explicit grid, full or from the rim to the centre; ``None`` follows Eq. 2.
        center_size: Side of the fine-grained centre that Eq. 2 keeps.
        bias: Whether to add a parameter per channel.
        backend: What :func:`mmpelk.ops.peripheral_conv2d` takes; ``None`` chooses.

    Raises:
        ValueError: If the kernel is even, the centre larger than it, or the grid does not sum to it.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        sharing_grid: Sequence[int] | None = None,
        center_size: int = 5,
        bias: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        register_flop_handles()
        self.sharing_grid = resolve_sharing_grid(kernel_size, sharing_grid, center_size)
        self.kernel_size = kernel_size
        self.backend = backend
        rings = len(self.sharing_grid)
        self.weight = nn.Parameter(torch.empty(channels, 1, rings, rings))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of standard deviation 0.02, as ConvNeXt initialises its convolutions."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,
        bias_map: Tensor | None = None,
        embedding: Tensor | None = None,
        embedding_mode: EmbeddingMode = 'in_bounds',
    ) -> Tensor:
        """Convolve ``(N, C, H, W)``.

        Args:
            x: The map.
            bias_map: ``(C, H, W)``, added to every image.
            embedding: ``h`` of Eq. 3, ``(C, K, K)``, or the central part that the map reads: see
                :func:`mmpelk.ops.positional_op.central_embedding`.
            embedding_mode: How Eq. 3 treats positions outside the map.
        """
        if is_traced() and torch.onnx.is_in_onnx_export():  # which fails, but with a translation of the user's
            warnings.warn(
                'ONNX has no peripheral convolution: deploy the network, backbone.switch_to_deploy(), then put '
                'standard operators in its place, mmpelk.export.make_plain(network, image), or use '
                'tools/export_onnx.py',
                stacklevel=2,
            )
        bias: Tensor | None = self.bias
        if embedding is not None:
            term = embedding_term(x, self.weight, embedding, self.sharing_grid, embedding_mode)
            bias_map = term if bias_map is None else bias_map + term
        if bias_map is not None:
            bias_map = bias_map.to(x.dtype)
            bias = bias_map if bias is None else bias_map + bias[:, None, None]
        return peripheral_conv2d(x, self.weight, self.sharing_grid, bias, backend=self.backend)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        write_fact(destination, prefix, 'sharing_grid', self.sharing_grid)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        weight, grid = state_dict.get(f'{prefix}weight'), local_metadata.get('sharing_grid')
        # As many shared parameters may be those of another size. Torch refuses other shapes; weights that do not fit
        # the grid were changed since it was written.
        changed = weight is not None and isinstance(grid, list | tuple) and (len(grid),) != weight.shape[-1:]
        if weight is not None and not changed:
            refuse_another(local_metadata, prefix, 'sharing_grid', self.sharing_grid)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        """Channels, kernel size and grid."""
        grid = ', '.join(map(str, self.sharing_grid))
        return f'{self.weight.shape[0]}, kernel_size={self.kernel_size}, sharing_grid=[{grid}]'


def embedding_term(x: Tensor, weight: Tensor, embedding: Tensor, grid: Sequence[int], mode: EmbeddingMode) -> Tensor:
    """The positional term of Eq. 3 for maps of the size of ``x``, ``(C, H, W)``."""
    if mode == 'constant':
        return positional_constant(weight, grid, embedding)[:, None, None].expand(x.shape[1:])
    return positional_term(weight, embedding, grid, *x.shape[-2:])


# Calls that symbolic tracing (torch.fx) keeps as they are, because they look at the sizes of maps.
torch.fx.wrap('peripheral_conv2d')
torch.fx.wrap('embedding_term')
