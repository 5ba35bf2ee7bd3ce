"""Parameters and FLOPs of a model, dense and sparse, by component: the figures of the paper's Tables 2 to 4 and Fig. 5.

The convention that reproduces the paper's columns (its text does not state one):

- a multiply-add is one FLOP; convolutions and linear layers only; biases, norms, activations left out;
- in necks and heads the norms, resizing and pooling count as well, as mmengine's standard handles count them. They are
  0.1 % of UperNet, and a component of their own, so that both figures can be read;
- a large kernel counts ``K * K`` per position and convolved channel, not what a backend really computes;
- FLOPs are those of the deployed form, in which the 5x5 branch is merged into the large kernel; parameters are those of
  the training form, 5x5 branches and positional embeddings included;
- every 2-D and 4-D parameter of the backbone and of a classifier, and the FLOPs of its layer, count times its density.
  The necks and heads of segmentation and detection are dense;
- only what runs at inference counts: no auxiliary head.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

# FakeTensorMode has no public alias; torch's own documentation imports it from here.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mmpelk.models import EnlargedConv2d
from mmpelk.models.flop_handles import FLOP_HANDLES
from mmpelk.ops.backends import BACKENDS, PROCESSORS, REFERENCE_PROCESSOR
from mmpelk.ops.custom_op import HAS_CUSTOM_OP
from mmpelk.ops.executed import backend_on_cpu, executed_operations
from mmpelk.sparsity import state_dict_densities
from mmpelk.sparsity.masks import MaskedParameter, find_parameters

from .inference import InferenceForm, image_channels

__all__ = [
    'FLOP_HANDLES',
    'Complexity',
    'Component',
    'LargeKernelCall',
    'LeftOut',
    'checkpoint_densities',
    'count_complexity',
    'uniform_densities',
]

# Parts whose 2-D and 4-D parameters the masks cover: the backbone, and mmpretrain's name for a classifier.
_SPARSE_PARTS = ('backbone', 'head')
_TRAINING_ONLY = ('auxiliary_head',)
_NORMS = 'norms_and_resizing'
_COLUMNS = ('params', 'params_sparse', 'flops', 'flops_sparse')
# The first pattern that a path inside the backbone matches names its component. ConvNeXt's names fit, too.
_BACKBONE_COMPONENTS = (
    ('stem', r'downsample_layers\.0\.'),
    ('downsampling', r'downsample_layers\.'),
    ('large_kernels', r'\.mixer\.large\.|\.depthwise_conv\.'),
    ('small_kernels', r'\.mixer\.small\.'),
    ('ffn', r'\.pointwise_conv[12]\.'),
    ('embedding', r'\.positional_embedding\b'),
    ('norms_and_scales', r'norm|\.gamma\b'),
    ('backbone_other', r''),
)


@dataclass(frozen=True)
class Component:
    """A row of Fig. 5's breakdown."""

    name: str  # ``stem``, ``large_kernels``, ``ffn``, ... in the backbone, else the module's name in the model
    part: str  # the part of the model that it belongs to: ``backbone``, ``neck``, ``decode_head``, ...
    params: int  # number of parameters of the training form
    params_sparse: int  # the same, each parameter times its density
    flops: int  # multiply-adds of the deployed form, dense
    flops_sparse: int  # the same, each layer times the density of its weight


@dataclass(frozen=True)
class LeftOut:
    """What the totals do not contain, and why. FLOPs are dense."""

    name: str
    params: int
    flops: int
    reason: str


@dataclass(frozen=True)
class LargeKernelCall:
    """One call of the operator."""

    shape: tuple[int, ...]  # ``(N, C, H, W)`` of the convolved channels
    sharing_grid: tuple[int, ...]  # ring widths; their sum is ``K``
    backend: str  # the backend that the call names, or that a CPU of the processor class would choose
    has_map: bool  # whether a positional term is added

    @property
    def dense_flops(self) -> int:
        """Multiply-adds of the dense kernel."""
        return math.prod(self.shape) * sum(self.sharing_grid) ** 2

    @property
    def embedding_operations(self) -> int:
        """Additions and multiplications of Eq. 3's term: the table of ``W * h``, the look-ups, the sum with ``Y``."""
        batch, channels, height, width = self.shape
        side = sum(self.sharing_grid)
        table = side**2 + 2 * (side + 1) ** 2
        lookups = height * (side + 1) + height * width
        return channels * (table + lookups + batch * height * width) if self.has_map else 0


@dataclass(frozen=True)
class Complexity:
    """What :func:`count_complexity` found. Totals are the sums over :attr:`components`."""

    components: tuple[Component, ...]  # in the order of the model
    left_out: tuple[LeftOut, ...]  # what the convention does not count
    calls: tuple[LargeKernelCall, ...]  # every call of the operator in one forward
    processor: str = REFERENCE_PROCESSOR  # the class of processors for which the calls' backends are chosen

    @property
    def params(self) -> int:
        """Parameters of what runs at inference, in training form."""
        return sum(component.params for component in self.components)

    @property
    def params_sparse(self) -> int:
        """Parameters that are not masked."""
        return sum(component.params_sparse for component in self.components)

    @property
    def params_as_published(self) -> int:
        """Active parameters without 5x5 branches and embeddings, and with auxiliary heads.

        This, not :attr:`params_sparse`, rounds to the paper's column (in all rows but PeLK-S at 224 x 224).
        """
        deployed = sum(c.params_sparse for c in self.components if c.name not in ('small_kernels', 'embedding'))
        return deployed + sum(left_out.params for left_out in self.left_out)

    @property
    def flops(self) -> int:
        """Dense multiply-adds."""
        return sum(component.flops for component in self.components)

    @property
    def flops_sparse(self) -> int:
        """Multiply-adds with weights that are not masked: the paper's column."""
        return sum(component.flops_sparse for component in self.components)

    def part(self, name: str) -> int:
        """FLOPs of ``backbone``, ``neck``, ``decode_head``, ..., each layer times its density."""
        return sum(component.flops_sparse for component in self.components if component.part == name)

    def executed(self, backend: str | None = None) -> int | None:
        """Operations that a backend executes in the large kernels; ``None`` where it hides them.

        Real operations: see :func:`mmpelk.ops.executed.executed_operations`. Masked weights save none of them.

        Args:
            backend: ``None`` for each call's own :attr:`LargeKernelCall.backend`.
        """
        return executed_operations((backend or call.backend, call.shape, call.sharing_grid) for call in self.calls)

    def executed_by_component(self) -> dict[tuple[str, str], int | None]:
        """By part and component, what a CPU of the class :attr:`processor` executes.

        Masked weights are multiplied, large kernels computed by the backend of each call.
        """
        dense_form, executed = sum(call.dense_flops for call in self.calls), self.executed()
        faster = None if executed is None else executed - dense_form
        return {
            (c.part, c.name): None
            if c.name == 'large_kernels' and faster is None
            else c.flops + (faster or 0) * (c.name == 'large_kernels')
            for c in self.components
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and dictionaries, for JSON."""
        return dict(
            params=self.params,
            params_sparse=self.params_sparse,
            params_as_published=self.params_as_published,
            flops=self.flops,
            flops_sparse=self.flops_sparse,
            components=[asdict(component) for component in self.components],
            left_out=[asdict(left_out) for left_out in self.left_out],
            large_kernels=dict(
                dense_form=sum(call.dense_flops for call in self.calls),
                executed={name: self.executed(name) for name in BACKENDS},
                chosen_on_cpu=dict(
                    processor=self.processor,
                    backends=sorted({call.backend for call in self.calls}),
                    executed=self.executed(),
                ),
            ),
        )


def count_complexity(
    model: nn.Module,
    shape: tuple[int, int],
    densities: Mapping[str, float] | None = None,
    processor: str = REFERENCE_PROCESSOR,
) -> Complexity:
    """Count parameters and FLOPs for one image, by the convention of this module.

    The forward runs on fake tensors: shapes alone, so that 2048 x 512 takes a second. mmengine's and fvcore's analyses
    trace with ``torch.jit``, which needs the real forward: the tracer hands sizes as tensors to the shape functions of
    fake and meta tensors, which refuse them. ``torch.utils.flop_counter`` counts the same operators by module without.
    mmengine's analysis knows our operator by :data:`FLOP_HANDLES`; where it can run, both agree.

    Args:
        model: A backbone, or a model of mmpretrain, mmseg or mmdet. It is put into eval mode.
        shape: Height and width of the image, as the network receives it.
        densities: Share of active weights by parameter name, as :func:`uniform_densities` or
            :func:`checkpoint_densities` give it; a parameter without an entry is dense.
        processor: Class of processors, of :data:`mmpelk.ops.backends.PROCESSORS`, for which backends are chosen. By
            default the counts are the same on every machine; ``THIS_PROCESSOR`` is this one's.

    Returns:
        Totals and components.

    Raises:
        ValueError: If the shape is not two positive integers, ``densities`` names unknown parameters, or the class of
            processors is unknown.
        RuntimeError: If torch is older than 2.4, where the operator is not visible to counters.
    """
    if not HAS_CUSTOM_OP:
        raise RuntimeError(f'counting FLOPs needs torch 2.4 or newer, this is {torch.__version__}')
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f'shape is the height and the width of an image, two positive integers, got {shape}')
    if processor not in PROCESSORS:
        raise ValueError(f'unknown class of processors {processor!r}; known: {", ".join(PROCESSORS)}')
    parameters = dict(model.named_parameters())
    densities = densities or {}
    if unknown := set(densities) - set(parameters):
        raise ValueError(f'densities for parameters that the model does not have: {", ".join(sorted(unknown)[:5])}')
    layers, norms, calls = _count_layers(model, shape, processor)
    sums: dict[tuple[str, str], Counter[str]] = {}  # by part and component, in order of appearance

    def add(key: tuple[str, str], what: str, amount: int, density: float = 1.0) -> None:
        sums.setdefault(key, Counter()).update({what: amount, f'{what}_sparse': amount * density})

    has_parts = hasattr(model, 'backbone')
    enlarged = {name for name, module in model.named_modules() if type(module) is EnlargedConv2d}
    for name, parameter in parameters.items():
        add(_component(name, has_parts, enlarged), 'params', parameter.numel(), densities.get(name, 1.0))
    for name, flops in layers.items():
        add(_component(f'{name}.', has_parts, enlarged), 'flops', flops, densities.get(f'{name}.weight', 1.0))
    for name, flops in norms.items():
        add((_component(f'{name}.', has_parts)[0], _NORMS), 'flops', flops)
    components, left_out = [], []
    for (part, name), row in sums.items():
        params, params_sparse, flops, flops_sparse = (round(row[column]) for column in _COLUMNS)
        if part in _TRAINING_ONLY:
            left_out.append(LeftOut(name, params, flops, 'does not run at inference'))
        elif (part, name) == ('backbone', _NORMS):
            left_out.append(LeftOut(name, 0, flops, 'norms of the backbone, as mmengine counts them'))
        elif name == 'small_kernels':
            left_out.append(LeftOut(name, 0, flops, 'merged into the large kernels when deployed'))
            components.append(Component(name, part, params, params_sparse, 0, 0))
        else:
            components.append(Component(name, part, params, params_sparse, flops, flops_sparse))
    if embedding := sum(call.embedding_operations for call in calls):
        reason = 'additions and multiplications outside convolutions; the paper says 0.05 % of the backbone'
        left_out.append(LeftOut('embedding', 0, embedding, reason))
    return Complexity(tuple(components), tuple(left_out), tuple(calls), processor)


def _component(path: str, has_parts: bool, enlarged: Collection[str] = ()) -> tuple[str, str]:
    """Part and component that a path belongs to: a parameter's, or with a dot at its end a module's."""
    part, _, rest = path.partition('.') if has_parts else ('backbone', '', path)
    if part == 'roi_head':
        part = rest.partition('.')[0]
    if part != 'backbone':
        return part, part
    if path.rpartition('.')[0] in enlarged:
        return part, 'large_kernels'
    return part, next(name for name, pattern in _BACKBONE_COMPONENTS if re.search(pattern, rest))


def _count_layers(
    model: nn.Module, shape: tuple[int, int], processor: str
) -> tuple[dict[str, int], dict[str, int], list[LargeKernelCall]]:
    """Multiply-adds of layers, operations of norms and calls of the operator, by the module that executes them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # not before torch 2.3; counting needs 2.4

    calls: list[LargeKernelCall] = []

    def formula(
        x: list[int], weight: list[int], bias: list[int] | None, grid: list[int], backend: str | None, **_: Any
    ) -> int:
        x = [x[0], weight[0], *x[2:]]  # the channels that are convolved; others may pass
        name = backend or backend_on_cpu(x, grid, processor)
        calls.append(LargeKernelCall(tuple(x), tuple(grid), name, bias is not None and len(bias) == 3))
        return 2 * calls[-1].dense_flops  # as torch's own formulas, which count two operations per multiply-add

    form = InferenceForm(model)
    mapping = {torch.ops.mmpelk.peripheral_conv2d: formula, **_NORM_FORMULAS}
    # Counted by operator, but kept from being decomposed (nearest resizing would be) by overload.
    mapping |= {operator.default: known for operator, known in mapping.items()}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    device = next(model.parameters()).device
    # Fused attention hides its two products of matrices from the counter on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FakeTensorMode(allow_non_fake_inputs=True), counter:
        form(torch.empty(1, image_channels(model), *shape, device=device))
    layers, norms = {}, {}
    for name, by_operator in counter.get_flop_counts().items():
        norms[name] = sum(count for operator, count in by_operator.items() if operator in _NORM_FORMULAS)
        layers[name] = (sum(by_operator.values()) - norms[name]) // 2
    prefix = f'{type(form).__name__}.{InferenceForm.MODEL}'
    return _without_children(layers, prefix), _without_children(norms, prefix), calls


def _norm(position: int, plain: int) -> Callable[..., int]:
    """Operations of a norm whose weight, at a position of its arguments, adds one per element to the ``plain`` ones."""
    return lambda x, *others, **_: math.prod(x) * (plain + (others[position] is not None))


# mmengine.analysis' standard handles (FlopAnalyzer), for the operators that torch runs in their place.
_aten = torch.ops.aten
_NORM_FORMULAS: dict[Any, Any] = {
    _aten.native_batch_norm: _norm(0, 1),
    _aten._native_batch_norm_legit_no_training: _norm(0, 1),
    _aten.native_group_norm: _norm(0, 4),
    _aten.native_layer_norm: _norm(1, 4),
    _aten.upsample_nearest2d: lambda x, *_, out_shape, **__: math.prod(out_shape),
    _aten.upsample_bilinear2d: lambda x, *_, out_shape, **__: 4 * math.prod(out_shape),
    _aten._adaptive_avg_pool2d: lambda x, *_, **__: math.prod(x),
}


def _without_children(totals: Mapping[str, int], prefix: str) -> dict[str, int]:
    """From totals by module, children included, to what each module does itself; names without ``prefix``."""
    own = {name: total for name, total in totals.items() if name != 'Global'}
    for name, total in totals.items():
        parent = name.rpartition('.')[0]
        while parent and parent not in own:  # containers are never called themselves
            parent = parent.rpartition('.')[0]
        if parent:
            own[parent] -= total
    return {name.removeprefix(prefix).removeprefix('.'): flops for name, flops in own.items() if flops}


def _maskable(model: nn.Module) -> list[MaskedParameter]:
    """What masks cover: 2-D and 4-D parameters of the backbone and of a classifier."""
    children = dict(model.named_children())
    return find_parameters(
        model, [part for part in _SPARSE_PARTS if part in children] if 'backbone' in children else None
    )


def uniform_densities(model: nn.Module, density: float) -> dict[str, float]:
    """One density for every maskable parameter: the 2-D and 4-D ones of the backbone and of a classifier.

    Args:
        model: A backbone, or a model with one.
        density: Share of active weights; 0.6 in the paper's tables.

    Returns:
        Densities by parameter name.

    Raises:
        ValueError: If ``density`` is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f'density is in (0, 1], got {density}')
    return {entry.name: density for entry in _maskable(model)}


def checkpoint_densities(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, float]:
    """Densities from a checkpoint: from its masks, and where it has none from the weights that are exactly zero.

    Args:
        model: The model that the checkpoint belongs to.
        state_dict: Its parameters, and masks if any, by name.

    Returns:
        Share of active weights of every maskable parameter, by name.

    Raises:
        ValueError: If a maskable parameter is missing or has another shape.
    """
    densities = {}
    for entry in _maskable(model):
        name, parameter = entry.name, entry.weight
        if name not in state_dict:
            raise ValueError(f'the checkpoint has no {name!r}: it belongs to another model, or to its deployed form')
        if state_dict[name].shape != parameter.shape:
            raise ValueError(
                f'{name!r} is {tuple(state_dict[name].shape)} in the checkpoint and {tuple(parameter.shape)} in the '
                'model; give the config that the checkpoint was trained with'
            )
        densities[name] = int(torch.count_nonzero(state_dict[name])) / parameter.numel()
    # A weight that has just been grown is active and may still be zero: the mask knows.
    known = set(dict(model.named_parameters()))
    masks = state_dict_densities(state_dict)
    return densities | {layer.name: layer.density for layer in masks if layer.name in known}
