"""The peripheral convolution as an operator. Needs torch alone."""

from .backends import available_backends, force_backend
from .functional import peripheral_conv2d
from .sharing_grid import expand_kernel, sharing_grid
from .workspace import set_workspace_limit, workspace_limit

__all__ = [
    'available_backends',
    'benchmark',
    'expand_kernel',
    'force_backend',
    'peripheral_conv2d',
    'set_workspace_limit',
    'sharing_grid',
    'workspace_limit',
]

benchmark: bool | None = None
"""Whether the first call with a shape times the backends and later calls take the fastest, as
``torch.backends.cudnn.benchmark`` does for convolutions. ``None`` follows that flag on CUDA, which the recipes with
fixed sizes set, and measures nothing on a CPU. See :mod:`mmpelk.ops.backends.measured`."""
