"""ConvNeXt's mixer."""

from torch import Tensor

from mmpelk.ops.branches import BranchTensors

from .base import Mixer, MixerSpec, depthwise_conv


class ConvNeXtMixer(Mixer):
    """A depthwise ``7 x 7`` convolution with a bias, and nothing beside it.

    The kernel is always 7 x 7, also if the spec asks for another; there is nothing to merge.
    """

    name = 'conv7'

    def __init__(self, spec: MixerSpec) -> None:
        super().__init__(spec)
        self.large = depthwise_conv(spec.channels, 7, 7, bias=True)

    def forward(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> Tensor:
        return self.large(x)

    def switch_to_deploy(self, embedding: Tensor | None = None) -> None:
        """As :meth:`Mixer.switch_to_deploy`."""
        self.deployed = True
