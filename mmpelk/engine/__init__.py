"""Parts for the training loop of mmengine: optimizer groups, training without a GPU, progress, fault tolerance."""

from mmpelk.fault_tolerance.checkpoint_hook import CheckpointHook
from mmpelk.fault_tolerance.divergence import DivergenceHook
from mmpelk.fault_tolerance.preemption import PreemptionHook
from mmpelk.fault_tolerance.resume import ResumeHook
from mmpelk.fault_tolerance.samples import CheckDataHook
from mmpelk.registry import HOOKS

from .distributed import CPUDistributedDataParallel, adapt_to_machine
from .layer_decay import LayerDecayOptimWrapperConstructor
from .peripheral_rate import PeripheralOptimWrapperConstructor
from .progress import ProgressLineHook, RunEstimateHook
from .progress_picture import ProgressPictureHook

__all__ = [
    'CPUDistributedDataParallel',
    'CheckDataHook',
    'CheckpointHook',
    'DivergenceHook',
    'LayerDecayOptimWrapperConstructor',
    'PeripheralOptimWrapperConstructor',
    'PreemptionHook',
    'ProgressLineHook',
    'ProgressPictureHook',
    'ResumeHook',
    'RunEstimateHook',
    'adapt_to_machine',
]

# Here, because the room of fault tolerance knows nothing of our registries.
for _hook in (CheckpointHook, ResumeHook, DivergenceHook, PreemptionHook, CheckDataHook):
    HOOKS.register_module(module=_hook)
