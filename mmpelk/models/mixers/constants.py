"""What a deployed mixer computes once and keeps: functions of its tensors and of the map's size."""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmpelk.ops.functional import peripheral_conv2d
from mmpelk.ops.prepared import Prepared, prepare, settings_of

if TYPE_CHECKING:
    from .peripheral import PeripheralMixer

__all__ = ['DeployedConstants']

_SIZES = 4  # map sizes that a mixer keeps constants for


class DeployedConstants:
    """Bias map and prepared kernel of a deployed mixer, per map size, layout, dtype and device.

    They are made again once a tensor of the mixer was replaced or written to (as torch counts writes, so not through
    ``.data``), which loading a state dict and moving the module do.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Prepared] = OrderedDict()
        self._tensors: list[Tensor | None] = []
        self._versions: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}  # copies and pickles of a module begin without

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def mix(self, mixer: 'PeripheralMixer', x: Tensor) -> Tensor:
        """Convolve the first channels of ``x`` and pass the others."""
        large = mixer.large
        if type(x) is not Tensor:  # what is made of a fake tensor, which counters and tracers use, must not stay
            return peripheral_conv2d(
                x, large.weight, large.sharing_grid, mixer.deployed_bias(x), backend=large.backend, partial=True
            )
        tensors = [large.weight, large.bias, mixer._buffers.get('embedding_table')]
        if any(tensor is not None and tensor.is_inference() for tensor in tensors):  # which count no writes
            return self._prepare(mixer, x)(x)
        versions = [None if tensor is None else (tensor.data_ptr(), tensor._version) for tensor in tensors]
        same = len(tensors) == len(self._tensors) and all(a is b for a, b in zip(tensors, self._tensors, strict=True))
        if not same or versions != self._versions:
            self._kept.clear()
            self._tensors, self._versions = tensors, versions
        key = *settings_of(x), large.backend
        if key not in self._kept:
            while len(self._kept) >= _SIZES:
                self._kept.popitem(last=False)
            self._kept[key] = self._prepare(mixer, x)
        return self._kept[key](x)

    @staticmethod
    def _prepare(mixer: 'PeripheralMixer', x: Tensor) -> Prepared:
        with torch.inference_mode(False), torch.no_grad():
            return prepare(x, mixer.large.weight, mixer.large.sharing_grid, mixer.deployed_bias(x), mixer.large.backend)
