"""The network that no operator can beat: its mixers do nothing."""

from torch import Tensor, nn

from mmpelk.models import PeLK


class _IdentityMixer(nn.Module):
    """In place of the mixer: the channels as they are."""

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return x


def without_mixer(model: PeLK) -> PeLK:
    """Put identities in place of a network's mixers; in place.

    Args:
        model: The network.

    Returns:
        The same: the ceiling that no operator can pass.
    """
    for stage in model.stages:
        stage.positional_embedding = None
        for block in stage:
            block.mixer = _IdentityMixer()
    return model
