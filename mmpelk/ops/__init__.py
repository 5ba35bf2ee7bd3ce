"""The peripheral convolution as an operator. Needs torch alone."""

from .backends import available_backends, force_backend
from .functional import peripheral_conv2d
from .sharing_grid import expand_kernel, sharing_grid
from .workspace import set_workspace_limit, workspace_limit

__all__ = [
    'available_backends',
    'expand_kernel',
    'force_backend',
    'peripheral_conv2d',
    'set_workspace_limit',
    'sharing_grid',
    'workspace_limit',
]
