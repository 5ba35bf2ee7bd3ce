"""Which checkpoint a training goes on from, and which it must not."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .safe_loading import CheckpointError, check_integrity, load_data

RUN_ID = 'run_id'
"""Name of the file in a work folder, and of the entry of checkpoints, that tell one training from another."""

ANCESTORS = 'run_id_ancestors'
"""Name of the entry of checkpoints that tells which runs the training was before, each up to an iteration."""
_NO_ID = '-'


@dataclass
class Run:
    """A training, which may have branched off others.

    Attributes:
        id: Its id, if it has one.
        ancestors: Ids of the runs that it continues, and the last iteration of each that belongs to it as well.
    """

    id: str | None = None
    ancestors: dict[str, int] = field(default_factory=dict)

    def branch(self, run_id: str, iteration: int) -> 'Run':
        """The run that goes on from an iteration of this one under an id of its own."""
        return Run(run_id, {**self.ancestors, self.id or _NO_ID: iteration})

    def has(self, other: str | None, iteration: int) -> bool:
        """Whether a checkpoint that a run wrote at an iteration is of this training."""
        return iteration <= {**self.ancestors, self.id or _NO_ID: math.inf}.get(other or _NO_ID, -math.inf)

    def text(self) -> str:
        """As the file ``run_id`` holds it: the id, and a line for each ancestor."""
        return '\n'.join([self.id or _NO_ID, *(f'{key} {value}' for key, value in self.ancestors.items())])


@dataclass
class Newest:
    """Result of :func:`find_newest`.

    Attributes:
        path: The checkpoint to go on from, if there is one.
        skipped: A sentence about each newer file that is damaged, or not of this training.
        damaged: How many of them are of this training.
        run: The training.
    """

    path: str | None
    skipped: list[str]
    damaged: int
    run: Run


def run_of(checkpoint: dict[str, Any]) -> Run:
    """The run that a checkpoint names; entries of another form are ignored."""
    run_id, ancestors = checkpoint.get(RUN_ID), checkpoint.get(ANCESTORS)
    pairs = ancestors.items() if isinstance(ancestors, dict) else ()
    known = {
        key: value
        for key, value in pairs
        if (key == _NO_ID or _is_run_id(key)) and type(value) is int and value < 2**48
    }
    return Run(run_id if _is_run_id(run_id) else None, known)


def _is_run_id(value: object) -> bool:
    """Whether a value has the form of a run's id."""
    return isinstance(value, str) and re.fullmatch('[0-9a-f]{32}', value) is not None


def find_newest(paths: Iterable[Path], folder: Path, network: nn.Module) -> Newest:
    """The checkpoint of the highest iteration that the training in a folder can be resumed from.

    The training is the one whose id is in the folder's file ``run_id``, else the one of the checkpoint that
    ``last_checkpoint`` names. Checkpoints of the runs that it branched off count up to where it did. Without ids, those
    that are newer than the named one count if they were written after it was named.

    Args:
        paths: Files to choose from.
        folder: The work folder.
        network: What is to be trained on.
    """
    pointer, known, skipped = folder / 'last_checkpoint', [], []
    # Only the name counts: a folder may have been moved or copied.
    named = Path(pointer.read_text(encoding='utf-8', errors='replace').strip()).name if pointer.is_file() else ''
    run = _read_run(folder)
    damaged = 0
    for path in paths:
        try:
            content = load_data(path, 'meta')
            known.append((content['meta']['iter'], path, run_of(content)))
        except CheckpointError as error:
            skipped.append(str(error))
            damaged += 1
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            skipped.append(f"'{path}' was not written by a training")
            damaged += 1
    if named and not any(path.name == named for path in paths):
        skipped.append(f"'{named}', which last_checkpoint names, is not there")
        damaged += 1
    at = next((each for each in known if each[1].name == named), None)
    if run is None and (at or known):
        run = (at or max(known, key=_iteration))[2]
    run = run or Run()
    for each in sorted(known, key=_iteration, reverse=True):
        _, path, its_run = each
        if not run.has(its_run.id, _iteration(each)):
            skipped.append(f"'{path}' is of another training, which was in this folder before")
        elif (
            at
            and its_run.id is None
            and _iteration(each) > _iteration(at)
            and path.stat().st_mtime_ns < pointer.stat().st_mtime_ns
        ):
            skipped.append(
                f"'{path}' is older than '{at[1]}', which last_checkpoint names, although of a later iteration"
            )
        elif fault := find_fault(path, network):
            skipped.append(fault)
            damaged += 1
        else:
            return Newest(str(path), skipped, damaged, run)
    return Newest(None, skipped, damaged, run)


def _read_run(folder: Path) -> Run | None:
    path = folder / RUN_ID
    run_id, *lines = path.read_text(encoding='utf-8', errors='replace').splitlines() or [''] if path.is_file() else ['']
    pairs = [re.fullmatch(r'(\S+) (\d{1,15})', line) for line in lines]
    run = run_of({RUN_ID: run_id.strip(), ANCESTORS: {pair[1]: int(pair[2]) for pair in pairs if pair}})
    return run if run.id else None


def _iteration(known: tuple[Any, ...]) -> int:
    return known[0] if type(known[0]) is int else -1


def find_fault(path: str | Path, network: nn.Module) -> str | None:
    """Why a training of a network cannot resume from a checkpoint, or None."""
    try:
        content = load_data(path, 'meta')
        check_integrity(path)
    except CheckpointError as error:
        return str(error)
    return fault_of(content, path, network)


def fault_of(content: Any, name: object, network: nn.Module) -> str | None:
    """:func:`find_fault` of what was read; ``name`` is for the message."""
    parts = {'meta', 'state_dict', 'message_hub', 'optimizer'}
    if not isinstance(content, dict) or not parts <= content.keys():
        return f"'{name}' is no checkpoint to resume from: it lacks the optimizer. Load it with load_from instead"
    meta, weights, hub, state = content['meta'], content['state_dict'], content['message_hub'], content.get('run_state')
    dicts = {key: content[key] for key in (*sorted(parts), 'run_state', 'ema_state_dict') if key in content}
    if isinstance(hub, dict):
        dicts |= {f'message_hub.{key}': hub.get(key) for key in ('log_scalars', 'runtime_info', 'resumed_keys')}
    for key, value in dicts.items():
        if not isinstance(value, dict):
            return f"'{name}' is no checkpoint to resume from: its {key} is of type {type(value).__name__}"
        if key not in ('meta', 'optimizer', 'run_state') and not all(isinstance(each, str) for each in value):
            return f"'{name}' is no checkpoint to resume from: its {key} has a key that is no text"
        if key == 'message_hub.resumed_keys' and not all(isinstance(each, bool) for each in value.values()):
            return f"'{name}' is no checkpoint to resume from: its {key} has a value that is not true or false"
    numbers = {f'meta.{key}': (meta.get(key), most) for key, most in dict(epoch=2**48, iter=2**48, seed=2**32).items()}
    if state is not None:
        if not isinstance(state.get('ranks'), list) or not all(isinstance(each, dict) for each in state['ranks']):
            return f"'{name}' is no checkpoint to resume from: its run_state.ranks is no list of random states"
        limits = dict(batches=2**48, place=2**48, sampler_seed=2**63)
        numbers |= {f'run_state.{key}': (state.get(key), most) for key, most in limits.items()}
    for key, (value, most) in numbers.items():
        if value is None and key.endswith('seed'):
            continue
        if type(value) is not int or not (key == 'run_state.batches') <= value < most:
            # Not its value, which may be of any length.
            kind = 'a negative one' if type(value) is int and value < 0 else f'of type {type(value).__name__}'
            return f"'{name}' is no checkpoint to resume from: its {key} is {kind}, not a number from 0 on"
    buffers = dict(network.named_buffers())
    for key, tensor in {**dict(network.named_parameters()), **buffers}.items():
        found = weights.get(key, weights.get(f'module.{key}'))
        if key in buffers and (found is None or tensor.dtype == torch.bool):
            continue  # what is not saved, and masks, which the hook that draws them judges
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            shape = 'nothing' if found is None else f'shape {tuple(getattr(found, "shape", ()))}'
            return f"'{name}' is of another network: {key} has shape {tuple(tensor.shape)} here, {shape} there"
    return None


def misfit_of(content: Mapping[str, Any], optimizers: Any, schedulers: Any) -> str | None:
    """Why the optimizers and schedulers of a training do not take the states in a checkpoint, or None.

    mmengine and torch take over any state, and fail at the first step, if at all.

    Args:
        content: Content of the checkpoint.
        optimizers: mmengine's wrapper of an optimizer, or of several by name.
        schedulers: A list, or lists by the name of the optimizer.
    """
    pairs = [('optimizer', content['optimizer'], optimizers)]
    if not hasattr(optimizers, 'optimizer'):
        pairs = [(f'optimizer.{name}', content['optimizer'].get(name), each) for name, each in optimizers.items()]
    for name, state, wrapper in pairs:
        groups = state.get('param_groups') if isinstance(state, dict) else None
        own = wrapper.optimizer.param_groups
        if not isinstance(groups, list) or [_length(group) for group in groups] != [_length(group) for group in own]:
            return f'its {name} is of other groups of parameters: keep paramwise_cfg and what is frozen as they were'
        for here, there in zip(own, groups, strict=True):
            if wrong := _other_kind(here, there):
                return f'its {name} has {wrong} of another type'
        moments = state.get('state')
        if not isinstance(moments, dict) or not all(map(_is_numbers, moments.values())):
            return f'its {name} has a state that does not consist of numbers'
        scaler, base = state.get('loss_scaler', {}), state.get('base_param_settings') or dict(lr=0.0)
        numbers = [*scaler.values(), base.get('lr')] if isinstance(scaler, dict) and isinstance(base, dict) else [None]
        if not all(isinstance(value, Real) for value in numbers):
            return f'the scale or the rate of its {name} is no number'
    if schedulers is None or content.get('param_schedulers') is None:
        return None
    saved = content['param_schedulers']
    lists = schedulers if isinstance(schedulers, dict) else {'': schedulers}
    for name, each in lists.items():
        states = (saved.get(name) if isinstance(saved, dict) else None) if name else saved
        if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
            return 'its param_schedulers are not those of this config'
        for scheduler, state in zip(each, states, strict=False):
            shadowed = [key for key in state if not isinstance(key, str) or hasattr(type(scheduler), key)]
            if wrong := next(iter(shadowed), None) or _other_kind(vars(scheduler), state):
                return f'its param_schedulers have {wrong!r:.80} of another type'
    return None


def _length(group: Any) -> int:
    return len(group['params']) if isinstance(group, dict) and isinstance(group.get('params'), list) else -1


def _is_numbers(value: Any) -> bool:
    """Whether there are only numbers and tensors in it, as in what an optimizer keeps of a parameter."""
    if isinstance(value, dict | list | tuple):
        return all(map(_is_numbers, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, Real | Tensor)


def _other_kind(here: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """The first entry that is of another kind than the one that it would replace."""
    return next((key for key, value in there.items() if key in here and not _is_like(here[key], value)), None)


def _is_like(here: Any, there: Any) -> bool:
    if isinstance(here, list | tuple):
        length = len(here) if isinstance(here, tuple) else None
        fits = isinstance(there, list | tuple) and length in (None, len(there))
        return fits and all(_is_like(here[0], each) for each in there) if here else fits
    if isinstance(here, Real):
        return isinstance(there, Real | Tensor) or (isinstance(here, bool) and there is None)
    return isinstance(there, str | dict) == isinstance(here, str | dict) if here is not None else True
