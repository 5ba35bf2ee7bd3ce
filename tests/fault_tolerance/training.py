"""Trainings in processes that have everything imported already: they start in tenths of a second."""

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import OPTIM_WRAPPERS

from tests.commands import load_tool
from tests.paths import TOOLS

# Once, in the server that the processes are forked from. It has computed nothing yet, which torch asks for.
PRELOADED = ['tests.fault_tolerance.training', 'mmpelk.models', 'mmpelk.engine']
TOOLBOXES = dict(
    seg=['mmseg.models', 'mmseg.datasets', 'mmseg.engine', 'mmseg.evaluation', 'mmseg.visualization'],
    det=['mmdet.models', 'mmdet.datasets', 'mmdet.engine', 'mmdet.evaluation', 'mmdet.visualization'],
    cls=['mmpretrain.models', 'mmpretrain.datasets', 'mmpretrain.engine', 'mmpretrain.visualization'],
)
LOST = 'error: another process has ended or does not answer'


@dataclass
class Running:
    """The processes of a training, and where each writes what it prints."""

    processes: list[ForkServerProcess]
    logs: list[Path]

    def wait(self, timeout: float = 300) -> list[int]:
        """Exit codes, once all have ended; a signal is its negative number."""
        for process in self.processes:
            process.join(timeout)
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, f'{len(hanging)} processes hang:\n{self.printed()[-3000:]}'
        return [process.exitcode or 0 for process in self.processes]

    def wait_for(self, fact: Callable[[], bool], step: float = 0.01) -> None:
        """Until something is so, as long as any of them is there."""
        while not fact():
            assert any(process.is_alive() for process in self.processes), self.printed()[-3000:]
            time.sleep(step)

    def kill(self, number: signal.Signals = signal.SIGKILL, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to all of them, or to some."""
        for rank, process in enumerate(self.processes):
            if (ranks is None or rank in ranks) and process.is_alive():
                os.kill(process.pid or 0, number)

    def printed(self) -> str:
        return '\n'.join(log.read_text(errors='replace') for log in self.logs if log.exists())


class Signalled(Hook):
    """Sends a signal to one process after an iteration.

    Args:
        rank: Of the process.
        iteration: The first is 1.
        number: Of the signal.
    """

    priority = 'VERY_LOW'

    def __init__(self, rank: int, iteration: int, number: int) -> None:
        self.rank, self.iteration, self.number = rank, iteration, number

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if (runner.iter + 1, int(os.environ['RANK'])) == (self.iteration, self.rank):
            os.kill(os.getpid(), self.number)


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's wrapper, which asks for a GPU, with torch's gradient scaler of the CPU."""

    def __init__(self, **options: Any) -> None:
        import torch

        scaler = mock.patch.object(
            amp_optimizer_wrapper, 'GradScaler', lambda **options: torch.amp.GradScaler('cpu', **options)
        )
        with mock.patch.object(amp_optimizer_wrapper, 'is_cuda_available', return_value=True), scaler:
            super().__init__(**options)


def preload(*tasks: str) -> None:
    """Say what the trainings to come need; it counts before the first of them."""
    modules = [module for task in tasks or TOOLBOXES for module in TOOLBOXES[task]]
    multiprocessing.get_context('forkserver').set_forkserver_preload([*PRELOADED, *modules])


def start(folder: Path, words: Sequence[object], ranks: int = 1, tool: str = 'train.py', port: int = 0) -> Running:
    """Start ``tools/train.py`` with arguments, as a launcher would.

    Args:
        folder: To run in.
        words: The arguments.
        ranks: Processes.
        tool: Or another tool.
        port: TCP port to meet at, needed for several.
    """
    context = multiprocessing.get_context('forkserver')
    logs = [folder / f'rank{rank}.log' for rank in range(ranks)]
    arguments = [str(word) for word in words] + (['--launcher', 'pytorch'] if ranks > 1 else [])
    processes = [
        context.Process(target=_run, args=(rank, ranks, port, str(folder), arguments, tool, str(logs[rank])))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return Running(processes, logs)


def _run(rank: int, ranks: int, port: int, folder: str, words: list[str], tool: str, log: str) -> None:
    import torch
    from mmengine.config import Config

    torch.set_num_threads(1)
    # mmengine formats the config for each checkpoint, and collects garbage for each data set, among all that was
    # imported: both take longer than an iteration of these.
    Config.pretty_text = property(lambda cfg: repr(cfg.to_dict()))
    gc.freeze()
    os.chdir(folder)
    with open(log, 'a', encoding='utf-8') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), OMP_NUM_THREADS='1')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    sys.argv = [tool, *words]
    # A fork server's process begins with the numbers of the server, which are the same for all.
    torch.seed()
    main: Any = load_tool(TOOLS / tool).main
    main()


def difference(first: Any, second: Any) -> list[str]:
    """Where two checkpoints differ, to the bit; times, names and paths are left out."""
    one, other = dict(_leaves(first)), dict(_leaves(second))
    return sorted(key for key in one.keys() | other.keys() if one.get(key, '') != other.get(key, ''))


def _leaves(value: Any, at: str = '') -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Paths of what a checkpoint holds, and its type, kind, shape and bits."""
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    inner: Any = None
    if isinstance(value, HistoryBuffer):
        inner = enumerate(map(list, value.data))
    elif isinstance(value, dict):
        inner = ((key, each) for key, each in value.items() if not _is_of_the_process(str(key)))
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    if inner is not None:
        yield f'{at}/', (type(value),)  # what is empty is there, too
        for key, each in inner:
            yield from _leaves(each, f'{at}/{key!r}')
    elif isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().view(-1)
        bits = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b''
        yield at, (type(value), value.dtype, value.shape, bits)
    elif isinstance(value, np.ndarray):
        yield at, (type(value), value.dtype, value.shape, value.tobytes())
    else:
        yield at, (type(value), repr(value))  # NaN is itself


# What differs between processes: clocks, paths, names of files, and the density, which is logged at every start.
_OF_THE_PROCESS = ('time', 'experiment_name', 'density', 'cfg', 'eta', 'memory')
_OF_THE_PROCESS += ('_ckpt', 'keep_ckpt_ids', 'interrupted', 'run_id')


def _is_of_the_process(key: str) -> bool:
    return any(word in key for word in _OF_THE_PROCESS)
