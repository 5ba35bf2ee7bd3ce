"""SLaK's mixer."""

from typing import cast

import torch
from torch import Tensor, nn

from mmpelk.ops.branches import BranchTensors

from ..layers import build_norm
from .base import Mixer, MixerSpec, depthwise_conv, folded

_STRIPE_WIDTH = 5  # N of the paper's K x N, SLaK's default


class StripeMixer(Mixer):
    """``[K x 5 -> norm] + [5 x K -> norm] + [small x small -> norm]``, depthwise.

    Reference: Liu et al., More ConvNets in the 2020s, https://arxiv.org/abs/2207.03620, ``models/SLaK.py`` of
    https://github.com/VITA-Group/SLaK.

    :meth:`switch_to_deploy` folds the norms into the stripes, adds the small kernel to the centre of the first stripe
    and leaves one bias. The two stripes stay apart: only a ``K x K`` cross holds both, at ``K / 10`` times their cost.
    A ``K`` below 5 is the stripes' short side, too.

    Raises:
        ValueError: If ``K`` is not odd, too.
    """

    name = 'stripe'

    def __init__(self, spec: MixerSpec) -> None:
        super().__init__(spec)
        channels, size = spec.channels, spec.kernel_size
        if size < 1 or size % 2 == 0:
            raise ValueError(f'kernel_size must be an odd positive integer, got {size}')
        width = min(_STRIPE_WIDTH, size)
        # One bias is enough for the sum of both.
        stripes = depthwise_conv(channels, size, width, spec.deploy), depthwise_conv(channels, width, size, False)
        self.large = nn.ModuleList(stripes)
        if spec.deploy:
            return
        self.large_norm = nn.ModuleList([build_norm(spec.norm_cfg, spec.channels) for _ in stripes])
        self.build_small_branch(spec)

    def forward(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> Tensor:
        first, second = self._stripes
        if self.deployed:
            return first(x) + second(x)
        out = self.large_norm[0](first(x)) + self.large_norm[1](second(x))
        if self.small_kernel_size:
            out = out + self.small_norm(self.small(x))
        return out

    @property
    def _stripes(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        first, second = self.large
        return cast(nn.Conv2d, first), cast(nn.Conv2d, second)

    @torch.no_grad()
    def switch_to_deploy(self, embedding: Tensor | None = None) -> None:
        """As :meth:`Mixer.switch_to_deploy`: two stripes and one bias.

        Raises:
            ValueError: If the small kernel is wider than the stripes, too.
        """
        if self.deployed:
            return
        first, second = self._stripes
        rows, columns = [(side - self.small_kernel_size) // 2 for side in first.weight.shape[2:]]
        if min(rows, columns) < 0:
            raise ValueError(
                f'a small kernel of {self.small_kernel_size} does not fit a stripe of width {first.weight.shape[3]}; '
                'train with a smaller small_kernel_size, or keep the model as trained'
            )
        self.settle()
        weight, bias = folded(first, self.large_norm[0])
        second_weight, second_bias = folded(second, self.large_norm[1])
        small_weight, small_bias = self.take_small_branch([columns, columns, rows, rows])
        del self.large_norm
        # Kernels of their own: others may share those that were trained.
        self.large = nn.ModuleList(
            [
                _merged_like(first, weight + small_weight, bias + second_bias + small_bias),
                _merged_like(second, second_weight, None),
            ]
        ).train(self.large.training)
        self.deployed = True


def _merged_like(stripe: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    with torch.device('meta'):
        merged = depthwise_conv(len(weight), weight.shape[2], weight.shape[3], bias is not None)
    merged.weight = nn.Parameter(weight.to(stripe.weight), stripe.weight.requires_grad)
    if bias is not None:
        merged.bias = nn.Parameter(bias.to(stripe.weight), stripe.weight.requires_grad)
    return merged
