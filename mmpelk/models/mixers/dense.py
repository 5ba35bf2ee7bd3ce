"""RepLKNet's mixer."""

from dataclasses import replace

from .base import MixerSpec
from .peripheral import PeripheralMixer

__all__ = ['DenseMixer']


class DenseMixer(PeripheralMixer):
    """A dense ``K x K`` kernel beside a small one, each with its norm (RepLKNet, https://arxiv.org/abs/2203.06717).

    A :class:`PeripheralMixer` whose grid is all ones, and so with the same operator, backends and embedding.
    """

    name = 'dense'
    has_sharing_grid = False

    @classmethod
    def check(cls, spec: MixerSpec) -> None:
        """Refuse a sharing grid, but for the ones that it has itself."""
        super().check(spec if spec.sharing_grid != _ones(spec) else replace(spec, sharing_grid=None))

    def __init__(self, spec: MixerSpec) -> None:
        self.check(spec)
        super().__init__(replace(spec, sharing_grid=_ones(spec)))


def _ones(spec: MixerSpec) -> tuple[int, ...]:
    return (1,) * spec.kernel_size
