"""The convolution that takes the place of a smaller depthwise one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpelk.errors import UserError

from ..peripheral_conv import PeripheralConv2d
from ..weights.facts import refuse_another


class EnlargedConv2d(PeripheralConv2d):
    """A peripheral convolution in the place of a smaller depthwise one.

    It loads the smaller dense kernel, too, such as that of the original network's public weights: the kernel becomes
    the centre, and all other regions zero. Initialisers that look for an ``nn.Conv2d``, by ``Module.apply``, initialise
    the dense kernel. It has the attributes of ``nn.Conv2d`` that other code reads.

    Args:
        channels: Number of channels ``C``.
        kernel_size: Side ``K`` of the large kernel, odd.
        dense_size: Rows and columns of the kernel that it holds at first, both odd.
        center_size: Side of the fine-grained centre, odd; by default the larger of those.
        bias: Whether to add a parameter per channel.
        backend: What :func:`mmpelk.ops.peripheral_conv2d` takes; ``None`` chooses.

    Raises:
        ValueError: If the kernel is no larger than the centre, or the centre smaller than the dense kernel.
    """

    #: Whether to say so when it loads a dense kernel; :func:`enlarge` asks the first of a network to.
    announces = False

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        dense_size: tuple[int, int],
        center_size: int | None = None,
        bias: bool = False,
        backend: str | None = None,
    ) -> None:
        center = center_size or max(dense_size)
        if not max(dense_size) <= center < kernel_size:
            raise UserError(
                f'a kernel of {dense_size[0]} x {dense_size[1]} fits a centre of at least {max(dense_size)} and below '
                f'kernel_size {kernel_size}, got center_size {center}'
            )
        self.dense_size = dense_size  # before the base class calls `reset_parameters`
        super().__init__(channels, kernel_size, center_size=center, bias=bias, backend=backend)
        self.in_channels = self.out_channels = self.groups = channels
        self.stride = self.dilation = (1, 1)
        self.padding_mode = 'zeros'
        self.transposed = False
        self.center_size = center

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros on either side."""
        return self.kernel_size // 2, self.kernel_size // 2

    @contextmanager
    def as_dense(self) -> Iterator[nn.Conv2d]:
        """The original's ``nn.Conv2d``, with the same parameters; the kernel has its original shape meanwhile.

        What is written into the kernel becomes the centre, and all other regions zero. If nothing is, nothing changes.
        """
        whole = self.weight.data
        rings, (rows, columns) = whole.shape[-1], self.dense_size
        top, left = (rings - rows) // 2, (rings - columns) // 2
        centre = whole[:, :, top : top + rows, left : left + columns].clone()
        conv = conv2d(len(whole), self.dense_size, self.weight, self.bias).train(self.training)
        self.weight.data = centre.clone()
        try:
            yield conv
        finally:
            kernel, self.weight.data = self.weight.data, whole
        if not whole.is_meta and not torch.equal(kernel, centre):
            whole.copy_(self.embed(kernel))

    def reset_parameters(self) -> None:
        """As ``nn.Conv2d`` initialises the dense kernel."""
        nn.init.zeros_(self.weight)
        with self.as_dense() as conv:
            conv.reset_parameters()

    def init_weights(self) -> None:
        """Keep the weights: initialisers of the toolboxes would fill the periphery, too."""

    def apply(self, fn: Callable[[nn.Module], None]) -> 'EnlargedConv2d':
        """As ``nn.Module.apply``; ``fn`` gets :meth:`as_dense` first, so that it initialises the dense kernel."""
        if has_plain_weight(self):
            with self.as_dense() as conv:
                fn(conv)
        return super().apply(fn)

    def embed(self, kernel: Tensor) -> Tensor:
        """The ``(C, 1, k', k')`` weight that holds a dense kernel ``(C, 1, *dense_size)`` in its centre."""
        rings = len(self.sharing_grid)
        rows, columns = ((rings - size) // 2 for size in self.dense_size)
        return F.pad(kernel, (columns, columns, rows, rows))

    def refuse_other_kernel(self, kernel: Tensor, metadata: Mapping[str, Any], prefix: str) -> None:
        """Refuse a kernel that, by its state dict, is neither the dense one nor one of the same rings.

        Args:
            kernel: What the state dict has as the weight.
            metadata: What torch keeps for the module in the state dict; if it names no kernel, nothing is refused.
            prefix: What stands before the module's own names in it.

        Raises:
            UserError: It names both kernels and the remedy.
        """
        side, grid = kernel.shape[-1], metadata.get('sharing_grid')
        if grid is None and 'version' in metadata and side == len(self.sharing_grid):
            grid = (1,) * side  # torch writes the version for every module, and peripheral ones write their rings
        of_the_original = kernel.shape[2:] == self.dense_size and set(grid or (1,)) == {1}
        if isinstance(grid, list | tuple) and len(grid) == side and not of_the_original:
            refuse_another({'sharing_grid': grid}, prefix, 'sharing_grid', self.sharing_grid)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        kernel = state_dict.get(f'{prefix}weight')
        if kernel is not None and kernel.dim() == 4:
            self.refuse_other_kernel(kernel, local_metadata, prefix)
        if kernel is not None and kernel.shape[2:] == self.dense_size:
            state_dict[f'{prefix}weight'] = self.embed(kernel)
            if self.announces:
                before, after = ' x '.join(map(str, self.dense_size)), f'{self.kernel_size} x {self.kernel_size}'
                print_log(
                    f'{prefix}weight of {before} is the centre of {after} now; so are the others that are loaded from '
                    'the network before it was enlarged',
                    'current',
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def has_plain_weight(module: nn.Module) -> bool:
    """Whether nothing computes, prunes, shards or quantises the weight or the bias."""
    plain = {name for name, value in module.named_parameters(recurse=False) if type(value) is nn.Parameter}
    return 'weight' in plain and (module.bias is None or 'bias' in plain)


def conv2d(channels: int, size: tuple[int, int], weight: nn.Parameter, bias: Tensor | None) -> nn.Conv2d:
    padding = size[0] // 2, size[1] // 2
    with torch.device('meta'):
        conv = nn.Conv2d(channels, channels, size, padding=padding, groups=channels, bias=bias is not None)
    conv.weight = weight
    conv.register_parameter('bias', cast('nn.Parameter | None', bias))
    return conv
