"""A lower learning rate for peripheral kernels."""

from collections.abc import Iterator
from typing import Any

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
        ValueError: If a rate is negative.

    Example:
        >>> mmpelk.enlarge(network, 31)
        >>> optimizer = torch.optim.AdamW(mmpelk.parameter_groups(network, lr=1e-3))
    """
    if lr < 0 or peripheral_lr_mult < 0:
        raise ValueError(f'lr and peripheral_lr_mult must not be negative, got {lr} and {peripheral_lr_mult}')
    kernels = list(peripheral_kernels(model))
    among = set(kernels)
    others = [parameter for parameter in model.parameters() if parameter not in among]
    rates = (others, lr), (kernels, lr * peripheral_lr_mult)
    groups = ({'params': [one for one in group if one.requires_grad], 'lr': rate} for group, rate in rates)
    return [group for group in groups if group['params']]
