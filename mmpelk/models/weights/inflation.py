"""Warm starts: a PeLK that computes what a trained network with smaller or dense kernels computes.

A sharing grid with a centre of 7 holds ConvNeXt's 7 x 7 kernel in its fine-grained part: centre copied, periphery
zero, and the network is ConvNeXt, to rounding, with a periphery that is ready to learn. A kernel that is not on the
grid, such as SLaK's cross of stripes, is projected: :func:`mmpelk.ops.sharing_grid.project_kernel`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.ops.sharing_grid import expand_kernel, project_kernel
from mmpelk.registry import WEIGHT_INITIALIZERS

from ..mixers.base import affine_of
from ..pelk import PeLK
from .checkpoint import refuse_misfit, shorten
from .downloads import Normalisation, PublicWeights, read_public
from .identify import Reading, describe
from .key_maps import Layout, fit_shape, layout_of

_NORM_EPS = 1e-5  # of torch's batch norm, in SLaK and RepLKNet
_EXACT = 1 - 1e-6  # share of a kernel's energy, up to rounding
_IMAGENET = Normalisation.of_unit_values((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What a mixer of a known source holds: kernels, and batch norms behind them.
_MIXER_PARTS = re.compile(
    r'(large(\.\d)?|small)\.(weight|bias)'
    r'|(large_norm(\.\d)?|small_norm)\.(weight|bias|running_mean|running_var|num_batches_tracked)'
)


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
        weights: State dict with the names of one of :data:`~mmpelk.models.weights.key_maps.SOURCES`.
        backbone: A PeLK with ``branch_norms=False`` and ``conv_ratio=1.0``, such as ``PeLK('convnext-tiny')``.
        name: What to call the weights in messages.

    Raises:
        UserError: If the backbone has another form, or the weights another width, depth, larger kernels, further layers
            in their blocks, numbers that are not finite, or their last norm before pooling and the backbone behind it.
    """
    mixers = {key: module for key, module in backbone.named_modules() if key.endswith('.mixer')}
    if any(not mixer.deployed or not hasattr(mixer.large, 'sharing_grid') for mixer in mixers.values()):
        raise UserError(
            "inflation needs peripheral kernels with one bias each: arch='inflated' or 'convnext-tiny' (small, ...), "
            'or branch_norms=False, small_kernel_size=0, positional_embedding=None and conv_ratio=1.0'
        )
    reading = Reading(weights, name)
    theirs, known = reading.tensors, backbone.state_dict()
    _refuse_other(reading, layout_of(known))
    if reading.norm_first and backbone.gap_before_final_norm and backbone.num_stages - 1 in backbone.out_indices:
        raise UserError(
            f"{name} is {reading} whose last norm comes before pooling (timm's _hnf): give "
            'gap_before_final_norm=False, and pool behind the backbone'
        )
    state, kept = {}, {}
    for key, mixer in mixers.items():
        own = {part.removeprefix(f'{key}.'): theirs.pop(part) for part in list(theirs) if part.startswith(f'{key}.')}
        if not own:
            continue
        if unknown := [f'{key}.{part}' for part in own if not _MIXER_PARTS.fullmatch(part)]:
            raise UserError(_unknown(reading, unknown))
        try:
            kernel, bias = _merged(own)
        except KeyError as error:
            raise UserError(f'{name}: the file is incomplete: it has no {key}.{error.args[0]}') from error
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
    state |= {key: fit_shape(value, known[key]) for key, value in theirs.items() if key in known}
    refuse_misfit(known, state, name, 'Take the architecture of the checkpoint: the same widths and depths')
    if damaged := [key for key, value in state.items() if not value.isfinite().all()]:
        raise UserError(f'{name} has NaN or infinite weights in {shorten(damaged)}: give an undamaged file')
    dropped = sorted(theirs.keys() - known.keys())
    if unknown := [key for key in dropped if key.startswith(('stages.', 'downsample_layers.'))]:
        raise UserError(_unknown(reading, unknown))
    return Inflation(state, dropped, kept)


def _unknown(reading: Reading, names: list[str]) -> str:
    return (
        f'{reading.name} is {reading} with layers that PeLK does not have: {shorten(names)}; give weights without '
        'them, such as with adapters merged'
    )


def _refuse_other(reading: Reading, own: Layout) -> None:
    theirs = reading.layout
    if (theirs.depths, theirs.channels, theirs.use_grn) != (own.depths, own.channels, own.use_grn):
        pictures = f', and expects pictures with {reading.normalisation}' if reading.normalisation else ''
        wanted = describe(own).replace('ConvNeXt', "ConvNeXt's form", 1)
        raise UserError(
            f'{reading.name} is {reading}{pictures}; this backbone has {wanted}. '
            "Give arch='inflated', which takes the form of the file, and the heads its channels"
        )
    if theirs.layer_scale != own.layer_scale:
        raise UserError(
            f'{reading.name} is {reading} {"with" if theirs.layer_scale else "without"} layer scale: give '
            f"layer_scale_init_value={'1e-6' if theirs.layer_scale else '0'}, or arch='inflated', which takes the form "
            'of the file'
        )


def _merged(mixer: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Kernel ``(C, 1, K, K)`` and bias ``(C,)``, in float64, of the branches of another mixer, their norms folded.

    Raises:
        KeyError: Of the first name that misses: a branch has a kernel and, where another one has, a whole norm.
    """
    has_norms = any('_norm.' in name for name in mixer)
    names = dict.fromkeys(part.rpartition('.')[0].replace('_norm', '') for part in mixer)
    parts = []
    for name in names:
        kernel = mixer[f'{name}.weight'].double()
        bias = mixer.get(f'{name}.bias', kernel.new_zeros(len(kernel))).double()
        norm = name.replace('large', 'large_norm').replace('small', 'small_norm')
        if has_norms:
            state = {key.removeprefix(f'{norm}.'): value for key, value in mixer.items() if key.startswith(f'{norm}.')}
            for part in ('weight', 'bias', 'running_mean', 'running_var'):
                if part not in state:
                    raise KeyError(f'{norm}.{part}')
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

    The licence of downloaded weights, and how they expect pictures to be normalised, are logged.

    The recipes give the kernels a tenth of the learning rate, by ``peripheral_lr_mult`` of
    :class:`mmpelk.engine.LayerDecayOptimWrapperConstructor`, whose default is the full rate, or by
    :class:`mmpelk.engine.PeripheralOptimWrapperConstructor`. They take this over from enlarged networks, which were
    worse than the plain one at the full rate in the study of docs/evidence.md; no inflated network was in it.

    Args:
        checkpoint: File or URL of a ConvNeXt under any of its names, or of a SLaK or RepLKNet-like network;
            ``timm://NAME`` or ``hf://OWNER/NAME``.
        mean: Mean of the pictures that the recipe feeds, of values from 0 to 255, red first: its
            ``data_preprocessor``'s. If given, weights that expect another normalisation are refused.
        std: Their standard deviation, given together with the mean.
        key: Entry of the file that holds the weights, such as ``'state_dict_ema'``; by default ``'state_dict'`` or
            ``'model'``, and a file with averages beside them is refused.
    """

    def __init__(
        self,
        checkpoint: str,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        key: str | None = None,
    ) -> None:
        if (mean is None) != (std is None):
            raise UserError("mmpelk.Inflated takes mean and std together: those of the recipe's data_preprocessor")
        self.checkpoint, self.key = checkpoint, key
        self.fed = Normalisation(tuple(mean), tuple(std)) if mean is not None and std is not None else None

    def __call__(self, module: nn.Module) -> None:
        """Load them into a :class:`PeLK`, and log what was taken and what was not."""
        if not isinstance(module, PeLK):
            raise UserError(f'mmpelk.Inflated initialises a PeLK backbone, not a {type(module).__name__}')
        public, name = read_public(self.checkpoint, self.key), f"'{self.checkpoint}'"
        found = inflate(public.state, module, name)
        reading = Reading(public.state, name)
        expected = self._check_normalisation(public, reading)
        module.load_state_dict(found.state, strict=False)
        projected = {key: share for key, share in found.kept.items() if share < _EXACT}
        if projected:
            worst = min(projected, key=lambda key: projected[key])
            print_log(
                f'{len(projected)} of {len(found.kept)} kernels of {name} are not on the sharing grids of the '
                f'backbone, which keep {projected[worst]:.1%} of the energy of {worst}: the network computes another '
                'function. Train on from it, or give a center_size as large as the kernels, which keeps all',
                'current',
                logging.WARNING,
            )
        absent = [key for key in module.state_dict() if key not in found.state]
        print_log(
            f'inflated {len(found.kept)} kernels of {name}, {reading}, at least {min(found.kept.values()):.1%} of '
            f"each one's energy kept; missing there and initialised: {shorten(absent) or 'none'}; there, but not of "
            f'the backbone: {shorten(found.dropped) or "none"}. Licence of the weights: {public.licence}. They '
            + (
                f'expect pictures with {expected}'
                if expected
                else f"do not say how pictures are normalised: ImageNet's way is {_IMAGENET}"
            ),
            'current',
        )

    def _check_normalisation(self, public: PublicWeights, reading: Reading) -> Normalisation | None:
        expected = public.normalisation or reading.normalisation
        if expected is not None and self.fed is not None and not expected.is_close(self.fed):
            raise UserError(
                f'{reading.name} is {reading} and expects pictures with {expected}; the recipe has {self.fed}. Give '
                'data_preprocessor and init_cfg those values'
            )
        return expected
