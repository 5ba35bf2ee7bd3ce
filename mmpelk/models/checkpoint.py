"""Names and checks of checkpoints, with messages that name the remedy."""

from collections.abc import Mapping
from pathlib import Path

from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmpelk.errors import UserError

from .hidden_units import fit_all_hidden_units

__all__ = ['MASK_SUFFIX', 'backbone_state_dict', 'check_pretrained', 'refuse_misfit', 'shorten']

MASK_SUFFIX = '_mask'
"""End of the name of a weight's sparsity mask, a buffer beside it."""

_SHOWN = 4  # names printed of a long list


def shorten(names: list[str]) -> str:
    """The first few of a list of names, and how many more there are."""
    more = f', and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def backbone_state_dict(path: str, prefix: str = '') -> dict[str, Tensor]:
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
    if prefix and not prefix.endswith('.'):  # as mmengine reads it
        prefix += '.'
    state = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    state = state.get('state_dict', state)
    found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise UserError(
            f"no key of '{path}' begins with '{prefix}'; its keys look like {shorten(list(state))}. "
            'Set init_cfg.prefix to what stands before the backbone there'
        )
    return found


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
