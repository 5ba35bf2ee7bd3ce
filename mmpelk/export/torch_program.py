"""A ``torch.export`` program of a network, and its package compiled by AOTInductor: neither needs mmpelk to run."""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpelk.errors import UserError

from .network import ExportedNetwork
from .plain import make_plain

SMALLEST_DYNAMIC = 64
"""Least height and width that a dynamic program takes: its last map is then 2 x 2, and torch.export holds a size of 1
to be another program."""


def export_program(exported: ExportedNetwork, image: Tensor, dynamic: bool = False) -> torch.export.ExportedProgram:
    """A program of torch's own operators.

    Args:
        exported: The network; it is not changed. In half precision where its parameters are.
        image: An input of the size of the program, or with ``dynamic`` any input.
        dynamic: Let batch, height and width vary, from :data:`SMALLEST_DYNAMIC` on.

    Raises:
        UserError: If the image of a dynamic program is too small.
    """
    sides = (1, 2) if exported.takes_pixels else (2, 3)
    if dynamic:
        if min(image.shape[side] for side in sides) < SMALLEST_DYNAMIC:
            raise UserError(
                f'a dynamic program takes images from {SMALLEST_DYNAMIC} x {SMALLEST_DYNAMIC} on; give larger sides '
                'with --shape, or leave --dynamic out'
            )
        image = image[:1].repeat(2, 1, 1, 1)  # a batch of one would be taken for a constant
    network = make_plain(copy.deepcopy(exported.network), None if dynamic else image)
    vary = dict.fromkeys((0, *sides), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of torch about its own deprecations
        return torch.export.export(network, (image,), dynamic_shapes=(vary,) if dynamic else None)


def compile_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compile a program for this machine's processor: a package of machine code, for Python and C++.

    Raises:
        UserError: If there is no C++ compiler, or the compiler cannot compile the program.
    """
    from torch._inductor import aoti_compile_and_package  # documented under this name

    try:
        aoti_compile_and_package(program, package_path=str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f'AOTInductor cannot compile the program: {reason} (it needs a C++ compiler, g++)') from error


def load_program(path: Path, compiled: bool = False) -> Callable[[np.ndarray], Sequence[np.ndarray]]:
    """A saved program, or a compiled package, as a function of one image."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        network: Any
        if compiled:
            network = torch._inductor.aoti_load_package(str(path))
        else:
            network = torch.export.load(path).module()

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [out.numpy() for out in network(torch.from_numpy(image))]

    return run
