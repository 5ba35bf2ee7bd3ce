"""Names and checks of checkpoints, with messages that name the remedy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.model import PretrainedInit
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint

from ..hidden_units import fit_all_hidden_units
from .facts import facts_of, with_facts

MASK_SUFFIX = '_mask'
"""End of the name of a weight's sparsity mask, a buffer beside it."""

_SHOWN = 4  # names printed of a long list


def shorten(names: list[str]) -> str:
    """The first few of a list of names, and how many more there are."""
    more = f', and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def pretrained_cfgs(init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The parts of an ``init_cfg`` that load weights, however it is spelt: alone or in a list, by name or by class."""
    if init_cfg is None:
        return []
    cfgs: list[Any] = list(init_cfg) if isinstance(init_cfg, list | tuple) else [init_cfg]
    if not all(isinstance(cfg, Mapping) for cfg in cfgs):
        raise TypeError(
            f'init_cfg is a dict, a list of dicts or None, got {init_cfg!r}; weights are loaded by '
            "dict(type='Pretrained', checkpoint=...)"
        )
    kinds = ('Pretrained', 'mmengine.Pretrained', PretrainedInit)
    return [dict(cfg) for cfg in cfgs if cfg.get('type') in kinds]


def state_dict_of(content: Any, name: str | Path = 'the checkpoint') -> dict[str, Tensor]:
    """The weights in the content of a checkpoint, without what wraps them.

    They stand under ``state_dict`` (OpenMMLab, Lightning), ``model`` (ConvNeXt, SLaK, DeiT) or by themselves (timm,
    torchvision); the prefix ``module.`` of data-parallel wrappers is cut off.

    Raises:
        UserError: If it holds no tensors.
    """
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    entries = content if isinstance(content, Mapping) else {}
    weights = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    prefix = 'module.' if all(key.startswith('module.') for key in weights) else ''
    if not weights:
        raise UserError(f"'{name}' holds no weights: neither it nor its 'state_dict' or 'model' has tensors")
    weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return with_facts(weights, facts_of(entries, prefix))


def backbone_state_dict(path: str, prefix: str | None = None) -> dict[str, Tensor]:
    """State dict in a checkpoint file, of the keys under ``prefix``, which is cut off.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If no key begins with ``prefix``.
    """
    if '://' not in path and not Path(path).expanduser().is_file():
        raise FileNotFoundError(
            f"pretrained weights '{path}' do not exist. Put the checkpoint there, give another with "
            '--cfg-options model.backbone.init_cfg.checkpoint=PATH, or train from scratch with '
            '--cfg-options model.backbone.init_cfg=None'
        )
    prefix = prefix or ''
    if prefix and not prefix.endswith('.'):  # as mmengine reads it
        prefix += '.'
    state = state_dict_of(read_checkpoint(path), path)
    found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise UserError(
            f"no key of '{path}' begins with '{prefix}'; its keys look like {shorten(list(state))}. "
            'Set init_cfg.prefix to what stands before the backbone there'
        )
    return with_facts(found, facts_of(state, prefix))


def check_pretrained(backbone: nn.Module, path: str, prefix: str = '') -> dict[str, Tensor]:
    """Check that a checkpoint fits a backbone before it is loaded into it.

    A shrunk one (``tools/export_dense.py --shrink``) fits: the backbone becomes as narrow in place.

    The norms of the output stages (``norm0`` to ``norm3``) may be absent, since classification trains only the last,
    and so may sparsity masks, which the sparsity hook judges; what the checkpoint holds beyond the backbone's own keys
    is left alone.

    Returns:
        What the checkpoint holds for the backbone.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If keys of the backbone are missing or have other shapes.
    """
    state = backbone_state_dict(path, prefix)
    remedy = (
        'Take the checkpoint of the same arch, kernel sizes and positional_embedding, in the same (trained or '
        'deployed) form'
    )
    fit_all_hidden_units(backbone, state)
    refuse_misfit(backbone.state_dict(), state, f"'{path}'", remedy)
    return state


def refuse_misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str, remedy: str) -> None:
    """Refuse weights that lack keys of a backbone, but for output norms and masks, or have other shapes.

    Raises:
        ValueError: It begins with ``name`` and ends with ``remedy``.
    """
    missing = [key for key in own if key not in state and not key.startswith('norm') and not key.endswith(MASK_SUFFIX)]
    shapes = [
        f'{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}'
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or shapes:
        problems = [f'misses {shorten(missing)}'] if missing else []
        problems += [f'has {shorten(shapes)}'] if shapes else []
        raise UserError(f'{name} does not fit this backbone: it {" and ".join(problems)}. {remedy}')


def write_safetensors(state: Mapping[str, Tensor], path: str | Path, header: Mapping[str, str] | None = None) -> None:
    """Write tensors and facts of a state dict as ``.safetensors``, with further texts in its header.

    Raises:
        UserError: If the package ``safetensors`` is not installed.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise UserError('writing .safetensors takes the package safetensors: pip install safetensors') from error
    # Clones: the format refuses tensors that share memory, such as tied weights.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    facts = {'state_dict_metadata': json.dumps(facts_of(state))} if facts_of(state) else {}
    save_file(tensors, str(path), metadata={'format': 'pt', **facts, **(header or {})})
