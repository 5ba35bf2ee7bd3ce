"""Checkpoints that would run code, in as many ways as a pickle knows."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


class _Calls:
    """What pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __call__(self) -> None:  # pickle insists that what is called can be
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def payloads(marker: Path) -> dict[str, Any]:
    """Objects that create ``marker`` when they are unpickled."""
    code = f'open({str(marker)!r}, "w")'
    return {
        'system': _Calls(os.system, f'touch {marker}'),
        'open': _Calls(open, str(marker), 'w'),
        'eval': _Calls(eval, code),
        'exec': _Calls(exec, code),
        'getattr': _Calls(_Calls(getattr, _Calls(__import__, 'builtins'), 'eval'), code),
        'import': _Calls(_Calls(getattr, _Calls(__import__, 'os'), 'mkdir'), str(marker)),
        'setattr': _Calls(setattr, argparse.Namespace, '__init__', None),
        'module': nn.Linear(2, 2),
    }


def write(path: Path, payload: Any, **options: Any) -> Path:
    """A checkpoint like mmengine's with something more in its ``meta``."""
    weights = {'backbone.stem.weight': torch.ones(2, 3, 4, 4)}
    content = {'meta': {'epoch': 1, 'iter': 4, 'note': payload}, 'state_dict': weights, 'message_hub': {}}
    torch.save(content, path, **options)
    return path
