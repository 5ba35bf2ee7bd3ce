"""Dynamic sparsity: masks that belong to the model, their initialisation, prune and grow, and the hook for MMEngine."""

from .enforce import StepMasker, mask_average
from .hook import SparsityHook
from .initialisation import INITIALISATIONS, erk, live_total, random_mask, snip, uniform
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
    unwrap_model,
)
from .report import LayerDensity, density_table, layer_densities, overall_density, state_dict_densities
from .update import cosine_prune_rate, prune_and_grow

__all__ = [
    'INITIALISATIONS',
    'MASK_SUFFIX',
    'LayerDensity',
    'MaskedParameter',
    'SparsityHook',
    'StepMasker',
    'apply_masks',
    'attach_masks',
    'broadcast_masks',
    'cosine_prune_rate',
    'density_table',
    'erk',
    'find_parameters',
    'fold_masks',
    'layer_densities',
    'live_total',
    'mask_average',
    'mask_keys',
    'overall_density',
    'prune_and_grow',
    'random_mask',
    'remove_masks',
    'snip',
    'state_dict_densities',
    'uniform',
    'unwrap_model',
]
