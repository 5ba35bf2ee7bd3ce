"""Check this environment: what is installed, what is missing, and how to mend it.

Every check stands alone and imports what it needs itself: a doctor has to run where something is broken.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Import name, and the distribution that provides it in the stock line of OpenMMLab and in the maintained one.
_DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'onedl-mmcv'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}
_SHARED_MEMORY = Path('/dev/shm')
_GB = 2**30
_SET_UP = 'tools/setup_env.sh, or pip install the versions of requirements.txt'


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        state: ``'ok'``; ``'warning'``, something that only part of the work needs; ``'error'``.
        text: What was found.
        remedy: What to do, unless nothing is wrong.
    """

    name: str
    state: str
    text: str
    remedy: str | None = None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Finding]:
    from mmpelk import __version__

    yield Finding('mmpelk', 'ok', f'{__version__}, Python {platform.python_version()}, {platform.platform()}')


def _torch() -> Iterator[Finding]:
    import torch

    yield Finding('torch', 'ok', f'{torch.__version__}, {torch.get_num_threads()} threads')
    import torchvision

    yield Finding('torchvision', 'ok', torchvision.__version__)


def _openmmlab() -> Iterator[Finding]:
    stock, maintained = (
        {name: version for name in line if (version := _version(name))}
        for line in zip(*_DISTRIBUTIONS.values(), strict=True)
    )
    both = [' and '.join(pair) for pair in _DISTRIBUTIONS.values() if all(map(_version, pair))]
    if both:
        yield Finding(
            'OpenMMLab',
            'error',
            f'{", ".join(both)} provide the same import names and overwrite each other',
            f'pip uninstall {" ".join([*stock, *maintained])}, then install one line again',
        )
    elif not stock and not maintained:
        yield Finding('OpenMMLab', 'error', 'none of its packages is installed', _SET_UP)
    else:
        mixed = bool(stock and maintained)
        line = 'a mixture of both lines' if mixed else 'the maintained line' if maintained else 'the stock line'
        versions = ', '.join(f'{name} {version}' for name, version in (stock | maintained).items())
        remedy = 'install all packages from one line' if mixed else None
        yield Finding('OpenMMLab', 'warning' if mixed else 'ok', f'{line}: {versions}', remedy)
    for name in _DISTRIBUTIONS:
        if name not in ('mmengine', 'mmcv') and importlib.util.find_spec(name) is None:
            yield Finding(name, 'warning', 'not installed; its recipes need it', _SET_UP)
    transformers = _version('transformers') or ''
    if importlib.util.find_spec('mmpretrain') is not None and int(transformers.partition('.')[0] or 0) >= 5:
        text = f'{transformers}, with which mmpretrain.models cannot be imported'
        remedy = "pip install 'transformers<5', or keep it in an environment of its own (docs/transformers.md)"
        yield Finding('transformers', 'warning', text, remedy)
    if stock.get('mmengine') and tuple(map(int, (_version('torch') or '0.0').split('.')[:2])) >= (2, 6):
        remedy = (
            'install_safe_loading() of mmpelk.fault_tolerance.safe_loading, which our tools call, reads them as data '
            '(docs/reliability.md); or take the maintained line'
        )
        if os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD') != '1':
            yield Finding(
                'checkpoints', 'warning', 'stock mmengine alone loads no checkpoint with torch 2.6 or later', remedy
            )


def _mmcv_operators() -> Iterator[Finding]:
    import torch

    from mmpelk.mmcv_operators import compile_command, import_error

    remedy = f'tools/setup_env.sh det in the .venv of a checkout; elsewhere {compile_command()}'
    if importlib.util.find_spec('mmcv') is None:
        yield Finding('mmcv', 'error', 'not installed', _SET_UP)
        return
    if importlib.util.find_spec('mmcv._ext') is None:
        text = 'not compiled; detection and Mask2Former need them, the other recipes do not'
        yield Finding('mmcv operators', 'warning', text, remedy)
        return
    if error := import_error():
        text = f'compiled for another torch than {torch.__version__}: {error}'
        yield Finding('mmcv operators', 'error', text, remedy)
        return
    from mmcv import ops

    compiled = ops.get_compiling_cuda_version()
    if torch.cuda.is_available() and compiled != torch.version.cuda:
        text = f'compiled for CUDA {compiled}, torch for {torch.version.cuda}: detection may fail on the GPU'
        remedy = f'with nvcc of CUDA {torch.version.cuda} on the PATH: {compile_command()}'
        yield Finding('mmcv operators', 'warning', text, remedy)
    else:
        yield Finding('mmcv operators', 'ok', f'compiled with {ops.get_compiler_version()}, CUDA {compiled}')


def _cuda() -> Iterator[Finding]:
    import torch

    driver = None
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
        asked = subprocess.run(query, capture_output=True, text=True, timeout=60)
        driver = '; '.join(asked.stdout.split('\n')[:-1]) if asked.returncode == 0 else None
    if torch.cuda.is_available():
        names = ', '.join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Finding('GPU', 'ok', f'{names}; CUDA {torch.version.cuda}, driver: {driver or "unknown"}')
    elif driver and torch.version.cuda is None:
        yield Finding(
            'GPU', 'error', f'{driver}, but this torch was built without CUDA', 'install a CUDA build of torch'
        )
    elif driver:
        text = f'{driver}, but torch, built for CUDA {torch.version.cuda}, does not see it'
        remedy = 'update the driver, or install a torch that it supports; see also CUDA_VISIBLE_DEVICES'
        yield Finding('GPU', 'error', text, remedy)
    else:
        yield Finding('GPU', 'ok', 'none: everything runs on the CPU')


def _triton() -> Iterator[Finding]:
    import torch

    version = _version('triton')
    if version:
        yield Finding('Triton', 'ok', version if torch.cuda.is_available() else f'{version}, which needs a GPU')
    elif torch.cuda.is_available():
        text = "not installed: the operator's own GPU kernels need it, dense and fft run without"
        yield Finding('Triton', 'warning', text, 'pip install triton, in the version that this torch names')
    else:
        yield Finding('Triton', 'ok', 'not installed; a GPU alone needs it')


def _backends() -> Iterator[Finding]:
    """Each backend that runs here, compared with the definition in float64: output and both gradients."""
    import torch

    from mmpelk.ops import available_backends, expand_kernel, peripheral_conv2d
    from mmpelk.ops.backends import BACKENDS

    forced = os.environ.get('MMPELK_BACKEND')
    if forced and forced not in available_backends():
        yield Finding('MMPELK_BACKEND', 'error', f'{forced!r} does not run here', 'unset MMPELK_BACKEND')
    grid = (4, 2, 1, 1, 1, 2, 4)
    for name in BACKENDS:
        if name not in available_backends():
            yield Finding(f'backend {name}', 'ok', 'does not run on this machine')
            continue
        device = 'cuda' if name.startswith('triton') else 'cpu'
        dtype = torch.float16 if name == 'triton_dft' else torch.float32
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(2, 3, 20, 17, generator=generator).to(device, dtype).requires_grad_()
        weight = torch.rand(3, 1, len(grid), len(grid), generator=generator).to(device, dtype).requires_grad_()
        exact_x, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
        expected = torch.nn.functional.conv2d(
            exact_x, expand_kernel(exact_weight, grid), padding=sum(grid) // 2, groups=x.shape[1]
        )
        try:
            out = peripheral_conv2d(x, weight, grid, backend=name)
            pairs = [(out, expected)]
            pairs += zip(
                torch.autograd.grad(out.sum(), (x, weight)),
                torch.autograd.grad(expected.sum(), (exact_x, exact_weight)),
                strict=True,
            )
        except Exception as error:  # a broken compiler or driver raises anything
            yield Finding(f'backend {name}', 'error', f'fails: {type(error).__name__}: {error}', _another_backend(name))
            continue
        errors = [(a.detach().double() - b.detach()).abs().max() / b.detach().abs().max() for a, b in pairs]
        worst = float(torch.stack(errors).max())  # NaN stays
        # Sums of some hundred terms in float32, or a result rounded to float16; a wrong index gives 0.01 and more.
        if worst < (1e-4 if dtype == torch.float32 else torch.finfo(dtype).eps):
            yield Finding(f'backend {name}', 'ok', f'agrees with the definition to {worst:.0e}')
        else:
            text = f'differs from the definition by {worst:.0e} of the largest value'
            yield Finding(f'backend {name}', 'error', text, _another_backend(name))


def _another_backend(name: str) -> str:
    other = 'fft' if name == 'dense' else 'dense'
    return f'MMPELK_BACKEND={other} avoids it; please report it with the output of --json'


def _folders() -> Iterator[Finding]:
    here = Path.cwd()
    folder = here / 'work_dirs' if (here / 'work_dirs').is_dir() else here
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            'work folder', 'error', f'{folder} takes no files: {error.strerror}', 'give another with --work-dir'
        )
        return
    free = shutil.disk_usage(folder).free / _GB
    text = f'{folder}, {free:.0f} GB free'
    if free < 5:
        yield Finding(
            'work folder',
            'warning',
            text,
            'a checkpoint of PeLK-B takes 1 GB: free some, or --work-dir on another disk',
        )
    else:
        yield Finding('work folder', 'ok', text)


def _shared_memory() -> Iterator[Finding]:
    if not _SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free / _GB
    if free < 1:
        remedy = 'docker run --shm-size=8g (or --ipc=host); or --cfg-options train_dataloader.num_workers=0'
        yield Finding('shared memory', 'warning', f'{free:.2f} GB for data loading workers: they may die', remedy)
    else:
        yield Finding('shared memory', 'ok', f'{free:.1f} GB')


def _projects() -> list[Path]:
    """Configs of tools/new_project.py: of the folder that one is in, or below projects in it."""
    here = Path.cwd()
    found = [here / f'{here.name}.py', *sorted(here.glob('projects/*/*.py'))]
    return [path for path in found if path.is_file() and path.stem == path.parent.name]


def _recipes() -> Iterator[Finding]:
    """Data folders and pretrained weights of the recipes, or of one's own projects, each missing one once."""
    from mmengine.config import Config

    from mmpelk.config import get_config, list_configs
    from mmpelk.engine.checks import missing_data, missing_weights

    problems: dict[str, list[str]] = {}
    ready, unread, reason = [], [], ''
    projects = {os.path.relpath(path): path for path in _projects()}
    for name in projects or list_configs():
        if name.startswith('demo/'):
            continue  # their data is drawn by the demo
        try:
            cfg = Config.fromfile(projects[name]) if projects else get_config(name)
        except ImportError as error:  # of what a recipe imports, such as mmdetection without mmcv's operators
            first: BaseException = error
            while (before := first.__cause__ or first.__context__) is not None:
                first = before
            reason = str(first).splitlines()[0]
            unread.append(name)
            continue
        missing = [next(missing_data(cfg, ['train_dataloader', 'val_dataloader']), None)]
        missing.append(next(missing_weights(cfg), None))
        paths = [found[0] for found in missing if found]
        for path in paths:
            problems.setdefault(path, []).append(name)
        if not paths:
            ready.append(name)
    for path, names in problems.items():
        more = f' and {len(names) - 1} more' if len(names) > 1 else ''
        page = 'docs/training.md' if path.startswith('checkpoints') else 'docs/getting_started.md'
        remedy = 'put it back, or run tools/new_project.py again' if projects else f'{page} says where it comes from'
        yield Finding(path, 'warning', f'not here; needed by {names[0]}{more}', remedy)
    kind = 'projects' if projects else 'recipes'
    if unread:
        remedy = 'tools/setup_env.sh det in the .venv of a checkout installs what all recipes import'
        yield Finding(kind, 'warning', f'{", ".join(unread)} import what is not here: {reason}', remedy)
    yield Finding(
        kind,
        'ok',
        f'{len(ready)} ready to train: {", ".join(ready)}' if ready else 'none has its data and weights here',
    )


def _checkpoints() -> Iterator[Finding]:
    found = sorted([*Path('checkpoints').glob('*.pth'), *Path('work_dirs').glob('*/*.pth')])
    broken = [path for path in found if path.stat().st_size == 0]
    for path in broken:
        yield Finding(str(path), 'error', 'an empty file', 'remove it, and copy or train it again')
    for path in found:
        if path not in broken and not zipfile.is_zipfile(path):
            text = 'cut off, or written by a torch older than 1.6'
            yield Finding(str(path), 'warning', text, 'remove it if it does not load, and copy or train it again')
    names = ', '.join(str(path) for path in found[:5]) + (' ...' if len(found) > 5 else '')
    yield Finding('checkpoints', 'ok', f'{len(found)} in checkpoints and work_dirs{": " if found else ""}{names}')


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _openmmlab,
    _mmcv_operators,
    _cuda,
    _triton,
    _backends,
    _folders,
    _shared_memory,
    _recipes,
    _checkpoints,
)


def examine(checks: Iterable[Callable[[], Iterator[Finding]]] = CHECKS) -> list[Finding]:
    """The findings of every check; a check that fails becomes a finding."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            text = f'{type(error).__name__}: {error}'
            findings.append(Finding(check.__name__.strip('_').replace('_', ' '), 'error', text, _SET_UP))
    return findings


def report(findings: list[Finding], *, as_json: bool = False) -> int:
    """Print the findings.

    Returns:
        The exit code: 1 if there is an error, else 0.
    """
    failed = any(finding.state == 'error' for finding in findings)
    if as_json:
        print(json.dumps({'ok': not failed, 'findings': [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f'{finding.state:8} {finding.name}: {finding.text}')
            if finding.remedy:
                print(f'{"":8}   remedy: {finding.remedy}')
        counts = [sum(finding.state == state for finding in findings) for state in ('error', 'warning')]
        print(f'{counts[0]} errors, {counts[1]} warnings')
    return int(failed)
