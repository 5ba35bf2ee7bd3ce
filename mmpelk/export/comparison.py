"""Comparison of an exported file with its network."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .network import ExportedNetwork


@dataclass(frozen=True)
class Comparison:
    """How far a file is from its network on one image, and how fast both are.

    Attributes:
        difference: Largest difference of any output, relative to that output's largest value.
        same_labels: Share of pixels, or images, whose best class agrees; 1 where there are no classes.
        seconds: Seconds that the file takes.
        torch_seconds: Seconds that the network takes in eager torch.
    """

    difference: float
    same_labels: float
    seconds: float
    torch_seconds: float


def compare(run: Callable[[np.ndarray], Sequence[np.ndarray]], exported: ExportedNetwork, image: Tensor) -> Comparison:
    """Run a file and its network on an image, each twice; the second run is timed.

    Args:
        run: Runs the file: from an image to its outputs, in order.
        exported: The network that was exported, in the precision to compare with.
        image: As the file takes it.
    """
    with torch.no_grad():
        wanted = image if image.dtype == torch.uint8 else image.to(next(exported.network.parameters()).dtype)
        want, torch_seconds = _timed(lambda: exported.network(wanted))
        got, seconds = _timed(lambda: run(image.numpy()))
    floats = [
        (np.asarray(out, np.float64), out_want.double().numpy())
        for out, out_want in zip(got, want, strict=True)
        if out_want.is_floating_point()
    ]
    difference = float(np.max([np.abs(out - out_want).max() / np.abs(out_want).max() for out, out_want in floats]))
    same = 1.0
    if exported.task == 'segmentation':
        same = float((got[1] == want[1].numpy()).mean())
    elif exported.task == 'classification':
        same = float((floats[0][0].argmax(1) == floats[0][1].argmax(1)).mean())
    return Comparison(difference, same, seconds, torch_seconds)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    call()
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def in_half(exported: ExportedNetwork) -> ExportedNetwork:
    """A copy in half precision; the transforms of large kernels stay in float32 inside."""
    return replace(exported, network=copy.deepcopy(exported.network).half())
