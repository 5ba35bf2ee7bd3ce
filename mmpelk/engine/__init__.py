"""What the MM training loop needs from us: optimizer groups, no GPU, word of how it goes, and that nothing is lost."""

from .checkpoint_hook import CheckpointHook
from .distributed import CPUDistributedDataParallel, adapt_to_machine
from .divergence import DivergenceHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .preemption import PreemptionHook
from .progress import ProgressLineHook, RunEstimateHook
from .progress_picture import ProgressPictureHook
from .resume import ResumeHook
from .samples import CheckDataHook

__all__ = [
    'CPUDistributedDataParallel',
    'CheckDataHook',
    'CheckpointHook',
    'DivergenceHook',
    'LayerDecayOptimWrapperConstructor',
    'PreemptionHook',
    'ProgressLineHook',
    'ProgressPictureHook',
    'ResumeHook',
    'RunEstimateHook',
    'adapt_to_machine',
]
