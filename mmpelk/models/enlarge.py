"""Large kernels in any network: its depthwise convolutions become peripheral ones that compute the same function.

A depthwise kernel is the fine-grained centre of a larger peripheral kernel whose other regions are zero. The network
computes what it computed before, its public weights load as before, and the periphery is ready to learn.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate
from math import prod
from numbers import Integral
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.ops.executed import backend_on_cpu, executed_operations
from mmpelk.ops.sharing_grid import expand_kernel, sharing_grid
from mmpelk.registry import MODELS

from .mixers.base import is_hooked
from .peripheral_conv import PeripheralConv2d
from .weights.checkpoint import pretrained_cfgs, shorten
from .weights.facts import metadata_of, refuse_another

__all__ = ['Enlarged', 'EnlargedConv2d', 'Enlargement', 'dense', 'enlarge', 'shrink']

KernelSize = int | Mapping[str, int] | Mapping[int, int] | Callable[[str, nn.Module], int | None]
Maps = Mapping[nn.Module, Sequence[tuple[int, int]]]

# Wrappers that keep lists of the parameters that they were built with, which new ones would not reach.
_WRAPPERS = {'DistributedDataParallel', 'FullyShardedDataParallel'}


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
        conv = _conv2d(len(whole), self.dense_size, self.weight, self.bias).train(self.training)
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
        if _has_plain_weight(self):
            with self.as_dense() as conv:
                fn(conv)
        return super().apply(fn)

    def embed(self, kernel: Tensor) -> Tensor:
        """The ``(C, 1, k', k')`` weight that holds a dense kernel ``(C, 1, *dense_size)`` in its centre."""
        rings = len(self.sharing_grid)
        rows, columns = ((rings - size) // 2 for size in self.dense_size)
        return F.pad(kernel, (columns, columns, rows, rows))

    def refuse_other_kernel(self, kernel: Tensor, told: Mapping[str, Any], prefix: str) -> None:
        """Refuse a kernel that a state dict tells to be neither the dense one nor one of the same rings.

        Args:
            kernel: What the state dict has as the weight.
            told: What torch keeps for the module in the state dict; without a word nothing is refused.
            prefix: What stands before the module's own names in it.

        Raises:
            UserError: It names both kernels and the remedy.
        """
        side, grid = kernel.shape[-1], told.get('sharing_grid')
        if grid is None and 'version' in told and side == len(self.sharing_grid):
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


@dataclass(frozen=True)
class Change:
    """A convolution whose kernel was enlarged, or made smaller.

    Attributes:
        name: Of the module.
        channels: Number of its channels.
        before: Rows and columns of its kernel before.
        after: Side of its kernel now.
        parameters: How many of its weight's before and now; none for a further name of a module that is listed.
        maps: Heights and widths of the maps that it was called for, if an image's size was given; so, too.
        backend: The forced backend; ``None`` chooses.
        sharing_grid: Ring widths of its kernel now.
    """

    name: str
    channels: int
    before: tuple[int, int]
    after: int
    parameters: tuple[int, int]
    maps: tuple[tuple[int, int], ...]
    backend: str | None
    sharing_grid: tuple[int, ...]

    @property
    def flops(self) -> tuple[int, int]:
        """Multiply-adds for one image of the dense kernels, before and now, whatever a backend really computes."""
        positions = self.channels * sum(map(prod, self.maps))
        return positions * prod(self.before), positions * self.after**2

    @property
    def executed(self) -> int | None:
        """Operations for one image that a CPU of the reference class really executes; ``None`` where it hides them."""
        calls = []
        for size in self.maps:
            shape = (1, self.channels, *size)
            calls.append((self.backend or backend_on_cpu(shape, self.sharing_grid), shape, self.sharing_grid))
        return executed_operations(calls)


@dataclass(frozen=True)
class Enlargement:
    """What :func:`enlarge` or :func:`shrink` has done; printed as a table.

    The table has FLOPs if the size of an image was given: multiply-adds of the dense kernels before and now, and the
    operations that a CPU of the class ``mmpelk.ops.backends.REFERENCE_PROCESSOR`` executes for those now.

    Attributes:
        changes: The convolutions that were changed.
        left: Names of depthwise convolutions that were not, and why.
    """

    changes: list[Change] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [['convolution', 'channels', 'kernel', 'parameters']]
        with_flops = any(change.maps for change in self.changes)
        if with_flops:
            rows[0] += ['maps', 'FLOPs', 'executed']
        for change in self.changes:
            kernel = f'{change.before[0]} x {change.before[1]} -> {change.after} x {change.after}'
            rows.append([change.name, str(change.channels), kernel, _arrow(change.parameters)])
            if with_flops:
                maps = ', '.join(f'{height} x {width}' for height, width in change.maps)
                executed = change.executed
                rows[-1] += [maps, _arrow(change.flops), '' if executed is None else f'{executed:,}']
        total = tuple(sum(change.parameters[when] for change in self.changes) for when in (0, 1))
        rows.append(['all', '', '', _arrow(total)])
        if with_flops:
            flops = tuple(sum(change.flops[when] for change in self.changes) for when in (0, 1))
            counts = [change.executed for change in self.changes]
            rows[-1] += ['', _arrow(flops), '' if None in counts else f'{sum(filter(None, counts)):,}']
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f'{name} is left as it is: {reason}' for name, reason in self.left.items()]
        return '\n'.join(lines)


def _arrow(counts: Sequence[int]) -> str:
    return ' -> '.join(f'{count:,}' for count in counts)


def enlarge(
    model: nn.Module,
    kernel_size: KernelSize = 51,
    center_size: int | None = None,
    include: str | Sequence[str] = '*',
    exclude: str | Sequence[str] = (),
    backend: str | None = None,
    input_size: Sequence[int] | None = None,
) -> Enlargement:
    """Replace the depthwise convolutions of a network by peripheral ones of the same function, in place.

    That are those of stride 1 and dilation 1 with an odd kernel and zero padding that keeps the size of the map, and
    those that were enlarged before, where the rings of the larger kernel can hold the trained one. The others are left
    and named with the reason. Weights of the network before load into it as before; the new parameters are zero and get
    gradients from the first step on.

    Modules and parameters of these convolutions are new. What holds parameters is built afterwards: optimizers,
    averages, wrappers for several GPUs. The old convolutions stay as they are for other networks that have them.

    Args:
        model: Any network, not yet wrapped for several GPUs.
        kernel_size: Side ``K`` of the large kernels, odd; or by patterns of names, the first that fits
            (``{'stages.0.*': 51, '*': 31}``); or by the side of the map (``{56: 51, 28: 49}``, with ``input_size``); or
            a function of name and module, which returns ``None`` to leave it.
        center_size: Side of the fine-grained centre, odd; by default that of the kernel which it holds.
        include: Patterns of the names to enlarge (``fnmatch``).
        exclude: Patterns of the names to leave.
        backend: What :func:`mmpelk.ops.peripheral_conv2d` takes; ``None`` chooses.
        input_size: Height and width of an image: the network runs once on one of zeros, in evaluation mode, and the
            report has the sizes of the maps and the FLOPs.

    Returns:
        What was enlarged and what was left; ``print`` shows a table.

    Raises:
        UserError: If the network has no depthwise convolution, if none of them can be enlarged, if a size is not odd,
            if a pattern fits no name, if a wrapper for several GPUs or an optimizer holds its parameters, or if it does
            not take such an image; nothing is changed then.

    Example:
        >>> network = timm.create_model('convnext_tiny', pretrained=True)
        >>> print(mmpelk.enlarge(network, 51))
    """
    by_map = _is_by_map(kernel_size)
    if by_map and not all(isinstance(key, Integral) for key in cast(Mapping[Any, int], kernel_size)):
        raise UserError('kernel_size has the sides of maps or patterns of names as keys, not both')
    if by_map and input_size is None:
        raise UserError('kernel_size by the side of the map needs the size of an image: input_size=(height, width)')
    found = _selected(_depthwise(model), include, exclude, kernel_size)
    maps = {} if input_size is None or not found else _maps(model, [module for _, module in found], input_size)
    owners = Counter(
        value for each in model.modules() for _, value in each.named_parameters(recurse=False, remove_duplicate=False)
    )
    kept = _kept_elsewhere(model)

    def why_not(module: Any, size: int) -> str | None:
        for name, value in module.named_parameters(recurse=False):
            if owners[value] > 1:
                return f'its {name} belongs to another module, too'
        if owner := kept.get(module) or kept.get(module.weight):
            return f'the {owner} keeps it beside its submodules, too, such as in a list'
        return _why_not(module, size, center_size)

    plans, left = _plans(model, found, kernel_size, why_not, maps, 'enlarged')
    return _carry_out(model, plans, left, maps, partial(_enlarged, center_size=center_size, backend=backend))


def shrink(
    model: nn.Module,
    kernel_size: KernelSize,
    center_size: int | None = None,
    include: str | Sequence[str] = '*',
    exclude: str | Sequence[str] = (),
) -> Enlargement:
    """Make enlarged kernels smaller where that changes nothing, in place: those that are zero outside of the new size.

    Args:
        model: A network after :func:`enlarge`.
        kernel_size: Side of the new kernels, as of :func:`enlarge`, but not by the side of the map.
        center_size: Side of the fine-grained centre, odd; by default that of each kernel.
        include: As of :func:`enlarge`.
        exclude: As of :func:`enlarge`.

    Returns:
        What was made smaller, and what was not and why.

    Raises:
        UserError: If none can be made smaller without a change, if a size is not odd, if a pattern fits no name, or if
            an optimizer or a wrapper for several GPUs holds the parameters; nothing is changed then.
    """
    if _is_by_map(kernel_size):
        raise UserError('shrink takes a number, sizes by patterns of names, or a function of name and module')
    found = _selected(_enlarged_convs(model), include, exclude, kernel_size)

    def why_not(conv: EnlargedConv2d, size: int) -> str | None:
        if size >= conv.kernel_size:
            return f'its kernel of {conv.kernel_size} x {conv.kernel_size} is not larger than {size}'
        return _why_no_other_size(conv, size, center_size)

    plans, left = _plans(model, found, kernel_size, why_not, {}, 'made smaller')
    return _carry_out(model, plans, left, {}, partial(_resized, center_size=center_size))


def dense(model: nn.Module) -> list[str]:
    """The way back: :func:`enlarge`'s convolutions become ``nn.Conv2d`` with their ``K x K`` kernels, in place.

    For tools that know nothing else. The network computes the same, at the cost of the dense kernels.

    Returns:
        Names of the convolutions.

    Raises:
        UserError: If one of them has hooks, or a weight that is parametrised, pruned, sharded or quantised, or
            anything else that would be lost; if the network has other peripheral convolutions, such as PeLK's; or if
            an optimizer or a wrapper for several GPUs holds the parameters; nothing is changed then.
    """
    names, replaced, found = [], {}, list(_enlarged_convs(model))
    for name, module in model.named_modules():
        if isinstance(module, PeripheralConv2d) and not isinstance(module, EnlargedConv2d):
            raise UserError(
                f'{name or "the model"} is a peripheral convolution that mmpelk.enlarge has not made: for a network of '
                'standard operators call mmpelk.export.make_plain(network.eval(), image)'
            )
    for name, conv in found:
        if is_hooked(conv) or not _has_plain_weight(conv):
            raise UserError(
                f'{name} has hooks or a weight that is parametrised, pruned, sharded or quantised, which dense would '
                'drop: take that off before'
            )
        if reason := _what_would_be_lost(conv):
            raise UserError(f'{name}: {reason}, which dense would drop: take that off before')
        if type(conv).forward is not EnlargedConv2d.forward:
            raise UserError(f'{name}: its class {type(conv).__name__} convolves in a way of its own')
    _refuse_holders(value for _, conv in found for value in conv.parameters())
    for name, conv in found:
        if conv not in replaced:
            weight = _renewed(conv.weight, expand_kernel(conv.weight.detach(), conv.sharing_grid))
            size = conv.kernel_size, conv.kernel_size
            bias = None if conv.bias is None else _renewed(conv.bias)
            replaced[conv] = _conv2d(conv.in_channels, size, weight, bias).train(conv.training)
        _replace(model, name, replaced[conv])
        names.append(name)
    return names


@MODELS.register_module()
def Enlarged(backbone: dict[str, Any], **options: Any) -> nn.Module:
    """``type='mmpelk.Enlarged'``: any registered network with its depthwise convolutions enlarged.

    The result is that network itself, so that its names, its ``init_cfg``, its layer decay and its checkpoints stay. It
    is initialised as the plain network.

    Args:
        backbone: Config of the network.
        **options: Of :func:`enlarge`; and ``init_cfg``, which takes the place of the network's own.

    Raises:
        UserError: As :func:`enlarge`.

    Example:
        >>> backbone=dict(type='mmpelk.Enlarged', backbone=dict(type='mmdet.CSPNeXt'), kernel_size=31)
    """
    if 'init_cfg' in options:
        backbone = {**backbone, 'init_cfg': options.pop('init_cfg')}
    network: Any = MODELS.build(backbone)
    print_log(f'enlarged convolutions:\n{enlarge(network, **options)}', 'current')
    if hasattr(network, 'init_weights'):
        network.init_weights = partial(_init_as_plain, network)
    return network


def _init_as_plain(network: Any) -> None:
    """``init_weights`` of a network with its plain convolutions in their places, which initialisers look for."""
    init_weights = partial(type(network).init_weights, network)
    if pretrained := pretrained_cfgs(getattr(network, 'init_cfg', None)):
        for cfg in pretrained:
            if cfg.get('prefix'):
                _refuse_other_kernels(network, cfg['checkpoint'], cfg['prefix'])
        return init_weights()  # the weights may be those of the plain or of the enlarged network
    with ExitStack() as stack:
        plain: dict[nn.Module, nn.Conv2d] = {}
        for name, conv in [(name, conv) for name, conv in _enlarged_convs(network) if _has_plain_weight(conv)]:
            if conv not in plain:
                plain[conv] = stack.enter_context(conv.as_dense())
            _replace(network, name, plain[conv])
            stack.callback(_replace, network, name, conv)
        return init_weights()


def _refuse_other_kernels(network: nn.Module, path: str, prefix: str) -> None:
    """As loading does, from a part of a checkpoint, of which mmengine loads the bare tensors.

    Raises:
        UserError: As of :meth:`EnlargedConv2d.refuse_other_kernel`.
    """
    content, prefix = read_checkpoint(path), f'{prefix.removesuffix(".")}.'
    state = content.get('state_dict', content)
    told = metadata_of(state, prefix)
    for name, conv in _enlarged_convs(network):
        if (kernel := state.get(f'{prefix}{name}.weight')) is not None:
            conv.refuse_other_kernel(kernel, told.get(name, {}), f'{prefix}{name}.')


def _depthwise(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of a network's depthwise convolutions; shared ones under each of their names."""
    for name, module in model.named_modules(remove_duplicate=False):
        is_depthwise = isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
        if is_depthwise or isinstance(module, PeripheralConv2d):
            yield name, module


def _enlarged_convs(model: nn.Module) -> Iterator[tuple[str, EnlargedConv2d]]:
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, EnlargedConv2d):
            yield name, module


def _is_by_map(kernel_size: KernelSize) -> bool:
    return isinstance(kernel_size, Mapping) and any(isinstance(key, Integral) for key in kernel_size)


def _selected(
    modules: Iterable[tuple[str, Any]],
    include: str | Sequence[str],
    exclude: str | Sequence[str],
    kernel_size: KernelSize,
) -> list[tuple[str, Any]]:
    """Those that the patterns leave; patterns that fit no name are refused, since they are mistakes of writing."""

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    modules = list(modules)
    include, exclude = ([each] if isinstance(each, str) else each for each in (include, exclude))
    by_name = isinstance(kernel_size, Mapping) and not _is_by_map(kernel_size)
    sizes = [str(pattern) for pattern in cast(Mapping[Any, int], kernel_size)] if by_name else []
    unmatched = [
        repr(pattern)
        for pattern in (*include, *exclude, *sizes)
        if pattern != '*' and not any(fnmatchcase(name, pattern) for name, _ in modules)
    ]
    if unmatched and modules:
        raise UserError(
            f'no name of a convolution fits {", ".join(unmatched)} of kernel_size, include or exclude; the names are '
            + shorten([name for name, _ in modules])
        )
    return [(name, module) for name, module in modules if matches(name, include) and not matches(name, exclude)]


def _kept_elsewhere(model: nn.Module) -> dict[Any, str]:
    """Modules and parameters that a module holds as plain attributes, in lists, or by their methods; and its class.

    Such code would go on calling the old ones.
    """
    kept: dict[Any, str] = {}
    of_every_module = vars(nn.Module())  # its submodules among them
    for module in model.modules():
        if _is_wrapper(type(module)):
            continue  # which is refused
        for value in [value for name, value in vars(module).items() if name not in of_every_module]:
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            for each in inner:
                owner = getattr(each, '__self__', each)
                if isinstance(owner, nn.Module | nn.Parameter):
                    kept[owner] = type(module).__name__
    return kept


def _maps(model: nn.Module, modules: Sequence[nn.Module], input_size: Sequence[int]) -> Maps:
    """Heights and widths of the maps that modules get of one image, in the order of the calls."""
    if len(input_size) != 2 or not all(isinstance(side, Integral) and int(side) > 0 for side in input_size):
        raise UserError(f'input_size is the height and the width of an image, got {input_size!r}')
    found: dict[nn.Module, list[tuple[int, int]]] = {module: [] for module in modules}
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d | PeripheralConv2d))
    channels = first.weight.shape[1] * (first.groups if isinstance(first, nn.Conv2d) else len(first.weight))
    image = first.weight.new_zeros(1, channels, *input_size)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[module].append((inputs[0].shape[-2], inputs[0].shape[-1]))

    handles = [module.register_forward_pre_hook(note) for module in found]
    in_training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            model(image)
    except Exception as error:  # whatever a network raises
        raise UserError(
            f'the {type(model).__name__} does not take an image of {tuple(image.shape)}: {error}; leave input_size '
            'out, and give sizes by patterns of names'
        ) from error
    finally:
        for module in in_training:
            module.training = True
        for handle in handles:
            handle.remove()
    return found


def _plans(
    model: nn.Module,
    found: Sequence[tuple[str, Any]],
    kernel_size: KernelSize,
    why_not: Callable[[Any, int], str | None],
    maps: Maps,
    what: str,
) -> tuple[list[tuple[str, Any, int]], dict[str, str]]:
    """Names, modules and new sizes of what can be done, and the reasons of the others."""
    plans, left = [], {}
    for name, module in found:
        size: Any = kernel_size
        reason: str | None = 'no kernel size is given for it'
        if _is_by_map(kernel_size):
            size, reason = _size_by_map(cast(Mapping[Any, int], kernel_size), set(maps[module]))
        elif isinstance(kernel_size, Mapping):
            size = next((value for pattern, value in kernel_size.items() if fnmatchcase(name, str(pattern))), None)
        elif callable(kernel_size):
            size = kernel_size(name, module)
        if size is not None:
            if not isinstance(size, Integral) or int(size) < 1 or int(size) % 2 == 0:
                raise UserError(f'kernel_size is an odd positive integer, got {size!r} for {name}')
            size = int(size)
            reason = why_not(module, size)
        if reason:
            left[name] = reason
        else:
            plans.append((name, module, size))
    sizes: dict[nn.Module, list[int]] = {}
    for _, module, size in plans:
        sizes.setdefault(module, []).append(size)
    names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for name, module, _ in plans:
        if len(sizes[module]) < names[module] or len(set(sizes[module])) > 1:
            left[name] = 'the same module has another name, which is left or gets another size: give them one size'
    plans = [plan for plan in plans if plan[0] not in left]
    if not plans:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in left.items())
        raise UserError(
            f'no depthwise convolution of the {type(model).__name__} can be {what}: '
            + (reasons or 'it has none among the names that include and exclude leave')
        )
    if not plans[0][0]:
        raise UserError(
            'the model is a single convolution: put it into a network, such as nn.Sequential, to enlarge it'
        )
    return plans, left


def _size_by_map(sizes: Mapping[Any, int], maps: set[tuple[int, int]]) -> tuple[int | None, str]:
    """The size for the maps of a module, or ``None`` and the reason."""
    names = ' and '.join(f'{height} x {width}' for height, width in sorted(maps))
    if not maps:
        return None, 'the network does not call it'
    if len(maps) > 1 or any(height != width for height, width in maps):
        return None, f'its maps are {names}, and not of one side: give its size by a pattern of names'
    ((side, _),) = maps
    return sizes.get(side), f'no kernel size is given for maps of {names}'


def _carry_out(
    model: nn.Module,
    plans: Sequence[tuple[str, Any, int]],
    left: dict[str, str],
    maps: Maps,
    change: Callable[[Any, int], EnlargedConv2d],
) -> Enlargement:
    _refuse_holders(value for _, module, _ in plans for value in module.parameters())
    before = {module: (_kernel_of(module), module.weight.numel()) for _, module, _ in plans}
    found, done = Enlargement(left=left), dict[nn.Module, EnlargedConv2d]()
    for name, module, size in plans:
        is_new = module not in done
        if is_new:
            done[module] = change(module, size)
            done[module].announces |= len(done) == 1
        conv, (kernel, count) = done[module], before[module]
        _replace(model, name, conv)
        counts = (count, conv.weight.numel()) if is_new else (0, 0)
        seen = tuple(maps.get(module, ())) if is_new else ()
        found.changes.append(
            Change(name, conv.in_channels, kernel, size, counts, seen, conv.backend, conv.sharing_grid)
        )
    return found


def _kernel_of(module: Any) -> tuple[int, int]:
    rows, columns = module.kernel_size if isinstance(module, nn.Conv2d) else (module.kernel_size,) * 2
    return rows, columns


def _computes_as_conv2d(module: nn.Module) -> bool:
    """Whether a class convolves as ``nn.Conv2d``; mmcv's wrapper does, beside a case for empty maps."""
    # Private: subclasses may change this step alone.
    if type(module)._conv_forward is not nn.Conv2d._conv_forward:  # type: ignore[attr-defined]
        return False
    forward = type(module).forward
    return forward is nn.Conv2d.forward or forward.__module__ == 'mmcv.cnn.bricks.wrappers'


def _has_plain_weight(module: nn.Module) -> bool:
    """Whether nothing computes, prunes, shards or quantises the weight or the bias."""
    plain = {name for name, value in module.named_parameters(recurse=False) if type(value) is nn.Parameter}
    return 'weight' in plain and (module.bias is None or 'bias' in plain)


def _what_would_be_lost(module: nn.Module) -> str | None:
    """What hangs on a convolution, or its class adds to it, that the module in its place would not have."""
    others = {
        name
        for named in (module.named_parameters, module.named_buffers)
        for name, _ in named(recurse=False, remove_duplicate=False)
    } | {name for name, _ in module.named_children()}
    if others := others - {'weight', 'bias'}:
        return f'it has tensors or modules beside weight and bias: {", ".join(sorted(others))}'
    # Private, as torch has no public way to ask.
    of_saving, of_loading = module._state_dict_hooks, module._load_state_dict_post_hooks
    if of_saving or of_loading or module._state_dict_pre_hooks or module._load_state_dict_pre_hooks:
        return 'it has hooks of its state dict'
    if any(value._backward_hooks or value._post_accumulate_grad_hooks for value in module.parameters()):
        return 'its parameters have hooks'
    if any(getattr(type(module), name) is not getattr(nn.Module, name) for name in ('__call__', 'get_extra_state')):
        return f'its class {type(module).__name__} is called in a way of its own'
    return None


def _why_not(module: Any, size: int, center_size: int | None) -> str | None:
    """What keeps a depthwise convolution from being enlarged."""
    if isinstance(module, PeripheralConv2d):
        side = f'{module.kernel_size} x {module.kernel_size}'
        if not isinstance(module, EnlargedConv2d):
            return f'its kernel is peripheral already, {side}'
        if size <= module.kernel_size:
            return f'its kernel of {side} is not smaller than {size}'
        return _why_no_other_size(module, size, center_size)
    kernel, padding = module.kernel_size, module.padding
    keeps = [side // 2 for side in kernel]
    padded = keeps if padding == 'same' else [0, 0] if padding == 'valid' else list(padding)
    checks = {
        f'it has {module.out_channels // module.in_channels} outputs of each channel': module.out_channels
        != module.in_channels,
        f'its stride is {module.stride}': module.stride != (1, 1),
        f'its dilation is {module.dilation}': module.dilation != (1, 1),
        f'its kernel of {kernel[0]} x {kernel[1]} is even': any(side % 2 == 0 for side in kernel),
        f'its padding mode is {module.padding_mode}': module.padding_mode != 'zeros',
        f'its padding of {padding} changes the size of the map': padded != keeps,
        f'its class {type(module).__name__} convolves in a way of its own': not _computes_as_conv2d(module),
        'its weight is parametrised, pruned, sharded or quantised; enlarge it before that': not _has_plain_weight(
            module
        ),
        'it has hooks or a forward of its own; remove them before': is_hooked(module),
        str(lost := _what_would_be_lost(module)): lost is not None,
        f'its kernel of {kernel[0]} x {kernel[1]} is not smaller than {size}': max(kernel) >= size,
        f'its kernel of {kernel[0]} x {kernel[1]} does not fit the centre of {center_size}': center_size is not None
        and max(kernel) > center_size,
        f'a centre of {center_size} leaves {size} no periphery': center_size is not None and center_size >= size,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _why_no_other_size(conv: EnlargedConv2d, size: int, center_size: int | None) -> str | None:
    """What keeps an enlarged kernel from another size; larger ones hold it if their rings end where its rings end."""
    center = center_size or conv.center_size
    if not _has_plain_weight(conv) or conv.weight.is_meta:
        return 'its weight is parametrised, pruned, sharded, quantised or on the meta device'
    if lost := _what_would_be_lost(conv):
        return lost  # or would not fit, such as a mask
    if not max(conv.dense_size) <= center < size:
        return f'a centre of {center} does not fit between {max(conv.dense_size)} and {size}; give another center_size'
    if _on_grid(conv, sharing_grid(size, center)) is not None:
        return None
    centers = (each for each in range(center + 2, size, 2) if _on_grid(conv, sharing_grid(size, each)) is not None)
    if (remedy := next(centers, None)) is not None:
        return f'the rings of {size} cut through the rings of its kernel; center_size={remedy} does not'
    return f'its kernel is not zero outside of {size} x {size}'


def _on_grid(conv: EnlargedConv2d, grid: Sequence[int]) -> Tensor | None:
    """The parameters of the same kernel on another grid, ``(C, 1, k', k')``; ``None`` if it is not on that grid."""
    kernel = expand_kernel(conv.weight.detach(), conv.sharing_grid)
    margin = (sum(grid) - conv.kernel_size) // 2
    resized = F.pad(kernel, (margin,) * 4)  # a negative margin cuts
    firsts = torch.tensor(list(accumulate(grid[:-1], initial=0)), device=kernel.device)
    weight = resized.index_select(2, firsts).index_select(3, firsts)
    is_same = torch.equal(F.pad(expand_kernel(weight, grid), (-margin,) * 4), kernel)
    return weight if is_same and torch.equal(expand_kernel(weight, grid), resized) else None


def _enlarged(module: Any, size: int, center_size: int | None, backend: str | None) -> EnlargedConv2d:
    if isinstance(module, EnlargedConv2d):
        module.backend = backend or module.backend
        return _resized(module, size, center_size)
    rows, columns = module.kernel_size
    with torch.device('meta'):  # whose values are those of the convolution, and no random numbers are drawn
        conv = EnlargedConv2d(
            module.in_channels, size, (rows, columns), center_size, bias=module.bias is not None, backend=backend
        )
    conv.weight = _renewed(module.weight, conv.embed(module.weight.detach()))
    if module.bias is not None:
        conv.bias = _renewed(module.bias)
    return conv.train(module.training)


def _resized(conv: EnlargedConv2d, size: int, center_size: int | None) -> EnlargedConv2d:
    center = center_size or conv.center_size
    grid = sharing_grid(size, center)
    weight = _renewed(conv.weight, cast(Tensor, _on_grid(conv, grid)))
    conv.weight = weight
    conv.kernel_size, conv.center_size, conv.sharing_grid = size, center, grid
    return conv


def _refuse_holders(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse parameters that an optimizer or a wrapper for several GPUs holds, which would not know of the new ones.

    Raises:
        UserError: It names the remedy.
    """
    replaced = set(parameters)
    if _holder_of(replaced) is None:
        return
    gc.collect()  # it may be a dead one
    if (holder := _holder_of(replaced)) is None:
        return
    if isinstance(holder, nn.Module):
        raise UserError(
            f'the {type(holder).__name__} would not know of the new parameters: change the kernels of the network '
            'itself, and wrap it after that'
        )
    raise UserError(
        f'an optimizer, {type(holder).__name__}, holds these kernels and would not train the new ones: delete it and '
        'its schedulers, change the kernels, and build it after that'
    )


def _is_wrapper(kind: type) -> bool:
    return not _WRAPPERS.isdisjoint(base.__name__ for base in kind.mro())


def _holder_of(parameters: set[nn.Parameter]) -> nn.Module | torch.optim.Optimizer | None:
    for each in gc.get_objects():  # a parameter does not know its holders
        kind: type = type(each)
        if issubclass(kind, nn.Module) and _is_wrapper(kind):
            held = list(each.parameters())
        elif issubclass(kind, torch.optim.Optimizer):
            held = [value for group in getattr(each, 'param_groups', ()) for value in group['params']]
        else:
            continue
        if not parameters.isdisjoint(held):
            return cast('nn.Module | torch.optim.Optimizer', each)
    return None


def _renewed(parameter: nn.Parameter, values: Tensor | None = None) -> nn.Parameter:
    """A new parameter with the attributes of another; by default with a copy of its values."""
    new = nn.Parameter(parameter.detach().clone() if values is None else values, parameter.requires_grad)
    vars(new).update(vars(parameter))  # such as marks of the toolboxes
    return new


def _conv2d(channels: int, size: tuple[int, int], weight: nn.Parameter, bias: Tensor | None) -> nn.Conv2d:
    padding = size[0] // 2, size[1] // 2
    with torch.device('meta'):
        conv = nn.Conv2d(channels, channels, size, padding=padding, groups=channels, bias=bias is not None)
    conv.weight = weight
    conv.register_parameter('bias', cast('nn.Parameter | None', bias))
    return conv


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition('.')
    setattr(model.get_submodule(owner), attribute, module)
