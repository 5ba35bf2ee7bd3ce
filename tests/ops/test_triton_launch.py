"""The Triton backend through its real compiler, binder and launcher, over a driver that launches nothing.

Every program runs in a process of its own: the driver is chosen once.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.stub_driver import build, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which('gcc') is None, reason='gcc builds the stub, and Triton its launcher'),
]
pytest.importorskip('triton', minversion='3.4')

ROOT = Path(__file__).resolve().parents[2]
# A small training step, as the recipes run it, and its result by a backend that is not Triton's.
STEP = """
import logging, torch
from benchmarks.stub_driver import install
launches = install()
from mmpelk.ops import peripheral_conv2d, sharing_grid
logging.basicConfig(format='%(message)s')
grid = sharing_grid(13)
x = torch.randn(2, 4, 17, 20).contiguous(memory_format=torch.channels_last).requires_grad_()
weight = torch.randn(4, 1, len(grid), len(grid), requires_grad=True)
grad = torch.randn_like(x)
def step(backend):
    out = peripheral_conv2d(x, weight, grid, backend=backend)
    return out, *torch.autograd.grad(out, (x, weight), grad)
got, want = step(None), step('fft')
assert all(torch.equal(a, b) for a, b in zip(got, want))
before = launches.value
step(None)
assert launches.value == before, 'a kernel that failed is launched again'
print('launches:', before)
"""

# The same by kernels that are believed.
TRUSTED = """
from mmpelk.ops.backends import calls, table
table._refusals.clear()
calls._largest_error = lambda *_: 0.0
step(None)
before = launches.value
step(None)
print('launches of a step:', launches.value - before)
"""


NORMS = """
import logging, torch
from benchmarks.stub_driver import install
launches = install()
from mmpelk.ops import mixed_norm
logging.basicConfig(format='%(message)s')
large, small, x = (torch.randn(2, 5, 4, c, dtype=torch.bfloat16).permute(0, 3, 1, 2) for c in (3, 3, 7))
inputs = large, small, x, [([torch.rand(3)] * 4, 1e-5)] * 2, ([torch.rand(7).bfloat16()] * 2, 1e-6)
assert torch.equal(mixed_norm.mixed_norm(*inputs, x.dtype), mixed_norm._by_operators(*inputs))
assert mixed_norm._refused == {(x.device, x.dtype)}
mixed_norm._largest_error = lambda *_: 0.0
for _ in range(3):
    assert mixed_norm.mixed_norm(*inputs, x.dtype).shape == (2, 5, 4, 7)
print('launches:', launches.value)
"""

# Statistics that nobody writes are zeros here: of left-over infinities the comparison of the backward tells nothing.
TRAINING_NORMS = """
import logging, torch
from types import SimpleNamespace
torch.Tensor.new_empty = torch.Tensor.new_zeros
from benchmarks.stub_driver import install
launches = install()
from mmpelk.ops import training_norm
from mmpelk.ops.branches import BranchTensors
logging.basicConfig(format='%(message)s')
x = torch.randn(2, 5, 4, 7).permute(0, 3, 1, 2).requires_grad_()
weight, small = (torch.randn(3, 1, 3, 3, requires_grad=True) for _ in range(2))
norms = [torch.nn.BatchNorm2d(3) for _ in range(2)]
norm = [torch.rand(7, requires_grad=True) for _ in range(2)]
inputs = BranchTensors(weight, small, None), [1, 1, 1], 'dense', norms, (norm, 1e-6), x.dtype
call = lambda: training_norm.mix_and_norm(x, *inputs)
grads = lambda out: torch.autograd.grad(out, (x, weight, small, *norm), torch.ones_like(out))
assert call() is None and call() is None
assert norms[0].num_batches_tracked == 0
training_norm._refused.clear()
training_norm._warned.clear()
training_norm._forward_error = lambda *_: 0.0
settings = SimpleNamespace(grid=[1, 1, 1], backend='dense', epsilons=(1e-5, 1e-5, 1e-6), dtype=x.dtype)
parameters = [parameter for each in norms for parameter in each.parameters()]
plain = training_norm._by_operators([x, weight, small, None, *parameters, *norm], settings)
assert all(map(torch.equal, grads(call()), grads(plain)))
assert len(training_norm._refused) == 1
training_norm._refused.clear()
training_norm._backward_error = lambda *_: 0.0
before = launches.value
for _ in range(3):
    grads(call())
print('launches:', launches.value - before)
"""


@pytest.fixture(scope='module')
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('stub')
    build(folder)
    return folder


def _run(program: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [sys.executable, '-c', program],
        cwd=ROOT,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result


@pytest.mark.parametrize('backend', ['triton', 'triton_dft'])
def test_a_kernel_that_writes_nothing_reaches_no_training(stub: Path, backend: str) -> None:
    """Compiled, bound and launched as on a GPU; only the comparison with an exact result can tell."""
    program = STEP
    if backend == 'triton_dft':
        program = STEP.replace('install()', "install('triton_dft')").replace(
            'x = torch.randn(2, 4, 17, 20)', 'torch.set_default_dtype(torch.float16)\nx = torch.randn(2, 4, 17, 20)'
        )
    result = _run(program + TRUSTED, stub)
    assert int(result.stdout.split('launches: ')[1].split()[0]) > 0
    assert result.stderr.count('its result is wrong') == 2, result.stderr
    assert result.stderr.count('fails for the') == 2
    # The convolution twice: the map copied to planes, what is made of the weight, the product, and back. The gradient
    # of the weight: the other map copied, its shares, and their sum.
    assert 'launches of a step: 11' in result.stdout


def test_norms_of_a_block_that_are_wrong(stub: Path) -> None:
    result = _run(NORMS, stub)
    assert result.stderr.count('its result is wrong') == 1, result.stderr
    assert int(result.stdout.split('launches: ')[1]) == 4


def test_norms_of_a_block_in_training_that_are_wrong(stub: Path) -> None:
    """The forward, and where that is right the backward; then three launches each."""
    result = _run(TRAINING_NORMS, stub)
    assert result.stderr.count('its result is wrong') == 2, result.stderr
    assert int(result.stdout.split('launches: ')[1]) == 18


@pytest.mark.parametrize('function', ['cuModuleLoadData', 'cuLaunchKernelEx', 'cuFuncSetAttribute'])
def test_a_driver_that_refuses(stub: Path, function: str) -> None:
    program = STEP if function != 'cuFuncSetAttribute' else STEP.replace('17, 20', '17, 70').replace('2, 4,', '9, 4,')
    result = _run(program, stub, STUB_FAILS=function)
    assert result.stderr.count('an error of the stub') == 2, result.stderr
    assert result.stderr.count('fails for the') == 2


def test_no_compiler_of_c(stub: Path, tmp_path: Path) -> None:
    """Triton builds its launcher with gcc, at the first launch."""
    (tmp_path / 'libcuda.so.1').symlink_to(stub / 'libcuda.so.1')  # with an empty cache beside it
    program = STEP.replace('launches = install()', "launches = install()\nimport os\nos.environ['CC'] = '/nowhere/gcc'")
    # The driver's own helper is built when it is installed; the launcher of a new signature is not.
    result = _run(program, tmp_path)
    assert result.stderr.count('fails for the') == 2
    assert '/nowhere/gcc' in result.stderr


def test_a_broken_compiler(stub: Path) -> None:
    program = STEP.replace(
        'launches = install()',
        'launches = install()\nfrom triton.backends.nvidia.compiler import CUDABackend\n'
        'def broken(self, *args):\n    raise RuntimeError("PassManager::run failed")\n'
        'CUDABackend.make_ttgir = broken',
    )
    result = _run(program, stub, TRITON_ALWAYS_COMPILE='1')
    assert result.stderr.count('PassManager::run failed') == 2, result.stderr
