"""RepLKNet's mixer."""

from .base import MixerSpec
from .peripheral import PeripheralMixer


class DenseMixer(PeripheralMixer):
    """A dense ``K x K`` kernel beside a small one, each with its norm (RepLKNet, https://arxiv.org/abs/2203.06717).

    A :class:`PeripheralMixer` whose grid is all ones, and so with the same operator, backends and embedding.
    """

    name = 'dense'
    has_sharing_grid = False

    @classmethod
    def grid_of(cls, spec: MixerSpec) -> tuple[int, ...]:
        """All ones."""
        return (1,) * spec.kernel_size
