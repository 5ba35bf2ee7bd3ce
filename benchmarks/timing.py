"""Interleaved timing and peak memory."""

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

_SINGLE_CALL_FROM = 4.0  # seconds from which on a call is not repeated
_LEAST_SECONDS = 0.5  # seconds that the rounds take together, so that short calls are repeated often


Name = TypeVar('Name', bound=Hashable)

LAYOUTS = {'channels first': torch.contiguous_format, 'channels last': torch.channels_last}
"""The memory formats of maps and weights that networks are measured in."""


def synchronize(device: str) -> None:
    """Wait for the device to finish, before a clock is read."""
    if device == 'cuda':
        torch.cuda.synchronize()


def _seconds(function: Callable[[], Any], device: str) -> float:
    if device == 'cuda':
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3
    start_time = time.perf_counter()
    function()
    return time.perf_counter() - start_time


def interleaved_medians(functions: Mapping[Name, Callable[[], Any]], device: str, rounds: int) -> dict[Name, float]:
    """Median seconds of each function, the functions taking turns so that a drifting clock rate affects all alike.

    Every function runs once to warm up, which compiles and plans and counts for nothing. One whose second call takes
    seconds is not run again and counts with that one. Where a round takes milliseconds, there are more rounds than
    asked for, up to 200.

    Args:
        functions: Calls by name, a string or for instance that of a network and a layout; all run on ``device``.
        device: ``'cpu'`` or ``'cuda'``.
        rounds: How often each function runs after the warm-up, at least.

    Returns:
        Seconds by name, in the order of ``functions``.
    """
    times: dict[Name, list[float]] = {}
    slow: set[Name] = set()
    round_seconds = 1e-9
    for name, function in functions.items():
        function()
        synchronize(device)
        first = _seconds(function, device)
        times[name] = [first] if first > _SINGLE_CALL_FROM else []
        if times[name]:
            slow.add(name)
        else:
            round_seconds += first
    for _ in range(max(rounds, min(200, int(_LEAST_SECONDS / round_seconds)))):
        for name, function in functions.items():
            if name not in slow:
                times[name].append(_seconds(function, device))
    return {name: statistics.median(values) for name, values in times.items()}


def faster_layouts(seconds: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """The layout of :data:`LAYOUTS` that each network is fastest in, from seconds by network and layout."""
    networks = dict.fromkeys(network for network, _ in seconds)
    return {each: min((key for key in seconds if key[0] == each), key=seconds.__getitem__)[1] for each in networks}


def peak_memory(function: Callable[[], Any], device: str) -> int | None:
    """Bytes that a call needs on top of what was allocated before it; ``None`` where the system has no such figure.

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
        Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')  # resets the peak that VmHWM reports
    except OSError:
        return None
    before = _proc_status('VmRSS')
    function()
    return max(0, _proc_status('VmHWM') - before)


def _proc_status(field: str) -> int:
    match = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text(encoding='utf-8'))
    assert match, field
    return int(match.group(1)) * 1024
