"""The machine that a config is for, and what fits on it."""

import os
from dataclasses import dataclass

import torch

_GB = 2**30


@dataclass(frozen=True)
class Machine:
    """What a config is fitted to.

    Attributes:
        gpu_memory: Memory of one GPU in GB; 0 means that training runs on the CPU.
        cores: CPU cores.
        name: For the report.
    """

    gpu_memory: float = 0.0
    cores: int = 1
    name: str = 'CPU'

    @classmethod
    def here(cls, gpu_memory: float | None = None) -> 'Machine':
        """This machine, or one with a GPU of so many GB (0: without)."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        if gpu_memory is None and torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            return cls(properties.total_memory / _GB, cores, f'{properties.name}')
        if gpu_memory:
            return cls(gpu_memory, cores, f'a GPU of {gpu_memory:g} GB')
        return cls(0.0, cores, f'CPU with {cores} cores')

    def batch_size(self, per_picture: float, fixed: float, largest: int) -> int:
        """Pictures in a batch: the largest power of two that fits into four fifths of the memory.

        Args:
            per_picture: GB that a picture takes.
            fixed: GB that weights, gradients, optimizer and CUDA itself take.
            largest: Not more than this.
        """
        room, batch = 0.8 * self.gpu_memory - fixed, 2  # batch norm over the pooled map needs two
        while 2 * batch <= largest and 2 * batch * per_picture <= room:
            batch *= 2
        return batch

    @property
    def workers(self) -> int:
        """Processes that load data; on a CPU they would only take the cores from the training."""
        return min(4, max(1, self.cores - 1)) if self.gpu_memory else 0
