"""From a training checkpoint to one for publishing: the weights chosen, the masks folded in, the rest left behind."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmpelk.models.hidden_units import shrink_hidden_units
from mmpelk.models.weights.checkpoint import write_safetensors
from mmpelk.models.weights.facts import facts_of, with_facts

from .masks import fold_masks
from .report import overall_density, state_dict_densities

_RESUME_KEYS = ('optimizer', 'param_schedulers', 'message_hub')


def publish_checkpoint(
    checkpoint: Mapping[str, Any],
    weights: Literal['ema', 'last'] | None = None,
    keep_masks: bool = False,
    keep_optimizer: bool = False,
    shrink: bool = False,
) -> dict[str, Any]:
    """Choose what of a checkpoint is published.

    mmengine's ``EMAHook`` saves the averaged weights as ``state_dict`` and those of the last step as
    ``ema_state_dict``.

    Args:
        checkpoint: As mmengine saved it; it is not changed.
        weights: ``'ema'`` or ``'last'``; None takes the averaged ones if there are any.
        keep_masks: Keep the masks beside the weights, for a sparse fine-tuning. The inactive weights are zero either
            way.
        keep_optimizer: Keep what resuming needs: optimizer, schedulers and the history of the scalars.
        shrink: Take inactive hidden units out of the tensors.

    Returns:
        A checkpoint with ``meta`` (with ``meta['sparsity']``: ``density``, ``masks``, and of a shrunk one
        ``hidden_channels``, the units left in each block) and ``state_dict``.

    Raises:
        ValueError: If the weights asked for are not in the checkpoint, or do not belong to its optimizer state; if it
            is to be shrunk and has no inactive unit.
    """
    if 'state_dict' not in checkpoint:
        raise ValueError(f'no state_dict in the checkpoint: its keys are {list(checkpoint)}. Was it saved by mmengine?')
    averaged = 'ema_state_dict' in checkpoint
    if weights not in ('ema', 'last', None):
        raise ValueError(f"weights must be 'ema' or 'last', but is {weights!r}")
    if weights == 'ema' and not averaged:
        raise ValueError("no averaged weights in the checkpoint: it was trained without EMAHook; take weights='last'")
    state: dict[str, Tensor] = dict(checkpoint['state_dict'])
    if averaged and weights == 'last':
        prefix = 'module.'
        state = {k.removeprefix(prefix): v for k, v in checkpoint['ema_state_dict'].items() if k.startswith(prefix)}
    if keep_optimizer and averaged and weights != 'last':
        raise ValueError("the optimizer state belongs to the weights of the last step: take weights='last' with it")
    if shrink and (keep_masks or keep_optimizer):
        raise ValueError('a shrunk network has neither masks nor the optimizer state of the whole one: leave them out')
    layers = state_dict_densities(state)
    density = overall_density(layers) if layers else 1.0
    folded = fold_masks(state)
    published: dict[str, Any] = {
        'meta': {**checkpoint.get('meta', {}), 'sparsity': {'density': density, 'masks': bool(layers) and keep_masks}},
        'state_dict': {key: folded.get(key, value) for key, value in state.items()} if keep_masks else folded,
    }
    if shrink:
        published['state_dict'], counts = shrink_hidden_units(folded)
        published['meta']['sparsity']['hidden_channels'] = counts
        if not counts:
            raise ValueError(
                "no hidden unit of the checkpoint is inactive, so nothing can be taken out: train with SparsityHook's "
                "granularity='unit', or export without shrinking"
            )
    # Those of the averaged weights are the same.
    published['state_dict'] = with_facts(published['state_dict'], facts_of(checkpoint['state_dict']))
    if keep_optimizer:
        published |= {key: checkpoint[key] for key in _RESUME_KEYS if key in checkpoint}
    return published


def save_pth(published: Mapping[str, Any], path: Path) -> None:
    """Write what :func:`publish_checkpoint` returned as a ``.pth`` that mmengine's ``load_from`` takes."""
    torch.save(dict(published), path)


def save_safetensors(published: Mapping[str, Any], path: Path) -> None:
    """Write the weights as ``.safetensors``, with the density and the data set's ``metainfo`` in its header.

    Raises:
        ValueError: If the package ``safetensors`` is not installed, or if there is an optimizer state, which the
            format cannot hold.
    """
    if 'optimizer' in published:
        raise ValueError('.safetensors holds tensors only: export the optimizer state as .pth')
    meta = published['meta']
    header = {**meta['sparsity'], 'dataset_meta': meta.get('dataset_meta')}
    text = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in header.items()}
    write_safetensors(published['state_dict'], path, text)


def add_hash(path: Path) -> Path:
    """Rename ``model.pth`` to ``model-1234abcd.pth``: the beginning of its SHA-256, as in OpenMMLab's model zoos.

    Returns:
        The new path.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(path.with_name(f'{path.stem}-{digest}{path.suffix}'))
