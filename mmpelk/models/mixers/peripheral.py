"""The paper's mixer: a peripheral kernel beside a small one, merged into one kernel for deployment."""

from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn

from mmpelk.ops.branches import BranchTensors, peripheral_branches
from mmpelk.ops.layout import dense
from mmpelk.ops.positional import positional_constant, positional_map, summed_area_table
from mmpelk.ops.positional_op import positional_term
from mmpelk.ops.prepared import Prepared, PreparedCache, prepare
from mmpelk.ops.sharing_grid import resolve_sharing_grid

from ..layers import build_norm
from ..peripheral_conv import PeripheralConv2d
from .base import (
    Branches,
    Mixer,
    MixerSpec,
    TrainingBranches,
    folded,
    is_hooked,
    is_plain_in_training,
    is_untouched,
    plain_norm,
)

_SHARES = 'this mixer adds the positional embedding that the blocks of its stage share'


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
        self._prepared = PreparedCache()
        self.large = PeripheralConv2d(channels, size, self.grid_of(spec), bias=spec.deploy)
        if spec.deploy:
            if self.embedding_mode == 'in_bounds':
                self.register_buffer('embedding_table', torch.zeros(channels, size + 1, size + 1))
            return
        self.large_norm = build_norm(spec.norm_cfg, spec.channels)
        self.build_small_branch(spec)

    @classmethod
    def grid_of(cls, spec: MixerSpec) -> tuple[int, ...]:
        """Ring widths of the large kernel, whose centre is at most the kernel."""
        return resolve_sharing_grid(spec.kernel_size, spec.sharing_grid, min(spec.center_size, spec.kernel_size))

    def forward(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> Tensor:
        if self.deployed:
            return self._mix_prepared(x) if self.passes_rest(x) else self.large(x, self._deployed_map(x))
        if self.embedding_mode is not None and embedding is None:
            raise ValueError(f'{_SHARES}: call the stage, or each block as block(x, stage.positional_embedding)')
        if isinstance(embedding, BranchTensors) or self._is_fused(x):
            weight, small, bias = self._tensors(x, embedding)
            outputs = peripheral_branches(x, weight, self.large.sharing_grid, small, bias, backend=self.large.backend)
            return self.large_norm(outputs[0]) + self.small_norm(outputs[1])
        out = self.large_norm(self.large(x, embedding=embedding, embedding_mode=self.embedding_mode))
        if self.small_kernel_size:
            out = out + self.small_norm(self.small(x))
        return out

    def _is_fused(self, x: Tensor) -> bool:
        """Whether both kernels run as one operator, past their modules."""
        if not self.small_kernel_size or self.embedding_mode == 'constant' or not torch.is_grad_enabled():
            return False
        large, small = self.large, self.small
        return type(x) is Tensor and is_untouched(large, small) and large.bias is small.bias is None

    def _tensors(self, x: Tensor, embedding: Tensor | BranchTensors | None) -> BranchTensors:
        """What one operator for both kernels takes."""
        if isinstance(embedding, BranchTensors):
            return embedding
        large, size = self.large, x.shape[-2:]
        term = None if embedding is None else positional_term(large.weight, embedding, large.sharing_grid, *size)
        return BranchTensors(large.weight, self.small.weight, term)

    def fused_kernels(self, x: Tensor) -> tuple[PeripheralConv2d, nn.Conv2d] | None:
        """As :meth:`Mixer.fused_kernels`."""
        if type(self).forward is not PeripheralMixer.forward or self.deployed or self.embedding_mode != 'in_bounds':
            return None
        return None if is_hooked(self) or not self._is_fused(x) else (self.large, self.small)

    def passes_rest(self, x: Tensor) -> bool:
        """Deployed, for inference: one operator writes the whole map."""
        if not self.deployed or torch.is_grad_enabled() or type(x) is not Tensor:
            return False
        return not is_hooked(self) and is_untouched(self.large)

    def branches(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> Branches | None:
        """As :meth:`Mixer.branches`."""
        if type(self).forward is not PeripheralMixer.forward or is_hooked(self):
            return None
        if self.deployed:
            return Branches(self._mix_prepared(self._mixed(x)), None, []) if self.passes_rest(x) else None
        if (self.embedding_mode is not None and embedding is None) or isinstance(embedding, BranchTensors):
            return None
        kernels: list[nn.Module] = [self.large]
        norms: list[nn.Module] = [self.large_norm]
        if self.small_kernel_size:
            kernels, norms = [*kernels, self.small], [*norms, self.small_norm]
        plain = [norm for norm in map(plain_norm, norms) if norm is not None]
        if len(plain) < len(norms) or type(x) is not Tensor or not is_untouched(*kernels):
            return None
        large = self.large(self._mixed(x), embedding=embedding, embedding_mode=self.embedding_mode)
        return Branches(large, dense(self.small(self._mixed(x)), like=large) if self.small_kernel_size else None, plain)

    def training_branches(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> TrainingBranches | None:
        """As :meth:`Mixer.training_branches`."""
        is_own = type(self).forward is PeripheralMixer.forward and not is_hooked(self)
        if not is_own or self.deployed or (self.embedding_mode is not None and embedding is None):
            return None
        if not self._is_fused(x) or self.large_norm is self.small_norm:
            return None
        norms = [norm for norm in (self.large_norm, self.small_norm) if is_plain_in_training(norm)]
        if len(norms) < 2:
            return None
        return TrainingBranches(self._tensors(x, embedding), self.large.sharing_grid, self.large.backend, norms)

    def _mixed(self, x: Tensor) -> Tensor:
        return x[:, : len(self.large.weight)]

    def freeze(self, mode: bool = True) -> None:
        """As :func:`mmpelk.freeze`, of this mixer."""
        self._prepared.freeze(mode)

    def _mix_prepared(self, x: Tensor) -> Tensor:
        large = self.large
        tensors = [large.weight, large.bias, self.embedding_table if self.embedding_mode == 'in_bounds' else None]

        def make() -> Prepared:
            return prepare(x, large.weight, large.sharing_grid, self._deployed_bias(x), large.backend)

        return self._prepared.get(x, tensors, large.backend, make, large.sharing_grid)(x)

    def _deployed_bias(self, x: Tensor) -> Tensor | None:
        """What is added to the convolution of maps of the size of ``x``: a number or a map per channel."""
        table = self._deployed_map(x)
        if table is None or self.large.bias is None:
            return self.large.bias if table is None else table.to(x.dtype)
        total = table.to(x.dtype) + self.large.bias.to(x.dtype)[:, None, None]
        return total.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last, as the network's maps

    def _deployed_map(self, x: Tensor) -> Tensor | None:
        return map_of_table(x, self.embedding_table) if self.embedding_mode == 'in_bounds' else None

    @torch.no_grad()
    def switch_to_deploy(self, embedding: Tensor | None = None) -> None:
        """As :meth:`Mixer.switch_to_deploy`: one kernel on the same grid.

        Raises:
            ValueError: If the embedding is missing, or the small kernel larger than the fine-grained centre, too.
        """
        if self.deployed:
            return
        if self.embedding_mode is not None and embedding is None:
            raise ValueError(f'{_SHARES}: call switch_to_deploy of the stage, or of the backbone')
        grid = self.large.sharing_grid
        margin = _centre_margin(grid, self.small_kernel_size)
        self.settle()
        weight, bias = folded(self.large, self.large_norm)
        if self.embedding_mode is not None and embedding is not None:
            if self.embedding_mode == 'constant':
                bias = bias + positional_constant(weight, grid, embedding.double())
            else:
                table = summed_area_table(weight, grid, embedding.double())
                # In half precision the differences of its sums would lose digits.
                dtype = torch.promote_types(self.large.weight.dtype, torch.float32)
                self.register_buffer('embedding_table', table.to(dtype))
        small_weight, small_bias = self.take_small_branch([margin] * 4)
        del self.large_norm
        self.large = merged_like(self.large, weight + small_weight, bias + small_bias)
        self.deployed = True


def merged_like(kernel: PeripheralConv2d, weight: Tensor, bias: Tensor) -> PeripheralConv2d:
    """A kernel of its own, in the place of one that others may share."""
    with torch.device('meta'):
        merged = PeripheralConv2d(
            len(weight), kernel.kernel_size, kernel.sharing_grid, bias=True, backend=kernel.backend
        )
    for name, value in (('weight', weight), ('bias', bias)):
        setattr(merged, name, nn.Parameter(value.to(kernel.weight), kernel.weight.requires_grad))
    return merged.train(kernel.training)


def map_of_table(x: Tensor, table: Tensor) -> Tensor:
    """The positional term of maps of the size of ``x``."""
    return positional_map(table, x.shape[-2:])


torch.fx.wrap('map_of_table')  # kept as a call by symbolic tracing, because it looks at the size of the map


def _centre_margin(grid: Sequence[int], small_kernel_size: int) -> int:
    """Rings between the rim of a peripheral kernel and a small kernel laid on its centre."""
    margin = (len(grid) - small_kernel_size) // 2
    if margin < 0 or any(width != 1 for width in grid[margin : len(grid) - margin]):
        raise ValueError(
            f'a small kernel of {small_kernel_size} does not fit the fine-grained centre of the sharing grid '
            f'{list(grid)}; train with small_kernel_size of at most the centre, or keep the model as trained'
        )
    return margin
