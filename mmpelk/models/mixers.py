"""The mixers that a block can be built with: the paper's, and those of the networks that it compares with."""

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from .large_kernel import EmbeddingMode, PeripheralMixer, check_small_kernel_size, drop_masks, norm_as_affine

__all__ = ['MIXERS', 'ConvNeXtMixer', 'DenseMixer', 'Mixer', 'StripeMixer']

_STRIPE_WIDTH = 5  # N of the paper's K x N, SLaK's default


class DenseMixer(PeripheralMixer):
    """RepLKNet's mixer: a dense ``K x K`` kernel beside a small one, each with its norm.

    A :class:`PeripheralMixer` whose grid is all ones, and so with the same operator, backends and embedding.

    Args:
        channels: Number of channels.
        kernel_size: Side ``K`` of the large kernel, odd.
        sharing_grid: None; a dense kernel shares nothing.
        center_size: Not used.
        small_kernel_size: As for :class:`PeripheralMixer`.
        embedding_mode: As for :class:`PeripheralMixer`.
        norm_cfg: Norm of each branch.
        deploy: Build the merged form.

    Raises:
        ValueError: If there is a sharing grid.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        sharing_grid: Sequence[int] | None = None,
        center_size: int = 5,
        small_kernel_size: int = 5,
        embedding_mode: EmbeddingMode | None = None,
        norm_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        _refuse('dense', sharing_grid)
        ones = (1,) * kernel_size
        super().__init__(channels, kernel_size, ones, center_size, small_kernel_size, embedding_mode, norm_cfg, deploy)


class StripeMixer(nn.Module):
    """SLaK's mixer: ``[K x 5 -> norm] + [5 x K -> norm] + [small x small -> norm]``, depthwise.

    Reference: Liu et al., More ConvNets in the 2020s, https://arxiv.org/abs/2207.03620, ``models/SLaK.py`` of
    https://github.com/VITA-Group/SLaK.

    :meth:`switch_to_deploy` folds the norms into the stripes, adds the small kernel to the centre of the first stripe
    and leaves one bias. The two stripes stay apart: only a ``K x K`` cross holds both, at ``K / 10`` times their cost.

    Args:
        channels: Number of channels.
        kernel_size: Long side ``K`` of the stripes, odd. Below 5 it is their short side, too.
        sharing_grid: None; stripes share nothing.
        center_size: Not used.
        small_kernel_size: Side of the parallel dense kernel, odd; 0 leaves the branch out.
        embedding_mode: None; Eq. 3 needs a square kernel.
        norm_cfg: Norm of each branch.
        deploy: Build the merged form.

    Raises:
        ValueError: If a size is not odd, or there is a sharing grid or an embedding.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        sharing_grid: Sequence[int] | None = None,
        center_size: int = 5,
        small_kernel_size: int = 5,
        embedding_mode: EmbeddingMode | None = None,
        norm_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        _refuse('stripe', sharing_grid, embedding_mode)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be an odd positive integer, got {kernel_size}')
        check_small_kernel_size(small_kernel_size)
        self.small_kernel_size = min(small_kernel_size, kernel_size)
        self.deployed = deploy
        width = min(_STRIPE_WIDTH, kernel_size)
        # One bias is enough for the sum of both.
        self.large = nn.ModuleList(
            [
                _depthwise(channels, kernel_size, width, bias=deploy),
                _depthwise(channels, width, kernel_size, bias=False),
            ]
        )
        if deploy:
            return
        norm_cfg = norm_cfg or dict(type='BN')
        self.large_norm = nn.ModuleList([build_norm_layer(norm_cfg, channels)[1] for _ in self.large])
        if self.small_kernel_size:
            self.small = _depthwise(channels, self.small_kernel_size, self.small_kernel_size, bias=False)
            self.small_norm = build_norm_layer(norm_cfg, channels)[1]

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Mix ``(N, C, H, W)``; there is no embedding."""
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
        """Merge what can be merged, in place: the same function in eval mode, with two stripes and one bias.

        Args:
            embedding: None.

        Raises:
            ValueError: If the small kernel is wider than the stripes, or a norm has no running statistics to fold.
        """
        if self.deployed:
            return
        first, second = self._stripes
        margins = [(side - self.small_kernel_size) // 2 for side in first.weight.shape[2:]]
        if min(margins) < 0:
            raise ValueError(
                f'a small kernel of {self.small_kernel_size} does not fit a stripe of width {first.weight.shape[3]}; '
                'train with a smaller small_kernel_size, or keep the model as trained'
            )
        (scale, bias), (second_scale, second_bias) = map(norm_as_affine, self.large_norm)
        weight, bias = first.weight.double() * scale, bias + second_bias
        second_weight = second.weight.double() * second_scale
        if self.small_kernel_size:
            small_scale, small_bias = norm_as_affine(self.small_norm)
            padding = [margins[1]] * 2 + [margins[0]] * 2  # left, right, top, bottom
            weight = weight + nn.functional.pad(self.small.weight.double() * small_scale, padding)
            bias = bias + small_bias
            del self.small, self.small_norm
        del self.large_norm
        drop_masks(first)
        drop_masks(second)
        first.weight.copy_(weight)
        second.weight.copy_(second_weight)
        first.bias = nn.Parameter(bias.to(first.weight), requires_grad=first.weight.requires_grad)
        self.deployed = True


class ConvNeXtMixer(nn.Module):
    """ConvNeXt's mixer: a depthwise ``7 x 7`` convolution with a bias, and nothing beside it.

    Args:
        channels: Number of channels.
        kernel_size: Not used: it is 7, whatever the architecture's other mixers have.
        sharing_grid: None; a dense kernel shares nothing.
        center_size: Not used.
        small_kernel_size: Not used: there is no small kernel.
        embedding_mode: None.
        norm_cfg: Not used: there is no branch to normalise.
        deploy: Makes no difference.

    Raises:
        ValueError: If there is a sharing grid or an embedding.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        sharing_grid: Sequence[int] | None = None,
        center_size: int = 5,
        small_kernel_size: int = 0,
        embedding_mode: EmbeddingMode | None = None,
        norm_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        _refuse('conv7', sharing_grid, embedding_mode)
        self.deployed = deploy
        self.large = _depthwise(channels, 7, 7, bias=True)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Mix ``(N, C, H, W)``; there is no embedding."""
        return self.large(x)

    def switch_to_deploy(self, embedding: Tensor | None = None) -> None:
        """There is nothing to merge."""
        self.deployed = True


Mixer: TypeAlias = PeripheralMixer | StripeMixer | ConvNeXtMixer

#: What ``PeLK(mixer=...)`` takes. All are built with the same arguments.
MIXERS: dict[str, type[Mixer]] = dict(
    peripheral=PeripheralMixer, dense=DenseMixer, stripe=StripeMixer, conv7=ConvNeXtMixer
)


def _depthwise(channels: int, height: int, width: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels, bias=bias)


def _refuse(mixer: str, sharing_grid: Sequence[int] | None, embedding_mode: EmbeddingMode | None = None) -> None:
    if sharing_grid is not None:
        raise ValueError(f"mixer='{mixer}' has no sharing grid: leave sharing_grids out, or take mixer='peripheral'")
    if embedding_mode is not None:
        raise ValueError(
            f"mixer='{mixer}' has no positional embedding: set positional_embedding=None, or take mixer='peripheral' "
            "or 'dense'"
        )
