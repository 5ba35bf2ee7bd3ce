"""Sharing grids, learnt kernels and positional embeddings as arrays: the data of the paper's Fig. 1 and 3."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from mmpelk.models.mixers import PeripheralMixer
from mmpelk.models.pelk import PeLK
from mmpelk.models.weights.checkpoint import state_dict_of
from mmpelk.ops.positional import positional_constant, positional_map, summed_area_table
from mmpelk.ops.sharing_grid import check_sharing_grid, expand_kernel
from mmpelk.sparsity.masks import MASK_SUFFIX


@dataclass(frozen=True)
class Region:
    """``Z_ab`` of Eq. 1: the positions of the dense kernel that share a parameter."""

    index: int  # of the parameter, row by row: ``a * k' + b``
    top: int  # first row of positions
    left: int  # first column
    height: int  # rows, the width ``s_a`` of ring ``a``
    width: int  # columns, ``s_b``


def regions(grid: Sequence[int]) -> tuple[Region, ...]:
    """The ``k' * k'`` regions that a grid cuts a ``K x K`` kernel into, row by row.

    Raises:
        ValueError: If the grid is not symmetric, positive and of odd sum.
    """
    grid = check_sharing_grid(grid)
    starts = list(accumulate(grid, initial=0))[:-1]
    rings = list(zip(starts, grid, strict=True))
    corners = [(top, left, height, width) for top, height in rings for left, width in rings]
    return tuple(Region(index, *corner) for index, corner in enumerate(corners))


@dataclass(frozen=True)
class LearntKernel:
    """The large kernel of a block."""

    name: str  # of the tensor in the checkpoint
    weight: Tensor  # its parameters ``(C, k', k')``, masked weights being zero
    grid: tuple[int, ...]  # ring widths; their sum is ``K``
    # whether it has no norm of its own, because norms and small kernel are merged into it. As it is trained, it
    # is one of two branches
    deployed: bool

    @property
    def dense(self) -> Tensor:
        """``(C, K, K)``."""
        return expand_kernel(self.weight, self.grid)


@dataclass(frozen=True)
class LearntEmbedding:
    """Eq. 3's embedding, as a block of its stage uses it."""

    name: str  # of the tensor in the checkpoint
    # ``h``, ``(C, K, K)``; ``None`` in a deployed checkpoint, which keeps the sums of ``W * h`` alone
    embedding: Tensor | None
    weighted: Tensor  # ``W * h``, ``(C, K, K)``
    map: Tensor  # ``M``, what the term adds to a map of the given size: ``(C, H, W)``


def backbone_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the backbone in a checkpoint, by their names within the backbone.

    Args:
        state_dict: State dict of a whole model, of one inside a wrapper for distributed training, or of a backbone.
    """
    state = state_dict_of(state_dict)
    prefix = 'backbone.'
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inside or state


def learnt_kernel(backbone: PeLK, tensors: Mapping[str, Tensor], stage: int, block: int) -> LearntKernel:
    """The large kernel of a block in a checkpoint, trained or deployed.

    Args:
        backbone: Backbone of the checkpoint's config; its sharing grid counts, not its weights.
        tensors: Tensors from :func:`backbone_tensors`.
        stage: Counted from 0.
        block: Within the stage, counted from 0.

    Raises:
        ValueError: If there is no such block, its kernel has no grid, or the checkpoint does not fit.
    """
    name = f'stages.{stage}.{block}.mixer.large.weight'
    grid = check_sharing_grid(_mixer(backbone, stage, block).large.sharing_grid)
    weight = _tensor(tensors, name).float()
    if (mask := tensors.get(name + MASK_SUFFIX)) is not None:
        weight = weight * mask
    if weight.shape[-1] != len(grid):
        raise ValueError(
            f'{name!r} has {weight.shape[-1]} x {weight.shape[-1]} parameters, the sharing grid {list(grid)} '
            f'{len(grid)} x {len(grid)}; give the config that the checkpoint was trained with'
        )
    deployed = f'{name.removesuffix(".weight")}_norm.weight' not in tensors
    return LearntKernel(name, weight[:, 0], grid, deployed)


def learnt_embedding(
    backbone: PeLK, tensors: Mapping[str, Tensor], stage: int, block: int, size: Sequence[int]
) -> LearntEmbedding:
    """``h``, ``W * h`` and ``M`` of a block, from a trained or a deployed checkpoint.

    Without the norm of the branch as it is trained, with it once deployed: then its scale is part of the kernel.

    Args:
        backbone: Backbone of the checkpoint's config.
        tensors: Tensors from :func:`backbone_tensors`.
        stage: Counted from 0.
        block: Within the stage; the blocks of a stage share ``h``, but not ``M``.
        size: ``(H, W)`` of the feature map.

    Raises:
        ValueError: If there is no such block, the network has no embedding, or the checkpoint does not fit.
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f'the size of a map is its height and width, two positive integers, got {tuple(size)}')
    mode = _mixer(backbone, stage, block).embedding_mode
    if mode is None:
        raise ValueError('the config has positional_embedding=None: there is no embedding to draw')
    kernel, name = learnt_kernel(backbone, tensors, stage, block), f'stages.{stage}.positional_embedding'
    if kernel.deployed:
        if mode == 'constant':
            raise ValueError("deployed, the term of positional_embedding='constant' is in the kernel's bias")
        name = f'stages.{stage}.{block}.mixer.embedding_table'
        table = _tensor(tensors, name).double()  # differences of sums cancel
        weighted, term = table.diff(dim=-1).diff(dim=-2), positional_map(table, size)
        return LearntEmbedding(name, None, weighted.float(), term.float())
    embedding = _tensor(tensors, name).float()
    if embedding.shape != kernel.dense.shape:
        raise ValueError(
            f'{name!r} is {tuple(embedding.shape)} in the checkpoint, and the kernel is {tuple(kernel.dense.shape)}; '
            'give the config that the checkpoint was trained with'
        )
    weight = kernel.weight[:, None]
    if mode == 'constant':
        term = positional_constant(weight, kernel.grid, embedding)[:, None, None].expand(-1, *size)
    else:
        term = positional_map(summed_area_table(weight, kernel.grid, embedding), size)
    return LearntEmbedding(name, embedding, kernel.dense * embedding, term)


def _mixer(backbone: PeLK, stage: int, block: int) -> PeripheralMixer:
    if not 0 <= stage < backbone.num_stages or not 0 <= block < backbone.depths[stage]:
        raise ValueError(f'there is no block {block} in stage {stage}: counted from 0, {backbone.depths} in the stages')
    mixer = backbone.stages[stage][block].mixer
    if not isinstance(mixer, PeripheralMixer):
        raise ValueError(f'{type(mixer).__name__} has neither sharing grid nor embedding')
    return mixer


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        nearest = difflib.get_close_matches(name, tensors, 5, 0)
        raise ValueError(f'the checkpoint has no {name!r}; its nearest: {", ".join(nearest)}')
    return tensors[name]
