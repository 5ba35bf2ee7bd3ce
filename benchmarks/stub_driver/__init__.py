"""A CUDA driver that launches nothing, so that Triton's own compiler, binder and launcher run without a GPU.

CPU tensors stand in for those of an H100: their addresses are never read.
"""

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Any

__all__ = ['build', 'environment', 'install']

_HOPPER = 90


def build(folder: Path) -> None:
    """Compile the library into ``folder``.

    Raises:
        subprocess.CalledProcessError: If gcc refuses it.
    """
    import triton

    headers = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'include'
    source = Path(__file__).with_name('libcuda.c')
    command: list[str | Path] = ['gcc', '-shared', '-fPIC', '-w', '-o', folder / 'libcuda.so.1', source, '-I', headers]
    subprocess.run(command, check=True)
    (folder / 'libcuda.so').symlink_to('libcuda.so.1')  # by which Triton before 3.6 links


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a process in which :func:`install` finds the library in ``folder``; Triton's cache lies there, too."""
    paths = dict.fromkeys(('TRITON_LIBCUDA_PATH', 'LD_LIBRARY_PATH'), str(folder))
    return {**os.environ, **paths, 'TRITON_CACHE_DIR': str(folder / 'cache'), 'OMP_NUM_THREADS': '1', **more}


def install(chosen: str = 'triton') -> Any:
    """Let Triton launch on the stub in this process, and the operator choose a Triton backend for CPU tensors.

    Args:
        chosen: Which, while it is not refused.

    Returns:
        A counter whose ``value`` is the number of launches.
    """
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

    from mmpelk.ops.backends import Backend, choice, table
    from mmpelk.ops.backends.triton import dft, launch

    class Driver(CudaDriver):
        def __init__(self) -> None:
            self.utils, self.launcher_cls = CudaUtils(), CudaLauncher
            self.get_device_capability = lambda device=0: divmod(_HOPPER, 10)
            self.get_current_stream = lambda device: 0
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None

        def get_current_target(self) -> GPUTarget:
            return GPUTarget('cuda', _HOPPER, 32)

    triton.runtime.driver.set_active(Driver())
    torch.cuda.get_device_capability = lambda device=None: divmod(_HOPPER, 10)
    for name, module in (('triton', launch), ('triton_dft', dft)):
        table.BACKENDS[name] = Backend(
            name,
            module.forward,
            module.weight_grad,
            prepare=module.prepare,
            kernel_key=module.kernel_key,
            input_grad=module.input_grad,
        )
    choice._fastest_on_cpu = lambda x, grid, weight_grad, *_: (
        chosen if table.refusal(chosen, x, weight_grad) is None else 'fft'
    )
    library = ctypes.CDLL(str(Path(os.environ['TRITON_LIBCUDA_PATH']) / 'libcuda.so.1'))
    return ctypes.c_ulong.in_dll(library, 'stub_launches')
