"""Why a convolution cannot get another kernel: because of its own form, or because another object holds it."""

import gc
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.ops.sharing_grid import expand_kernel, sharing_grid

from ..mixers.base import is_hooked
from ..peripheral_conv import PeripheralConv2d
from .convolution import EnlargedConv2d, has_plain_weight

# Wrappers that keep lists of the parameters that they were built with, which new ones would not reach.
_WRAPPERS = {'DistributedDataParallel', 'FullyShardedDataParallel'}


def why_not_enlarged(module: Any, size: int, center_size: int | None) -> str | None:
    """What keeps a depthwise convolution from being enlarged."""
    if isinstance(module, PeripheralConv2d):
        side = f'{module.kernel_size} x {module.kernel_size}'
        if not isinstance(module, EnlargedConv2d):
            return f'its kernel is peripheral already, {side}'
        if size <= module.kernel_size:
            return f'its kernel of {side} is not smaller than {size}'
        return why_no_other_size(module, size, center_size)
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
        'its weight is parametrised, pruned, sharded or quantised; enlarge it before that': not has_plain_weight(
            module
        ),
        'it has hooks or a forward of its own; remove them before': is_hooked(module),
        str(lost := what_would_be_lost(module)): lost is not None,
        f'its kernel of {kernel[0]} x {kernel[1]} is not smaller than {size}': max(kernel) >= size,
        f'its kernel of {kernel[0]} x {kernel[1]} does not fit the centre of {center_size}': center_size is not None
        and max(kernel) > center_size,
        f'a centre of {center_size} leaves {size} no periphery': center_size is not None and center_size >= size,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def why_no_other_size(conv: EnlargedConv2d, size: int, center_size: int | None) -> str | None:
    """What keeps an enlarged kernel from another size; larger ones hold it if their rings end where its rings end."""
    center = center_size or conv.center_size
    if not has_plain_weight(conv) or conv.weight.is_meta:
        return 'its weight is parametrised, pruned, sharded, quantised or on the meta device'
    if lost := what_would_be_lost(conv):
        return lost  # or would not fit, such as a mask
    if not max(conv.dense_size) <= center < size:
        return f'a centre of {center} does not fit between {max(conv.dense_size)} and {size}; give another center_size'
    if on_grid(conv, sharing_grid(size, center)) is not None:
        return None
    centers = (each for each in range(center + 2, size, 2) if on_grid(conv, sharing_grid(size, each)) is not None)
    if (remedy := next(centers, None)) is not None:
        return f'the rings of {size} cut through the rings of its kernel; center_size={remedy} does not'
    return f'its kernel is not zero outside of {size} x {size}'


def on_grid(conv: EnlargedConv2d, grid: Sequence[int]) -> Tensor | None:
    """The parameters of the same kernel on another grid, ``(C, 1, k', k')``; ``None`` if it is not on that grid."""
    kernel = expand_kernel(conv.weight.detach(), conv.sharing_grid)
    margin = (sum(grid) - conv.kernel_size) // 2
    resized = F.pad(kernel, (margin,) * 4)  # a negative margin cuts
    firsts = torch.tensor(list(accumulate(grid[:-1], initial=0)), device=kernel.device)
    weight = resized.index_select(2, firsts).index_select(3, firsts)
    is_same = torch.equal(F.pad(expand_kernel(weight, grid), (-margin,) * 4), kernel)
    return weight if is_same and torch.equal(expand_kernel(weight, grid), resized) else None


def what_would_be_lost(module: nn.Module) -> str | None:
    """What a convolution has, such as hooks or further parameters, that the module in its place would lack."""
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


def _computes_as_conv2d(module: nn.Module) -> bool:
    """Whether a class convolves as ``nn.Conv2d``; mmcv's wrapper does, beside a case for empty maps."""
    # Private: subclasses may change this step alone.
    if type(module)._conv_forward is not nn.Conv2d._conv_forward:  # type: ignore[attr-defined]
        return False
    forward = type(module).forward
    return forward is nn.Conv2d.forward or forward.__module__ == 'mmcv.cnn.bricks.wrappers'


def kept_elsewhere(model: nn.Module) -> dict[Any, str]:
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


def refuse_holders(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse parameters that an optimizer or a wrapper for several GPUs holds, which would not know of the new ones.

    Raises:
        UserError: It names the remedy.
    """
    replaced = set(parameters)
    if _holder_of(replaced) is None:
        return
    gc.collect()  # the holder may be garbage, which does not count
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
