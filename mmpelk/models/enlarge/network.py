"""Networks whose depthwise convolutions become peripheral ones, and back."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from numbers import Integral
from typing import Any, cast

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.ops.sharing_grid import expand_kernel, sharing_grid
from mmpelk.registry import MODELS

from ..mixers.base import is_hooked
from ..peripheral_conv import PeripheralConv2d
from ..weights.checkpoint import pretrained_cfgs, shorten
from ..weights.facts import metadata_of
from .checks import (
    kept_elsewhere,
    on_grid,
    refuse_holders,
    what_would_be_lost,
    why_no_other_size,
    why_not_enlarged,
)
from .convolution import EnlargedConv2d, conv2d, has_plain_weight
from .report import Change, Enlargement

KernelSize = int | Mapping[str, int] | Mapping[int, int] | Callable[[str, nn.Module], int | None]
Maps = Mapping[nn.Module, Sequence[tuple[int, int]]]


def enlarge(
    model: nn.Module,
    kernel_size: KernelSize = 15,
    center_size: int | None = None,
    include: str | Sequence[str] = '*',
    exclude: str | Sequence[str] = (),
    backend: str | None = None,
    input_size: Sequence[int] | None = None,
) -> Enlargement:
    """Replace the depthwise convolutions of a network by peripheral ones of the same function, in place.

    It replaces those of stride 1 and dilation 1 with an odd kernel and zero padding that keeps the size of the map, and
    those that were enlarged before, where the rings of the larger kernel can hold the trained one. The others are left
    and named with the reason. Weights of the network before load into it as before; the new parameters are zero and get
    gradients from the first step on.

    Modules and parameters of these convolutions are new. What holds parameters is built afterwards: optimizers,
    averages, wrappers for several GPUs. The old convolutions stay as they are for other networks that have them.

    Give the new kernels a tenth of the learning rate, by :func:`mmpelk.parameter_groups` or, in a config, by the
    constructor :class:`mmpelk.engine.PeripheralOptimWrapperConstructor`. In the study of docs/evidence.md the enlarged
    network was worse than the plain one when they learnt at the encoder's own rate.

    Args:
        model: Any network, not yet wrapped for several GPUs.
        kernel_size: Side ``K`` of the large kernels, odd; or by patterns of names, the first that fits
            (``{'stages.0.*': 51, '*': 31}``); or by the side of the map (``{56: 51, 28: 49}``, with ``input_size``); or
            a function of name and module, which returns ``None`` to leave it. The default is the largest size that
            lost nothing in the study of docs/evidence.md: 31 lost a little, 51 more.
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
        >>> print(mmpelk.enlarge(network))
        >>> optimizer = torch.optim.AdamW(mmpelk.parameter_groups(network, lr=1e-3))
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
    kept = kept_elsewhere(model)

    def why_not(module: Any, size: int) -> str | None:
        for name, value in module.named_parameters(recurse=False):
            if owners[value] > 1:
                return f'its {name} belongs to another module, too'
        if owner := kept.get(module) or kept.get(module.weight):
            return f'the {owner} keeps it beside its submodules, too, such as in a list'
        return why_not_enlarged(module, size, center_size)

    plans, left = _plans(model, found, kernel_size, why_not, maps, 'enlarged')
    return _replace_all(model, plans, left, maps, partial(_enlarged, center_size=center_size, backend=backend))


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
        return why_no_other_size(conv, size, center_size)

    plans, left = _plans(model, found, kernel_size, why_not, {}, 'made smaller')
    return _replace_all(model, plans, left, {}, partial(_resized, center_size=center_size))


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
        if is_hooked(conv) or not has_plain_weight(conv):
            raise UserError(
                f'{name} has hooks or a weight that is parametrised, pruned, sharded or quantised, which dense would '
                'drop: take that off before'
            )
        if reason := what_would_be_lost(conv):
            raise UserError(f'{name}: {reason}, which dense would drop: take that off before')
        if type(conv).forward is not EnlargedConv2d.forward:
            raise UserError(f'{name}: its class {type(conv).__name__} convolves in a way of its own')
    refuse_holders(value for _, conv in found for value in conv.parameters())
    for name, conv in found:
        if conv not in replaced:
            weight = _new_parameter(conv.weight, expand_kernel(conv.weight.detach(), conv.sharing_grid))
            size = conv.kernel_size, conv.kernel_size
            bias = None if conv.bias is None else _new_parameter(conv.bias)
            replaced[conv] = conv2d(conv.in_channels, size, weight, bias).train(conv.training)
        _replace(model, name, replaced[conv])
        names.append(name)
    return names


@MODELS.register_module()
def Enlarged(backbone: dict[str, Any], **options: Any) -> nn.Module:
    """``type='mmpelk.Enlarged'``: any registered network with its depthwise convolutions enlarged.

    The result is that network itself, so that its names, its ``init_cfg``, its layer decay and its checkpoints stay. It
    is initialised as the plain network.

    mmengine's default constructor trains the new kernels at the full rate, and nothing warns of that: the optimizer is
    not known here. In the study of docs/evidence.md the enlarged network was worse than the plain one at this rate.
    :class:`mmpelk.engine.PeripheralOptimWrapperConstructor` gives the kernels a tenth, and so does
    ``paramwise_cfg=dict(peripheral_lr_mult=0.1)`` of :class:`mmpelk.engine.LayerDecayOptimWrapperConstructor`.

    Args:
        backbone: Config of the network.
        **options: Arguments of :func:`enlarge`; and ``init_cfg``, which takes the place of the network's own.

    Raises:
        UserError: As :func:`enlarge`.

    Example:
        >>> backbone = dict(type='mmpelk.Enlarged', backbone=dict(type='mmdet.CSPNeXt'), kernel_size=15)
        >>> optim_wrapper = dict(constructor='mmpelk.PeripheralOptimWrapperConstructor')
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
        for name, conv in [(name, conv) for name, conv in _enlarged_convs(network) if has_plain_weight(conv)]:
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
    metadata = metadata_of(state, prefix)
    for name, conv in _enlarged_convs(network):
        if (kernel := state.get(f'{prefix}{name}.weight')) is not None:
            conv.refuse_other_kernel(kernel, metadata.get(name, {}), f'{prefix}{name}.')


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
    except Exception as error:  # a network may raise anything
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


def _replace_all(
    model: nn.Module,
    plans: Sequence[tuple[str, Any, int]],
    left: dict[str, str],
    maps: Maps,
    change: Callable[[Any, int], EnlargedConv2d],
) -> Enlargement:
    refuse_holders(value for _, module, _ in plans for value in module.parameters())
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


def _enlarged(module: Any, size: int, center_size: int | None, backend: str | None) -> EnlargedConv2d:
    if isinstance(module, EnlargedConv2d):
        module.backend = backend or module.backend
        return _resized(module, size, center_size)
    rows, columns = module.kernel_size
    with torch.device('meta'):  # whose values are those of the convolution, and no random numbers are drawn
        conv = EnlargedConv2d(
            module.in_channels, size, (rows, columns), center_size, bias=module.bias is not None, backend=backend
        )
    conv.weight = _new_parameter(module.weight, conv.embed(module.weight.detach()))
    if module.bias is not None:
        conv.bias = _new_parameter(module.bias)
    return conv.train(module.training)


def _resized(conv: EnlargedConv2d, size: int, center_size: int | None) -> EnlargedConv2d:
    center = center_size or conv.center_size
    grid = sharing_grid(size, center)
    weight = _new_parameter(conv.weight, cast(Tensor, on_grid(conv, grid)))
    conv.weight = weight
    conv.kernel_size, conv.center_size, conv.sharing_grid = size, center, grid
    return conv


def _new_parameter(parameter: nn.Parameter, values: Tensor | None = None) -> nn.Parameter:
    """A new parameter with the attributes of another; by default with a copy of its values."""
    new = nn.Parameter(parameter.detach().clone() if values is None else values, parameter.requires_grad)
    vars(new).update(vars(parameter))  # such as marks of the toolboxes
    return new


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition('.')
    setattr(model.get_submodule(owner), attribute, module)
