"""What the MM training loop needs from us: optimizer groups, training without a GPU, and that nothing is lost."""

from .checkpoint_hook import CheckpointHook
from .distributed import CPUDistributedDataParallel, adapt_to_machine
from .divergence import DivergenceHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .preemption import PreemptionHook
from .resume import ResumeHook

__all__ = [
    'CPUDistributedDataParallel',
    'CheckpointHook',
    'DivergenceHook',
    'LayerDecayOptimWrapperConstructor',
    'PreemptionHook',
    'ResumeHook',
    'adapt_to_machine',
]
