"""What the benchmarks share beyond :mod:`mmpelk.analysis.timing`: peak memory, and where results go."""

import ctypes
import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / 'results'


def peak_memory(function: Callable[[], Any], device: str) -> int | None:
    """Bytes that a call needs on top of what was allocated before it; ``None`` where the system does not tell.

    On a CPU this is the growth of the resident set (Linux), which has a granularity of some hundred kilobytes.
    """
    gc.collect()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak that VmHWM reports
    except OSError:
        return None
    before = _proc_status('VmRSS')
    function()
    return max(0, _proc_status('VmHWM') - before)


def _proc_status(field: str) -> int:
    match = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    assert match, field
    return int(match.group(1)) * 1024


def save(name: str, data: Any) -> Path:
    """Write a result as JSON beside the benchmarks and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f'{name}.json'
    path.write_text(json.dumps(data, indent=1) + '\n')
    return path
