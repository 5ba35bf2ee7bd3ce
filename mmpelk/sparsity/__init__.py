"""Dynamic sparsity: masks that belong to the model, their initialisation, prune and grow, and the hook for MMEngine."""

from .enforce import StepMasker, mask_average
from .granularity import GRANULARITIES, Layer, UnitLayer, uniform_units
from .hook import SparsityHook
from .initialisation import INITIALISATIONS, active_total, erk, random_mask, snip, uniform
from .masks import (
    MASK_SUFFIX,
    MaskedParameter,
    apply_masks,
    attach_masks,
    broadcast_masks,
    find_parameters,
    fold_masks,
    mask_keys,
    remove_masks,
)
from .report import LayerDensity, density_table, layer_densities, overall_density, state_dict_densities
from .two_of_four import is_two_of_four, prune_and_grow_two_of_four, random_two_of_four, to_semi_structured
from .update import cosine_prune_rate, prune_and_grow

__all__ = [
    'GRANULARITIES',
    'INITIALISATIONS',
    'MASK_SUFFIX',
    'Layer',
    'LayerDensity',
    'MaskedParameter',
    'SparsityHook',
    'StepMasker',
    'UnitLayer',
    'active_total',
    'apply_masks',
    'attach_masks',
    'broadcast_masks',
    'cosine_prune_rate',
    'density_table',
    'erk',
    'find_parameters',
    'fold_masks',
    'is_two_of_four',
    'layer_densities',
    'mask_average',
    'mask_keys',
    'overall_density',
    'prune_and_grow',
    'prune_and_grow_two_of_four',
    'random_mask',
    'random_two_of_four',
    'remove_masks',
    'snip',
    'state_dict_densities',
    'to_semi_structured',
    'uniform',
    'uniform_units',
]
