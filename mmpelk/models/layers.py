"""Norms, activations and stochastic depth of the blocks. Only those that a config names are mmcv's."""

from typing import Any

import torch
from torch import Tensor, nn


def build_norm(cfg: dict[str, Any] | None, channels: int) -> nn.Module:
    """Norm of a convolution: what mmcv builds of a config, or a batch norm."""
    if not cfg:
        return nn.BatchNorm2d(channels)
    from mmcv.cnn import build_norm_layer  # here, because timm's and transformers' users have no mmcv

    return build_norm_layer(cfg, channels)[1]


def build_activation(cfg: dict[str, Any] | None) -> nn.Module:
    """Activation: what mmcv builds of a config, or GELU."""
    if not cfg:
        return nn.GELU()
    from mmcv.cnn import build_activation_layer  # as above

    return build_activation_layer(cfg)


class DropPath(nn.Module):
    """Stochastic depth: in training, a sample is zero with a probability, and otherwise scaled up to keep its mean.

    It draws the random numbers that mmcv's does.

    Args:
        drop_prob: Probability that a sample is zero, in ``[0, 1)``.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        kept = (torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device) + keep).floor()
        return x / keep * kept
