"""Warm starts: a PeLK that computes what a trained network with smaller or dense kernels computes.

A sharing grid with a centre of 7 holds ConvNeXt's 7 x 7 kernel in its fine-grained part: centre copied, periphery
zero, and the network is ConvNeXt, to rounding, with a periphery that is ready to learn. A kernel that is not on the
grid, such as SLaK's cross of stripes, is projected: :func:`mmpelk.ops.sharing_grid.project_kernel`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.ops.sharing_grid import expand_kernel, project_kernel
from mmpelk.registry import WEIGHT_INITIALIZERS

from ..mixers.base import affine_of
from ..pelk import PeLK
from .checkpoint import refuse_misfit, shorten, state_dict_of
from .key_maps import detect_source, from_source

_NORM_EPS = 1e-5  # of torch's batch norm, in SLaK and RepLKNet


@dataclass(frozen=True)
class Inflation:
    """Weights of another network, for a PeLK backbone.

    Attributes:
        state: State dict of the backbone.
        dropped: Names in the checkpoint that the backbone has no use for, such as the classifier's.
        kept: Share of each kernel's energy (sum of squares) that the sharing grid holds, by the kernel's name; 1 is
            exact.
    """

    state: dict[str, Tensor]
    dropped: list[str]
    kept: dict[str, float]


@torch.no_grad()
def inflate(weights: Mapping[str, Tensor], backbone: PeLK, name: str = 'the checkpoint') -> Inflation:
    """The weights of a ConvNeXt, SLaK or network with dense kernels, for a backbone of the same widths and depths.

    Args:
        weights: State dict with the names of mmpretrain, timm or the authors.
        backbone: A PeLK with ``branch_norms=False`` and ``conv_ratio=1.0``, such as ``PeLK('convnext-tiny')``.
        name: What to call the weights in messages.

    Raises:
        ValueError: If the backbone has another form, or the weights another width, depth or larger kernels.
    """
    mixers = {key: module for key, module in backbone.named_modules() if key.endswith('.mixer')}
    if any(not mixer.deployed or not hasattr(mixer.large, 'sharing_grid') for mixer in mixers.values()):
        raise UserError(
            "inflation needs peripheral kernels with one bias each: arch='convnext-tiny' (small, base), or "
            'branch_norms=False, small_kernel_size=0, positional_embedding=None and conv_ratio=1.0'
        )
    renamed = from_source(weights, detect_source(weights))
    theirs = {renamed[key].removeprefix('backbone.'): value for key, value in weights.items()}
    state, kept = {}, {}
    for key, mixer in mixers.items():
        own = {part.removeprefix(f'{key}.'): theirs.pop(part) for part in list(theirs) if part.startswith(f'{key}.')}
        if not own:
            continue
        kernel, bias = _merged(own)
        missing = mixer.large.kernel_size - kernel.shape[-1]
        if missing < 0:
            raise UserError(
                f'{name}: the kernel of {key} is {kernel.shape[-1]} wide, that of the backbone '
                f'{mixer.large.kernel_size}; give kernel_sizes at least as large'
            )
        kernel = F.pad(kernel, [missing // 2] * 4)
        projected = project_kernel(kernel, mixer.large.sharing_grid)
        energy = kernel.square().sum()
        held = expand_kernel(projected, mixer.large.sharing_grid).square().sum()
        kept[f'{key}.large.weight'] = float(held / energy) if energy else 1.0
        state[f'{key}.large.weight'] = projected.to(mixer.large.weight)
        state[f'{key}.large.bias'] = bias.to(mixer.large.weight)
    known = backbone.state_dict()
    state |= {key: value for key, value in theirs.items() if key in known}
    refuse_misfit(known, state, name, 'Take the architecture of the checkpoint: the same widths and depths')
    return Inflation(state, sorted(theirs.keys() - known.keys()), kept)


def _merged(mixer: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Kernel ``(C, 1, K, K)`` and bias ``(C,)``, in float64, of the branches of another mixer, their norms folded."""
    names = [name.removesuffix('.weight') for name, value in mixer.items() if value.dim() == 4]
    parts = []
    for name in names:
        kernel = mixer[f'{name}.weight'].double()
        bias = mixer.get(f'{name}.bias', kernel.new_zeros(len(kernel))).double()
        norm = name.replace('large', 'large_norm').replace('small', 'small_norm')
        if f'{norm}.running_var' in mixer:
            state = {key.removeprefix(f'{norm}.'): value for key, value in mixer.items() if key.startswith(f'{norm}.')}
            scale, shift = affine_of(state, _NORM_EPS)
            kernel, bias = kernel * scale, shift + bias * scale.flatten()
        parts.append((kernel, bias))
    side = max(max(kernel.shape[-2:]) for kernel, _ in parts)
    padded = []
    for kernel, _ in parts:
        rows, columns = ((side - extent) // 2 for extent in kernel.shape[-2:])
        padded.append(F.pad(kernel, [columns, columns, rows, rows]))
    return torch.stack(padded).sum(0), torch.stack([bias for _, bias in parts]).sum(0)


@WEIGHT_INITIALIZERS.register_module()
class Inflated:
    """``init_cfg=dict(type='mmpelk.Inflated', checkpoint=...)``: start a backbone from another network's weights.

    Args:
        checkpoint: File or URL of a ConvNeXt of mmpretrain, timm or its authors, or of a SLaK or RepLKNet-like network.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        """Load them into a :class:`PeLK`, and log what was taken and what was not."""
        if not isinstance(module, PeLK):
            raise UserError(f'mmpelk.Inflated initialises a PeLK backbone, not a {type(module).__name__}')
        weights = state_dict_of(read_checkpoint(self.checkpoint), self.checkpoint)
        found = inflate(weights, module, f"'{self.checkpoint}'")
        module.load_state_dict(found.state, strict=False)
        absent = [name for name in module.state_dict() if name not in found.state]
        print_log(
            f"inflated {len(found.kept)} kernels of '{self.checkpoint}', at least {min(found.kept.values()):.1%} of "
            f"each one's energy kept; not in it, so as initialised: {shorten(absent) or 'none'}; in it, but not of the "
            f'backbone: {shorten(found.dropped) or "none"}',
            'current',
        )

    def _get_init_info(self) -> str:  # mmengine's initialisers answer this, for the log of parameters
        return f'{type(self).__name__}: load from {self.checkpoint}'
