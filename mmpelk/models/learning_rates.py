"""A lower learning rate for peripheral kernels."""

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from .peripheral_conv import PeripheralConv2d

#: Factor of the learning rate for kernels that were enlarged; chosen in docs/evidence.md, on validation pictures.
PERIPHERAL_LR_MULT = 0.1


def peripheral_kernels(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of kernels in which one number stands for several positions; biases are not among them."""
    seen = set()
    for module in model.modules():
        if isinstance(module, PeripheralConv2d) and max(module.sharing_grid) > 1:
            for name, parameter in module.named_parameters():  # of a parametrised or pruned weight, too
                if name != 'bias' and parameter not in seen:
                    seen.add(parameter)
                    yield parameter


def check_factor(peripheral_lr_mult: object) -> None:
    """Refuse what is no factor of a learning rate.

    Raises:
        ValueError: If it is negative, not finite or not a number.
    """
    is_number = isinstance(peripheral_lr_mult, int | float) and not isinstance(peripheral_lr_mult, bool)
    if not is_number or not 0 <= cast(float, peripheral_lr_mult) < float('inf'):
        raise ValueError(f'peripheral_lr_mult is a finite number that is not negative, got {peripheral_lr_mult!r}')


def parameter_groups(
    model: nn.Module, lr: float, peripheral_lr_mult: float = PERIPHERAL_LR_MULT
) -> list[dict[str, Any]]:
    """Two groups for an optimizer of torch: peripheral kernels at a lower rate, all other parameters at the full one.

    One number of an outer region moves many positions of the kernel, so that an adaptive optimizer changes the function
    by as many times more. Frozen parameters are left out.

    Args:
        model: A network after :func:`mmpelk.enlarge`, or any with peripheral convolutions.
        lr: The rate of the other parameters.
        peripheral_lr_mult: Factor for the peripheral kernels, centres included.

    Raises:
        ValueError: If a rate is negative, or the factor no finite number.

    Example:
        >>> mmpelk.enlarge(network, 31)
        >>> optimizer = torch.optim.AdamW(mmpelk.parameter_groups(network, lr=1e-3))
    """
    check_factor(peripheral_lr_mult)
    if lr < 0:
        raise ValueError(f'lr must not be negative, got {lr}')
    kernels = list(peripheral_kernels(model))
    among = set(kernels)
    others = [parameter for parameter in model.parameters() if parameter not in among]
    rates = (others, lr), (kernels, lr * peripheral_lr_mult)
    groups = ({'params': [one for one in group if one.requires_grad], 'lr': rate} for group, rate in rates)
    return [group for group in groups if group['params']]
