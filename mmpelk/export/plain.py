"""A network of standard operators alone, which every exporter, runtime and compiler takes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.models import Mixer, PeripheralConv2d
from mmpelk.models.mixers.base import is_hooked
from mmpelk.models.pelk import PeLKBlock
from mmpelk.ops import expand_kernel

from .fourier import Spectrum, Waves, convolve, even_length, fourier_conv2d, kernel_spectrum, map_waves

LARGEST_DENSE = 13
"""Side of the kernel up to which a depthwise convolution is faster in onnxruntime than the transform."""
# onnxruntime's and OpenVINO's fast layouts hold channels in blocks of 8 or 16; a count between falls back to slow code.
_BLOCK = 16
_AXES = ('rows', 'columns')


class DenseForm(nn.Module):
    """The kernel expanded, and channels of zeros up to a multiple of 16.

    Args:
        conv: What to compute.
        bias: ``(C, H, W)`` to add, for a network of one image size.
    """

    def __init__(self, conv: PeripheralConv2d, bias: Tensor | None = None) -> None:
        super().__init__()
        self.channels, size = conv.weight.shape[0], conv.kernel_size
        self.padding = -self.channels % _BLOCK
        total = self.channels + self.padding
        self.dense = nn.Conv2d(total, total, size, padding=size // 2, groups=total, bias=conv.bias is not None)
        weight = expand_kernel(conv.weight.detach(), conv.sharing_grid)
        self.dense.weight = nn.Parameter(F.pad(weight, (0, 0, 0, 0, 0, 0, 0, self.padding)), requires_grad=False)
        if conv.bias is not None:
            self.dense.bias = nn.Parameter(F.pad(conv.bias.detach(), (0, self.padding)), requires_grad=False)
        self.register_buffer('bias_map', bias)

    def forward(self, x: Tensor, bias_map: Tensor | None = None) -> Tensor:
        out = self.dense(F.pad(x, (0, 0, 0, 0, 0, self.padding)))[:, : self.channels]
        bias = bias_map if self.bias_map is None else self.bias_map
        return out if bias is None else out + bias.to(out.dtype)


class FourierForm(nn.Module):
    """For maps of one size: the kernel's spectrum, the waves and the bias are computed once, in float64.

    Args:
        conv: What to compute.
        size: ``(H, W)`` of the map.
        bias_map: ``(C, H, W)`` that the caller adds, or ``None``.
    """

    def __init__(self, conv: PeripheralConv2d, size: Sequence[int], bias_map: Tensor | None) -> None:
        super().__init__()
        reach = min(conv.kernel_size // 2, size[0] - 1), min(conv.kernel_size // 2, size[1] - 1)
        length = even_length(size[0], reach[0]), even_length(size[1], reach[1])
        kernel = kernel_spectrum(conv.weight.detach(), conv.sharing_grid, reach, length, torch.float64)
        waves = [map_waves(*axis, torch.float64, conv.weight.device) for axis in zip(size, length, strict=True)]
        for name, value in zip(Spectrum._fields, kernel, strict=True):
            self.register_buffer(f'kernel_{name}', value.float())
        for axis, pair in zip(_AXES, waves, strict=True):
            for name, value in zip(Waves._fields, pair, strict=True):
                self.register_buffer(f'{axis}_{name}', value.float())
        bias = torch.zeros(1) if bias_map is None else bias_map.permute(1, 2, 0)
        bias = bias if conv.bias is None else bias + conv.bias.detach()
        self.register_buffer('bias', bias.float().contiguous())

    def forward(self, x: Tensor, bias_map: Tensor | None = None) -> Tensor:
        buffers: Any = self
        kernel = Spectrum(*(getattr(buffers, f'kernel_{name}') for name in Spectrum._fields))
        rows, columns = (Waves(getattr(buffers, f'{axis}_cos'), getattr(buffers, f'{axis}_sin')) for axis in _AXES)
        out = convolve(x.float().permute(0, 2, 3, 1), kernel, rows, columns) + buffers.bias
        return out.to(x.dtype).permute(0, 3, 1, 2)


class AnySizeForm(nn.Module):
    """For maps of any size: the transform's matrices and the kernel's spectrum are computed from the map's size."""

    def __init__(self, conv: PeripheralConv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.grid = conv.weight, conv.bias, conv.sharing_grid

    def forward(self, x: Tensor, bias_map: Tensor | None = None) -> Tensor:
        out = fourier_conv2d(x, self.weight, self.grid)
        for bias in (None if self.bias is None else self.bias[:, None, None], bias_map):
            out = out if bias is None else out + bias.to(out.dtype)
        return out


class PlainAveragePool(nn.Module):
    """Adaptive average pooling as two products of matrices: ONNX has no operator for it."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        size = pool.output_size
        self.size = tuple(size) if isinstance(size, Sequence) else (size, size)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (_means(*axis, x) for axis in zip(self.size, x.shape[-2:], strict=True))
        return rows @ x @ columns.transpose(0, 1)


def _means(bins: int | None, extent: int, like: Tensor) -> Tensor:
    """``(bins, extent)``: the share that each position has in each bin."""
    position = torch.arange(extent, device=like.device)
    index = torch.arange(extent if bins is None else bins, device=like.device)[:, None]
    count = index.shape[0]
    first, last = index * extent // count, ((index + 1) * extent + count - 1) // count
    inside = ((position >= first) & (position < last)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def make_plain(network: nn.Module, image: Tensor | None = None) -> nn.Module:
    """Put standard operators in place of ours, and of those that exporters lack; in place, for inference.

    Small kernels become dense ones; large ones a Fourier transform by products of matrices, all of whose constants are
    computed here. Layer scales are folded into the linear layers before them.

    Args:
        network: A deployed network in eval mode.
        image: An input of the one size that the network takes; with ``None`` it takes any size, a little slower.

    Returns:
        The network.

    Raises:
        UserError: If it is not deployed, or a hook, a wrapper or another class decides what a convolution computes.
    """
    modules = dict(network.named_modules())
    for name, module in modules.items():
        if isinstance(module, Mixer) and not module.deployed:
            raise UserError(
                f'{name} is not deployed, and standard operators are put in the place of merged kernels alone: call '
                'backbone.eval() and backbone.switch_to_deploy() before make_plain'
            )
    calls: dict[nn.Module, tuple[torch.Size | None, Tensor | None]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bias_map = args[1] if len(args) > 1 else kwargs.get('bias_map')
        size = args[0].shape[-2:]
        if module in calls and calls[module][0] != size:  # called for maps of several sizes
            calls[module] = None, None
        else:
            calls[module] = size, None if bias_map is None else bias_map.detach().clone()

    # A module may stand at several places.
    named = network.named_modules(remove_duplicate=False)
    convs = {name: module for name, module in named if isinstance(module, PeripheralConv2d)}
    for name, conv in convs.items():
        if is_hooked(conv) or type(conv).forward is not PeripheralConv2d.forward:
            raise UserError(
                f'{name} has a hook, a wrapper or a forward of its own, which standard operators would leave out: take '
                'it off before make_plain'
            )
    if image is not None:
        handles = [conv.register_forward_pre_hook(record, with_kwargs=True) for conv in convs.values()]
        with torch.enable_grad():  # for inference alone a mixer calls the operator past its convolution
            network(image)
        for handle in handles:
            handle.remove()
    for name, conv in convs.items():
        size, bias_map = calls.get(conv, (None, None))
        if conv.kernel_size <= LARGEST_DENSE:
            _replace(network, name, DenseForm(conv, bias_map))
        elif size is not None:
            _replace(network, name, FourierForm(conv, size, bias_map))
        else:
            _replace(network, name, AnySizeForm(conv))
    uses = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if isinstance(module, PeLKBlock) and uses[id(module.pointwise_conv2)] == uses[id(module)]:
            _fold_layer_scale(module)
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            _replace(network, name, PlainAveragePool(module))
    return network.eval()


@torch.no_grad()
def _fold_layer_scale(block: PeLKBlock) -> None:
    """One product of maps less in each block whose linear layer is as it was built."""
    linear = block.pointwise_conv2
    as_built = type(linear) is nn.Linear and not is_hooked(linear) and isinstance(linear.weight, nn.Parameter)
    if block.gamma is not None and as_built:
        linear.weight = nn.Parameter(linear.weight * block.gamma[:, None], requires_grad=False)
        linear.bias = nn.Parameter(linear.bias * block.gamma, requires_grad=False)
        block.gamma = None


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition('.')
    setattr(network.get_submodule(owner), attribute, module)
