"""What the MM training loop needs from us: optimizer groups, training without a GPU, and word of how it goes."""

from .distributed import CPUDistributedDataParallel, adapt_to_machine
from .layer_decay import LayerDecayOptimWrapperConstructor
from .progress import ProgressLineHook, RunEstimateHook
from .progress_picture import ProgressPictureHook

__all__ = [
    'CPUDistributedDataParallel',
    'LayerDecayOptimWrapperConstructor',
    'ProgressLineHook',
    'ProgressPictureHook',
    'RunEstimateHook',
    'adapt_to_machine',
]
