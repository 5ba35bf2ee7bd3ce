"""What a state dict says of a network beside its tensors: the sharing grids, and how the embeddings are applied.

Kernels of different sizes can have equally many shared parameters, so that the weights of one load silently into
the other. The facts stand in the dicts that torch keeps for the modules of a state dict (``_metadata``), which
``torch.save`` writes and ``load_state_dict`` hands to every module; names of tensors stay as they are. A copy into a
plain dict has none of them, and is loaded as it is.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmpelk.errors import UserError

_FACTS = ('sharing_grid', 'embedding_mode')
Facts = dict[str, dict[str, Any]]


def write_fact(state_dict: Mapping[str, Tensor], prefix: str, name: str, value: Any) -> None:
    """Note a fact of the module whose tensors begin with ``prefix``, unless the state dict is a plain dict."""
    metadata = getattr(state_dict, '_metadata', None)
    if metadata is not None:
        metadata.setdefault(prefix[:-1], {})[name] = value


def refuse_another(found: Mapping[str, Any], prefix: str, name: str, own: Any) -> None:
    """Refuse the tensors of a module of which a state dict says another fact; without the fact nothing happens.

    Args:
        found: What the state dict says of the module.
        prefix: What stands before the module's own names in it.
        name: Name of the fact.
        own: What it is here.

    Raises:
        UserError: It names both and the remedy.
    """
    given = found.get(name)
    given = tuple(given) if isinstance(given, list) else given  # as JSON has it
    if given is None or given == own:
        return
    where = f' of {prefix[:-1]}' if prefix else ''
    raise UserError(
        f'these weights{where} were trained with {_in_words(name, given)}, not with {_in_words(name, own)}: build the '
        'network as it was trained, with its kernel_sizes, sharing_grids and positional_embedding; if you mean to use '
        'them so, give the tensors in a plain dict, which says nothing of it'
    )


def _in_words(name: str, value: Any) -> str:
    if name == 'sharing_grid' and isinstance(value, tuple) and all(isinstance(width, int) for width in value):
        size, grid = sum(value), 'all ones' if set(value) == {1} else ', '.join(map(str, value))
        return f'a kernel of {size} x {size} (sharing grid {grid})'
    return f'{name} {str(value)[:80]!r}'


def facts_of(state_dict: Mapping[str, Tensor], prefix: str = '') -> Facts:
    """The facts in a state dict, by names of modules, of those under ``prefix``, which is cut off."""
    return {
        module: facts
        for module, metadata in metadata_of(state_dict, prefix).items()
        if (facts := {name: metadata[name] for name in _FACTS if name in metadata})
    }


def metadata_of(state_dict: Mapping[str, Tensor], prefix: str = '') -> Facts:
    """All that torch has written of the modules under ``prefix``, which is cut off, such as their versions."""
    metadata = getattr(state_dict, '_metadata', None)
    entries = metadata.items() if isinstance(metadata, Mapping) else ()
    return {
        f'{module}.'[len(prefix) :].rstrip('.'): dict(metadata)
        for module, metadata in entries
        if f'{module}.'.startswith(prefix) and isinstance(metadata, Mapping)
    }


def with_facts(tensors: Mapping[str, Tensor], facts: Facts) -> OrderedDict[str, Tensor]:
    """A state dict of these tensors that says the facts; they are compared when it is loaded."""
    state = OrderedDict(tensors)
    if facts:
        state._metadata = OrderedDict(facts)  # type: ignore[attr-defined]
    return state
