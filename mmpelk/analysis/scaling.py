"""Model size against kernel size in closed form: the paper's Fig. 6, and the multiples that its Section 3 states.

The network is ConvNeXt-T with its 7x7 kernels replaced, as Section 6.4 says, and with nothing else: all channels are
convolved, there is no 5x5 branch, no norm per branch, and one bias per channel and block. Built, that is
``PeLK(arch, mixer, conv_ratio=1.0, small_kernel_size=0, positional_embedding=None, deploy=True)``; with a dense 7x7
kernel it is ConvNeXt-T to the last parameter.

What grows how, per kernel and channel:

====================  ==================  =======================================================
mixer                 parameters          order
====================  ==================  =======================================================
dense ``K x K``       ``K**2``            quadratic
stripes               ``10 K``            linear
peripheral            ``k'**2``           ``log(K)**2``, ``k'`` being the number of rings
====================  ==================  =======================================================

The paper writes ``O(log K)``. That is the number of rings ``k'`` along an axis, see :func:`ring_bound`; the kernel has
``k'`` by ``k'`` parameters. And its positional embedding (Eq. 3) has ``K**2`` per channel and stage: it is quadratic,
though shared by the blocks of a stage and by none of the curves of Fig. 6.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mmpelk.ops.sharing_grid import sharing_grid

from .paper import STATEMENTS

__all__ = [
    'CHANNELS',
    'DEPTHS',
    'KERNEL_SIZES',
    'MIXERS',
    'Growth',
    'ScalingRow',
    'convolution_parameters',
    'embedding_parameters',
    'kernel_growth',
    'kernel_parameters',
    'model_size',
    'ring_bound',
    'scaling_table',
]

#: ConvNeXt-T's blocks and channels per stage.
DEPTHS = (3, 3, 9, 3)
CHANNELS = (96, 192, 384, 768)
#: The mixers of Fig. 6, and how many branches, each with its norm, they train.
MIXERS = dict(peripheral=1, stripe=2, dense=1)
#: From 7 to 151, as in Fig. 6; the paper does not list its points.
KERNEL_SIZES = (7, 13, 21, 31, 41, 51, 61, 71, 81, 91, 101, 111, 121, 131, 141, 151)

_STRIPE_WIDTH = 5  # N of the paper's K x N
# Section 3: "scaling up kernel from 7 to 51 only bring about 7.3x params for stripe conv while that for dense conv is
# 53.1x". It gives no multiple for the peripheral kernel.
_PAPER_GROWTH = {mixer: STATEMENTS[f'fig2_{mixer}'].value for mixer in ('stripe', 'dense')}


def kernel_parameters(mixer: str, kernel_size: int, center_size: int = 5) -> int:
    """Parameters of one large kernel, per channel.

    Args:
        mixer: A name of :data:`MIXERS`.
        kernel_size: Side ``K``, odd.
        center_size: Side of the fine-grained centre of a peripheral kernel, odd; cut to ``K``.

    Returns:
        ``k'**2`` for the peripheral kernel, ``K**2`` for the dense one, ``2 * K * 5`` for the stripes.

    Raises:
        ValueError: If the mixer is unknown, or a size is not odd and positive.
    """
    if mixer not in MIXERS:
        raise ValueError(f'unknown mixer {mixer!r}; known: {", ".join(MIXERS)}')
    rings = len(sharing_grid(kernel_size, center_size))  # checks the sizes, too
    if mixer == 'peripheral':
        return rings**2
    return kernel_size**2 if mixer == 'dense' else 2 * kernel_size * min(_STRIPE_WIDTH, kernel_size)


def ring_bound(kernel_size: int, center_size: int = 5) -> int:
    """Upper bound of the number of rings ``k'``, logarithmic in ``K`` (Eq. 2 with ``m = 2``).

    On each side ``n`` complete rings of widths 2, 4, ..., ``2**n`` hold ``2**(n + 1) - 2`` positions, and a remainder
    is one ring at most. So ``r = (K - c) / 2`` positions take no more than ``ceil(log2(r + 2)) - 1`` rings.

    Args:
        kernel_size: Side ``K``, odd.
        center_size: Side ``c`` of the fine-grained centre, odd.

    Returns:
        ``c + 2 * (ceil(log2((K - c) / 2 + 2)) - 1)``, and ``K`` where the centre is the whole kernel.
    """
    radius = (kernel_size - center_size) // 2
    if radius <= 0:
        return kernel_size
    ceil_log2 = (radius + 1).bit_length()  # of radius + 2, in whole numbers
    return center_size + 2 * (ceil_log2 - 1)


def embedding_parameters(kernel_sizes: int | Sequence[int], channels: Sequence[int] = CHANNELS) -> int:
    """Parameters of the positional embeddings ``h`` of a network: ``C * K**2`` per stage (Eq. 3).

    Args:
        kernel_sizes: One side ``K`` for all stages, or one per stage.
        channels: Convolved channels per stage.

    Returns:
        Their number, whatever the depth: the blocks of a stage share one ``h``.
    """
    sides = _per_stage(kernel_sizes, channels)
    return sum(width * side**2 for width, side in zip(channels, sides, strict=True))


def convolution_parameters(
    mixer: str,
    kernel_sizes: int | Sequence[int],
    center_size: int = 5,
    depths: Sequence[int] = DEPTHS,
    channels: Sequence[int] = CHANNELS,
) -> int:
    """Parameters of all large kernels of a network, biases and norms left out.

    Args:
        mixer: A name of :data:`MIXERS`.
        kernel_sizes: One side ``K`` for all stages, or one per stage.
        center_size: Side of the fine-grained centre.
        depths: Blocks per stage.
        channels: Channels per stage.

    Raises:
        ValueError: As :func:`kernel_parameters`, or if the number of sizes is not that of the stages.
    """
    sides = _per_stage(kernel_sizes, channels)
    stages = zip(depths, channels, sides, strict=True)
    return sum(depth * width * kernel_parameters(mixer, side, center_size) for depth, width, side in stages)


def model_size(
    mixer: str,
    kernel_sizes: int | Sequence[int],
    center_size: int = 5,
    deploy: bool = True,
    positional_embedding: bool = False,
    depths: Sequence[int] = DEPTHS,
    channels: Sequence[int] = CHANNELS,
    num_classes: int = 1000,
) -> int:
    """Parameters of ConvNeXt-T, classifier included, whose large kernels are replaced (Fig. 6).

    It equals the count of the network that ``PeLK`` builds with ``conv_ratio=1.0`` and ``small_kernel_size=0``, plus a
    linear classifier.

    Args:
        mixer: A name of :data:`MIXERS`.
        kernel_sizes: One side ``K`` for all stages, or one per stage.
        center_size: Side of the fine-grained centre of peripheral kernels.
        deploy: As ``PeLK(deploy=...)``: a bias per channel and block, as in ConvNeXt. Otherwise, as it is trained, no
            bias and a norm after each branch (one for a square kernel, two for the stripes).
        positional_embedding: Whether each stage holds ``h``. Only the trained form has one.
        depths: Blocks per stage; ConvNeXt-T's by default.
        channels: Channels per stage; ConvNeXt-T's by default.
        num_classes: Outputs of the classifier; 0 for the backbone alone.

    Returns:
        Number of parameters.

    Raises:
        ValueError: As :func:`convolution_parameters`, or for an embedding that the network cannot have.
    """
    if positional_embedding and deploy:
        raise ValueError(
            'the deployed form holds the embedding as tables per block, which are no parameters; give deploy=False'
        )
    if positional_embedding and mixer == 'stripe':
        raise ValueError("mixer='stripe' has no positional embedding: Eq. 3 needs a square kernel")
    per_block = (
        1 if deploy else 2 * MIXERS.get(mixer, 0)
    )  # beside the kernel: its bias, or scale and shift of its norms
    size = convolution_parameters(mixer, kernel_sizes, center_size, depths, channels)
    for depth, width in zip(depths, channels, strict=True):
        # A block's norm (2C), linear layers C to 4C to C (8 C**2 + 5C), layer scale (C).
        size += depth * (8 * width**2 + (8 + per_block) * width)
    size += (3 * 4**2 + 1 + 2) * channels[0]  # stem with its norm
    for before, after in pairwise(channels):
        size += 2 * before + (before * 2**2 + 1) * after  # norm, then a 2x2 convolution
    size += 2 * channels[-1] + (channels[-1] + 1) * num_classes
    return size + (embedding_parameters(kernel_sizes, channels) if positional_embedding else 0)


@dataclass(frozen=True)
class ScalingRow:
    """A kernel size of Fig. 6.

    Attributes:
        kernel_size: Side ``K``, in all stages.
        rings: ``k'``, rings along an axis of the peripheral kernel.
        ring_bound: What ``rings`` cannot exceed, see :func:`ring_bound`.
        kernel: Parameters of one kernel, per channel, by mixer.
        peripheral: Parameters of the whole network with peripheral kernels.
        peripheral_embedding: The same, as it is trained with the positional embedding: a norm per block instead of a
            bias, and ``h`` in every stage. Not in the paper's figure.
        stripe: With SLaK's stripes.
        dense: With dense kernels.
    """

    kernel_size: int
    rings: int
    ring_bound: int
    kernel: dict[str, int]
    peripheral: int
    peripheral_embedding: int
    stripe: int
    dense: int


def scaling_table(kernel_sizes: Sequence[int] = KERNEL_SIZES, center_size: int = 5) -> list[ScalingRow]:
    """The points of Fig. 6.

    Args:
        kernel_sizes: Sides ``K``, odd.
        center_size: Side of the fine-grained centre of the peripheral kernels.

    Raises:
        ValueError: If a size is not odd and positive.
    """
    return [
        ScalingRow(
            kernel_size=side,
            rings=len(sharing_grid(side, center_size)),
            ring_bound=ring_bound(side, center_size),
            kernel={mixer: kernel_parameters(mixer, side, center_size) for mixer in MIXERS},
            peripheral_embedding=model_size('peripheral', side, center_size, deploy=False, positional_embedding=True),
            **{mixer: model_size(mixer, side, center_size) for mixer in MIXERS},
        )
        for side in kernel_sizes
    ]


@dataclass(frozen=True)
class Growth:
    """By what factor large kernels grow.

    Attributes:
        mixer: A name of :data:`MIXERS`.
        kernel: Of one kernel, from the smaller to the larger ``K``.
        network: Of all kernels of ConvNeXt-T, from the smaller ``K`` to ``network_sizes``.
        paper: What the paper states, or ``None``.
    """

    mixer: str
    kernel: float
    network: float
    paper: float | None


def kernel_growth(
    smaller: int = 7, larger: int = 51, network_sizes: Sequence[int] = (51, 49, 47, 13), center_size: int = 5
) -> list[Growth]:
    """The multiples of convolutional parameters that Section 3 and Fig. 2 state for 7 to 51, per mixer.

    Args:
        smaller: Side of the kernel that is compared with.
        larger: Side of the larger kernel.
        network_sizes: Sides per stage of the network with larger kernels; SLaK's and PeLK's by default.
        center_size: Side of the fine-grained centre of the peripheral kernels.

    Returns:
        Per mixer: the factor of one kernel, which is what the paper states, and of the kernels of a whole ConvNeXt-T,
        which is smaller because its last and widest stage goes to 13 only.
    """
    is_papers = (smaller, larger) == (7, 51)
    return [
        Growth(
            mixer,
            kernel_parameters(mixer, larger, center_size) / kernel_parameters(mixer, smaller, center_size),
            convolution_parameters(mixer, network_sizes, center_size)
            / convolution_parameters(mixer, smaller, center_size),
            _PAPER_GROWTH.get(mixer) if is_papers else None,
        )
        for mixer in MIXERS
    ]


def _per_stage(kernel_sizes: int | Sequence[int], channels: Sequence[int]) -> tuple[int, ...]:
    sides = (kernel_sizes,) * len(channels) if isinstance(kernel_sizes, int) else tuple(kernel_sizes)
    if len(sides) != len(channels):
        raise ValueError(f'{len(sides)} kernel sizes for {len(channels)} stages; give one, or one per stage')
    return sides
