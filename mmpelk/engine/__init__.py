"""What the MM training loop needs from us: optimizer groups, distributed training without a GPU."""

from .distributed import CPUDistributedDataParallel, adapt_to_machine
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['CPUDistributedDataParallel', 'LayerDecayOptimWrapperConstructor', 'adapt_to_machine']
