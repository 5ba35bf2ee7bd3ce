"""mmengine's optimizer groups with a lower learning rate for peripheral kernels."""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmpelk.models.learning_rates import PERIPHERAL_LR_MULT, check_factor, peripheral_kernels
from mmpelk.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PeripheralOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's own constructor, with a factor of the learning rate for peripheral kernels.

    ``paramwise_cfg`` takes mmengine's keys and ``peripheral_lr_mult`` (default 0.1), which multiplies the rates that
    the others give: of every kernel in which one number stands for several positions, its centre included.

    Raises:
        ValueError: If the factor is negative or no number, or the optimizer has no ``lr``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = {'peripheral_lr_mult': PERIPHERAL_LR_MULT} | (paramwise_cfg or {})
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        check_factor(paramwise_cfg['peripheral_lr_mult'])
        if self.base_lr is None:
            raise ValueError('optim_wrapper.optimizer has no lr, which peripheral_lr_mult multiplies')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any) -> None:
        """Add a group for each parameter; mmengine calls this for every child, with its prefix."""
        super().add_params(params, module, prefix, **kwargs)
        if not prefix:
            kernels = set(peripheral_kernels(module))
            for group in params:
                if kernels.intersection(group['params']):
                    group['lr'] = group.get('lr', self.base_lr) * self.paramwise_cfg['peripheral_lr_mult']
