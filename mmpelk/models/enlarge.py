"""Large kernels in any network: its depthwise convolutions become peripheral ones that compute the same function.

A depthwise kernel is the fine-grained centre of a larger peripheral kernel whose other regions are zero. The network
computes what it computed before, its public weights load as before, and the periphery is ready to learn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmpelk.errors import UserError
from mmpelk.ops.sharing_grid import expand_kernel
from mmpelk.registry import MODELS

from .mixers.base import is_hooked
from .peripheral_conv import PeripheralConv2d

__all__ = ['Enlarged', 'EnlargedConv2d', 'Enlargement', 'dense', 'enlarge']

KernelSize = int | Mapping[str, int] | Callable[[str, nn.Module], int | None]


class EnlargedConv2d(PeripheralConv2d):
    """A peripheral convolution in the place of a smaller depthwise one.

    It loads the smaller dense kernel, too, such as that of the original network's public weights: the kernel becomes
    the centre, and all other regions zero. It has the attributes of ``nn.Conv2d`` that other code reads.

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
        super().__init__(channels, kernel_size, center_size=center, bias=bias, backend=backend)
        self.dense_size = dense_size
        self.in_channels = self.out_channels = self.groups = channels
        self.stride = self.dilation = (1, 1)
        self.padding = (kernel_size // 2, kernel_size // 2)
        self.padding_mode = 'zeros'
        self.transposed = False

    def init_weights(self) -> None:
        """Keep the weights: initialisers of the toolboxes would fill the periphery, too."""

    def embed(self, kernel: Tensor) -> Tensor:
        """The ``(C, 1, k', k')`` weight that holds a dense kernel ``(C, 1, *dense_size)`` in its centre."""
        rings = len(self.sharing_grid)
        rows, columns = ((rings - size) // 2 for size in self.dense_size)
        return F.pad(kernel, (columns, columns, rows, rows))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        kernel = state_dict.get(f'{prefix}weight')
        if kernel is not None and kernel.shape[2:] == self.dense_size:
            state_dict[f'{prefix}weight'] = self.embed(kernel)
        super()._load_from_state_dict(state_dict, prefix, *args)


@dataclass(frozen=True)
class Change:
    """A convolution that was enlarged.

    Attributes:
        name: Of the module.
        channels: Number of its channels.
        before: Rows and columns of its kernel before.
        after: Side of its kernel now.
        parameters: How many of its weight's before and now.
    """

    name: str
    channels: int
    before: tuple[int, int]
    after: int
    parameters: tuple[int, int]


@dataclass(frozen=True)
class Enlargement:
    """What :func:`enlarge` has done; printed as a table.

    Attributes:
        changes: The convolutions that were enlarged.
        left: Names of depthwise convolutions that were not, and why.
    """

    changes: list[Change] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [('convolution', 'channels', 'kernel', 'parameters')]
        rows += [
            (
                change.name,
                str(change.channels),
                f'{change.before[0]} x {change.before[1]} -> {change.after} x {change.after}',
                f'{change.parameters[0]:,} -> {change.parameters[1]:,}',
            )
            for change in self.changes
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f'{name} is left as it is: {reason}' for name, reason in self.left.items()]
        return '\n'.join(lines)


def enlarge(
    model: nn.Module,
    kernel_size: KernelSize = 51,
    center_size: int | None = None,
    include: str | Sequence[str] = '*',
    exclude: str | Sequence[str] = (),
    backend: str | None = None,
) -> Enlargement:
    """Replace the depthwise convolutions of a network by peripheral ones of the same function, in place.

    That are those of stride 1 and dilation 1 with an odd kernel and zero padding that keeps the size of the map. The
    others are left and named with the reason. Weights of the network before load into it as before; the new parameters
    are zero and get gradients from the first step on. Call it before the optimizer is built, and before the network is
    wrapped or compiled.

    Args:
        model: Any network.
        kernel_size: Side ``K`` of the large kernels, odd; or by patterns of names, the first that fits
            (``{'stages.0.*': 51, '*': 31}``); or a function of name and module, which returns ``None`` to leave it.
        center_size: Side of the fine-grained centre, odd; by default that of the kernel which it holds.
        include: Patterns of the names to enlarge (``fnmatch``).
        exclude: Patterns of the names to leave.
        backend: What :func:`mmpelk.ops.peripheral_conv2d` takes; ``None`` chooses.

    Returns:
        What was enlarged and what was left; ``print`` shows a table.

    Raises:
        UserError: If the network has no depthwise convolution, if none of them can be enlarged, or if a size is not
            odd; nothing is changed then.

    Example:
        >>> network = timm.create_model('convnext_tiny', pretrained=True)
        >>> print(mmpelk.enlarge(network, 51))
    """
    found, plans = Enlargement(), []
    for name, module in _depthwise(model):
        if not _matches(name, include) or _matches(name, exclude):
            continue
        size = _size_of(kernel_size, name, module)
        if size is None:
            found.left[name] = 'no kernel size is given for it'
            continue
        if not isinstance(size, int) or size < 1 or size % 2 == 0:
            raise UserError(f'kernel_size is an odd positive integer, got {size!r} for {name}')
        if reason := _why_not(module, size, center_size):
            found.left[name] = reason
        else:
            plans.append((name, module, size))
    if not plans:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in found.left.items())
        raise UserError(
            f'no depthwise convolution of the {type(model).__name__} can be enlarged: '
            + (reasons or 'it has none among the names that include and exclude leave')
        )
    replaced: dict[nn.Module, EnlargedConv2d] = {}
    for name, module, size in plans:
        if module not in replaced:
            replaced[module] = _enlarged(module, size, center_size, backend)
        conv = replaced[module]
        _replace(model, name, conv)
        counts = module.weight.numel(), conv.weight.numel()
        found.changes.append(Change(name, conv.in_channels, conv.dense_size, size, counts))
    return found


def dense(model: nn.Module) -> list[str]:
    """The way back: :func:`enlarge`'s convolutions become ``nn.Conv2d`` with their ``K x K`` kernels, in place.

    For tools that know nothing else. The network computes the same, at the cost of the dense kernels.

    Returns:
        Names of the convolutions.
    """
    names, replaced = [], {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is not EnlargedConv2d:
            continue
        if module not in replaced:
            replaced[module] = _dense(module)
        _replace(model, name, replaced[module])
        names.append(name)
    return names


@MODELS.register_module()
def Enlarged(backbone: dict[str, Any], **options: Any) -> nn.Module:
    """``type='mmpelk.Enlarged'``: any registered network with its depthwise convolutions enlarged.

    The result is that network itself, so that its names, its ``init_cfg``, its layer decay and its checkpoints stay.

    Args:
        backbone: Config of the network.
        **options: Of :func:`enlarge`.

    Raises:
        UserError: As :func:`enlarge`.

    Example:
        >>> backbone=dict(type='mmpelk.Enlarged', backbone=dict(type='mmdet.CSPNeXt'), kernel_size=31)
    """
    network = MODELS.build(backbone)
    print_log(f'enlarged convolutions:\n{enlarge(network, **options)}', 'current')
    return network


def _depthwise(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of a network's depthwise convolutions; shared ones under each of their names."""
    for name, module in model.named_modules(remove_duplicate=False):
        if (
            isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1
        ) or isinstance(module, PeripheralConv2d):
            yield name, module


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def _size_of(kernel_size: KernelSize, name: str, module: nn.Module) -> Any:
    if isinstance(kernel_size, Mapping):
        return next((size for pattern, size in kernel_size.items() if fnmatchcase(name, pattern)), None)
    return kernel_size(name, module) if callable(kernel_size) else kernel_size


def _computes_as_conv2d(module: nn.Module) -> bool:
    """Whether a class convolves as ``nn.Conv2d``; mmcv's wrapper does, beside a case for empty maps."""
    forward = type(module).forward
    return forward is nn.Conv2d.forward or forward.__module__ == 'mmcv.cnn.bricks.wrappers'


def _why_not(module: Any, size: int, center_size: int | None) -> str | None:
    """What keeps a depthwise convolution from being enlarged."""
    if isinstance(module, PeripheralConv2d):
        return f'its kernel is peripheral already, {module.kernel_size} x {module.kernel_size}'
    kernel, padding = module.kernel_size, module.padding
    keeps = [side // 2 for side in kernel]
    padded = keeps if padding == 'same' else [0, 0] if padding == 'valid' else list(padding)
    checks = {
        f'its stride is {module.stride}': module.stride != (1, 1),
        f'its dilation is {module.dilation}': module.dilation != (1, 1),
        f'its kernel of {kernel[0]} x {kernel[1]} is even': any(side % 2 == 0 for side in kernel),
        f'its padding mode is {module.padding_mode}': module.padding_mode != 'zeros',
        f'its padding of {padding} changes the size of the map': padded != keeps,
        f'its class {type(module).__name__} convolves in a way of its own': not _computes_as_conv2d(module),
        'its weight is parametrised or pruned; remove that before': parametrize.is_parametrized(module)
        or 'weight' not in dict(module.named_parameters(recurse=False)),
        'it has hooks or a forward of its own; remove them before': is_hooked(module),
        f'its kernel of {kernel[0]} x {kernel[1]} is not smaller than {size}': max(kernel) >= size,
        f'its kernel of {kernel[0]} x {kernel[1]} does not fit the centre of {center_size}': center_size is not None
        and max(kernel) > center_size,
        f'a centre of {center_size} leaves {size} no periphery': center_size is not None and center_size >= size,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _enlarged(module: nn.Conv2d, size: int, center_size: int | None, backend: str | None) -> EnlargedConv2d:
    dense_size = module.kernel_size[0], module.kernel_size[1]
    with torch.device('meta'):  # whose values are those of the convolution, and no random numbers are drawn
        conv = EnlargedConv2d(
            module.in_channels, size, dense_size, center_size, bias=module.bias is not None, backend=backend
        )
    conv.weight = nn.Parameter(conv.embed(module.weight.detach()), requires_grad=module.weight.requires_grad)
    conv.bias = cast('nn.Parameter | None', module.bias)
    return conv.train(module.training)


def _dense(conv: EnlargedConv2d) -> nn.Conv2d:
    size, channels = conv.kernel_size, conv.in_channels
    with torch.device('meta'):
        plain = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=conv.bias is not None)
    weight = expand_kernel(conv.weight.detach(), conv.sharing_grid)
    plain.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    plain.register_parameter('bias', cast('nn.Parameter | None', conv.bias))
    return plain.train(conv.training)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    if not name:
        raise UserError(
            'the model is a single convolution: put it into a network, such as nn.Sequential, to enlarge it'
        )
    owner, _, attribute = name.rpartition('.')
    setattr(model.get_submodule(owner), attribute, module)
