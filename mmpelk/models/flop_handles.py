"""Handles of the operator for FLOP counters that trace with ``torch.jit``."""

import functools
import math
from typing import Any


def _dense_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """``torch.jit`` values of the operator's inputs to the multiply-adds of its dense form."""
    batch, _, height, width = inputs[0].type().sizes()
    channels = inputs[1].type().sizes()[0]  # of the weight: others pass
    grid = [int(ring.toIValue()) for ring in inputs[3].node().inputs()]
    return math.prod((batch, channels, height, width)) * sum(grid) ** 2


#: For ``FlopCountAnalysis(...).set_op_handle(**FLOP_HANDLES)`` of fvcore. mmengine has them once a network is built.
FLOP_HANDLES = {'mmpelk::peripheral_conv2d': _dense_flops}


@functools.cache
def register_flop_handles() -> None:
    """Put the operator into mmengine's tables, from which the toolboxes' ``get_flops.py`` count.

    Entries of our operator's name alone are added. Building a network does it, importing the package does not.
    """
    # Private: mmengine has no public way to add to them, and its commands take no handles.
    from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_ACT_OPS, _DEFAULT_SUPPORTED_FLOP_OPS
    from mmengine.analysis.jit_handles import generic_activation_jit

    for name, handle in FLOP_HANDLES.items():
        _DEFAULT_SUPPORTED_FLOP_OPS.setdefault(name, handle)
        _DEFAULT_SUPPORTED_ACT_OPS.setdefault(name, generic_activation_jit())
