"""The doctor on a sound environment, and on one in which each thing is broken in turn."""

import dataclasses
import importlib.metadata
import importlib.util
import inspect
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from mmengine.config import Config

import mmpelk.config
from mmpelk import doctor
from mmpelk.doctor import Finding
from mmpelk.mmcv_operators import compile_command, import_error
from mmpelk.ops import available_backends
from mmpelk.ops.backends import BACKENDS
from tests.paths import ROOT

Usage = namedtuple('Usage', 'total used free')
Patch = pytest.MonkeyPatch


def versions(patch: Patch, **installed: str) -> None:
    names = {name.replace('_', '-'): version for name, version in installed.items()}

    def version(name: str) -> str:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return names[name]

    patch.setattr(importlib.metadata, 'version', version)


def absent(patch: Patch, missing: str) -> None:
    find = importlib.util.find_spec
    patch.setattr(importlib.util, 'find_spec', lambda name: None if name == missing else find(name))


def no_cuda(patch: Patch) -> None:
    nvidia_smi(patch)
    patch.setattr(torch.version, 'cuda', None)


def other_cuda(patch: Patch, compiled: str = '12.1') -> None:
    patch.setattr(torch.cuda, 'is_available', lambda: True)
    patch.setattr(torch.version, 'cuda', '13.0')
    patch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: compiled)


def no_triton(patch: Patch) -> None:
    patch.setattr(torch.cuda, 'is_available', lambda: True)
    versions(patch)


def drivers(printed: str, code: int = 0) -> Callable[..., Any]:
    """What runs nvidia-smi, which hangs where a driver does."""

    def run(query: list[str], *, capture_output: bool, text: bool, timeout: float) -> Any:
        header = '' if 'noheader' in query[-1] else 'name, driver_version\n'
        return subprocess.CompletedProcess(query, code, header + printed, '')

    return run


def nvidia_smi(patch: Patch) -> None:
    patch.setattr(shutil, 'which', lambda name: f'/usr/bin/{name}')
    patch.setattr(subprocess, 'run', drivers('NVIDIA H100, 580.1\n'))
    patch.setattr(torch.cuda, 'is_available', lambda: False)


def read_only(*_: object, **__: object) -> None:
    raise PermissionError(13, 'Permission denied')


def wrong_backend(patch: Patch) -> None:
    import mmpelk.ops

    right = mmpelk.ops.peripheral_conv2d
    patch.setattr(mmpelk.ops, 'peripheral_conv2d', lambda *args, **kwargs: right(*args, **kwargs) * 1.01)


def failing_backend(patch: Patch) -> None:
    import mmpelk.ops

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError('ptxas was killed')

    patch.setattr(mmpelk.ops, 'peripheral_conv2d', fail)


def blocked(name: str) -> Callable[[Patch], None]:
    return lambda patch: patch.setitem(sys.modules, name, None)


def other_torch(patch: Patch) -> None:
    error = ImportError('_ext.so: undefined symbol: _ZN2at', name='mmcv._ext')
    patch.setattr('mmpelk.mmcv_operators.import_error', lambda: error)


def empty_checkpoint(patch: Patch) -> None:
    Path('checkpoints').mkdir()
    Path('checkpoints/pelk_t_in1k.pth').touch()


def truncated_checkpoint(patch: Patch) -> None:
    Path('work_dirs/run').mkdir(parents=True)
    whole = Path('work_dirs/run/iter_4.pth')
    torch.save(dict(state_dict=dict(weight=torch.zeros(100))), whole)
    whole.write_bytes(whole.read_bytes()[:-100])


# What breaks, the line that says so, its state, and a word of the remedy.
BROKEN: dict[str, tuple[Callable[[Patch], None], str, str, str]] = {
    'both lines': (lambda p: versions(p, mmcv='2.1', onedl_mmcv='2.3.6'), 'OpenMMLab', 'error', 'uninstall'),
    'mixed lines': (lambda p: versions(p, mmengine='0.10', onedl_mmcv='2.3.6'), 'OpenMMLab', 'warning', 'one line'),
    'no OpenMMLab': (versions, 'OpenMMLab', 'error', 'setup_env'),
    'stock and new torch': (
        lambda p: versions(p, mmengine='0.10', torch='2.11.0'),
        'checkpoints',
        'warning',
        'reads them as data',
    ),
    'transformers 5': (lambda p: versions(p, transformers='5.24.0'), 'transformers', 'warning', 'transformers<5'),
    'no toolbox': (lambda p: absent(p, 'mmpretrain'), 'mmpretrain', 'warning', 'setup_env'),
    'no mmcv': (lambda p: absent(p, 'mmcv'), 'mmcv', 'error', 'setup_env'),
    'no operators': (lambda p: absent(p, 'mmcv._ext'), 'mmcv operators', 'warning', 'no-build-isolation'),
    'operators of another torch': (other_torch, 'mmcv operators', 'error', 'force-reinstall'),
    'no torchvision': (blocked('torchvision'), 'torch', 'error', 'setup_env'),
    'driver': (nvidia_smi, 'GPU', 'error', 'driver'),
    'torch without CUDA': (no_cuda, 'GPU', 'error', 'CUDA build'),
    'operators of another CUDA': (other_cuda, 'mmcv operators', 'warning', 'nvcc of CUDA 13.0'),
    'no Triton': (no_triton, 'Triton', 'warning', 'pip install triton'),
    'unknown backend': (lambda p: p.setenv('MMPELK_BACKEND', 'abacus'), 'MMPELK_BACKEND', 'error', 'unset'),
    'wrong backend': (wrong_backend, 'backend fft', 'error', 'MMPELK_BACKEND=dense'),
    'failing backend': (failing_backend, 'backend dense', 'error', 'MMPELK_BACKEND=fft'),
    'read-only': (lambda p: p.setattr('tempfile.TemporaryFile', read_only), 'work folder', 'error', '--work-dir'),
    'full disk': (
        lambda p: p.setattr(shutil, 'disk_usage', lambda _: Usage(9, 9, 2**30)),
        'work folder',
        'warning',
        '--work-dir',
    ),
    'shared memory': (
        lambda p: p.setattr(shutil, 'disk_usage', lambda _: Usage(9, 9, 2**26)),
        'shared memory',
        'warning',
        '--shm-size',
    ),
    'data': (lambda p: None, 'data/ade/ADEChallengeData2016', 'warning', 'getting_started'),
    'weights': (lambda p: None, 'checkpoints/pelk_t_in1k.pth', 'warning', 'training.md'),
    'checkpoint': (empty_checkpoint, 'checkpoints/pelk_t_in1k.pth', 'error', 'remove'),
    'truncated checkpoint': (truncated_checkpoint, 'work_dirs/run/iter_4.pth', 'warning', 'copy or train'),
}


# Checks that take a second or two, and how the names of their findings begin.
EXPENSIVE = {doctor._backends: ('backend', 'MMPELK_BACKEND'), doctor._recipes: ('data', 'checkpoints/')}


@pytest.mark.slow  # every case examines the environment, of which one fails to import
@pytest.mark.parametrize(('break_it', 'name', 'state', 'remedy'), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_reported(
    break_it: Callable[[Patch], None], name: str, state: str, remedy: str, monkeypatch: Patch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    break_it(monkeypatch)
    checks = [check for check in doctor.CHECKS if check not in EXPENSIVE or name.startswith(EXPENSIVE[check])]
    findings = doctor.examine(checks)
    (found,) = [finding for finding in findings if finding.name == name and finding.state == state]
    assert found.remedy
    assert remedy in found.remedy
    assert doctor.report(findings) == (1 if any(finding.state == 'error' for finding in findings) else 0)


def two_gpus(patch: Patch) -> None:
    nvidia_smi(patch)
    patch.setattr(torch.cuda, 'is_available', lambda: True)
    patch.setattr(torch.cuda, 'device_count', lambda: 2)
    patch.setattr(torch.cuda, 'get_device_name', lambda index: f'GPU {index}')
    patch.setattr(subprocess, 'run', drivers('NVIDIA H100, 580.1\nNVIDIA H200, 580.1\n'))
    patch.setattr(torch.version, 'cuda', '13.0')


def failing_nvidia_smi(patch: Patch) -> None:
    nvidia_smi(patch)
    patch.setattr(subprocess, 'run', drivers('no devices\n', code=9))


def free(gigabytes: float) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(shutil, 'disk_usage', lambda _: Usage(9, 9, gigabytes * 2**30))


def no_room(patch: Patch) -> None:
    patch.setattr('tempfile.TemporaryFile', mock.Mock(side_effect=OSError(30, 'Read-only file system')))


def folder_of_runs(patch: Patch) -> None:
    Path('work_dirs/run').mkdir(parents=True)
    tried: list[str] = []
    patch.setattr('tempfile.TemporaryFile', lambda dir: tried.append(dir.name) or io.BytesIO())
    patch.setattr(shutil, 'disk_usage', lambda at: Usage(9, 9, 99 * 2**30 * (tried == [at.name] == ['work_dirs'])))


def seven_checkpoints(patch: Patch) -> None:
    Path('work_dirs/run').mkdir(parents=True)
    for index in reversed(range(7)):
        torch.save(dict(state_dict={}), f'work_dirs/run/iter_{index}.pth')


def two_recipes(patch: Patch) -> None:
    names = ['demo/pelk_nano_digits.py', 'seg/upernet_pelk_t_ade20k.py', 'seg/upernet_pelk_s_ade20k.py']
    patch.setattr('mmpelk.config.list_configs', lambda: names)


def one_of_two_recipes(patch: Patch) -> None:
    two_recipes(patch)
    right = mmpelk.config.get_config
    patch.setattr('mmpelk.config.get_config', lambda name: Config({}) if '_s_' in name else right(name))


def recipe_without_its_imports(patch: Patch) -> None:
    two_recipes(patch)
    right = mmpelk.config.get_config

    def get_config(name: str) -> Any:
        if name == 'seg/upernet_pelk_s_ade20k.py':
            try:
                importlib.import_module('no_such_module')
            except ImportError:
                inner = ImportError('of a toolbox')
                inner.__context__ = sys.exc_info()[1]
            raise ImportError('Failed to import custom modules') from inner
        return right(name)

    patch.setattr('mmpelk.config.get_config', get_config)


# A check, what it finds, the state and the text of all that it says.
FOUND: dict[str, tuple[Callable[[], Any], Callable[[Patch], None], list[tuple[str, str]]]] = {
    'driver': (doctor._cuda, nvidia_smi, [('error', r'NVIDIA H100, 580\.1, but torch.*')]),
    'driver, no CUDA': (doctor._cuda, no_cuda, [('error', r'NVIDIA H100, 580\.1, but this torch.*')]),
    'no driver, no CUDA': (
        doctor._cuda,
        lambda p: (p.setattr(shutil, 'which', lambda _: None), p.setattr(torch.version, 'cuda', None)),
        [('ok', 'none: everything runs on the CPU')],
    ),
    'failing driver': (doctor._cuda, failing_nvidia_smi, [('ok', 'none: everything runs on the CPU')]),
    'GPUs': (
        doctor._cuda,
        two_gpus,
        [('ok', r'GPU 0, GPU 1; CUDA 13\.0, driver: NVIDIA H100, 580\.1; NVIDIA H200, 580\.1')],
    ),
    'Triton of a GPU': (doctor._triton, lambda p: (two_gpus(p), versions(p, triton='3.6'))[1], [('ok', r'3\.6')]),
    'Triton alone': (doctor._triton, lambda p: versions(p, triton='3.6'), [('ok', r'3\.6, which needs a GPU')]),
    'no room': (doctor._folders, no_room, [('error', '.* takes no files: Read-only file system')]),
    'room': (doctor._folders, free(5), [('ok', r'(?!.*work_dirs).*, 5 GB free')]),
    'less room': (doctor._folders, free(4.9), [('warning', '.*, 5 GB free')]),
    'folder of runs': (doctor._folders, folder_of_runs, [('ok', '.*work_dirs, 99 GB free')]),
    'shared memory': (doctor._shared_memory, free(1), [('ok', r'1\.0 GB')]),
    'no shared memory': (doctor._shared_memory, lambda p: p.setattr(doctor, '_SHARED_MEMORY', Path('none')), []),
    'less shared memory': (doctor._shared_memory, free(0.9), [('warning', r'0\.90 GB for data loading.*')]),
    'checkpoints': (
        doctor._checkpoints,
        seven_checkpoints,
        [('ok', rf'7 in .*: {", ".join(f"work_dirs/run/iter_{index}.pth" for index in range(5))} \.\.\.')],
    ),
    'no checkpoints': (doctor._checkpoints, lambda _: None, [('ok', '0 in checkpoints and work_dirs')]),
    'empty checkpoint': (
        doctor._checkpoints,
        empty_checkpoint,
        [('error', 'an empty file'), ('ok', '1 in .*: checkpoints/pelk_t_in1k.pth')],
    ),
    'truncated checkpoint': (
        doctor._checkpoints,
        truncated_checkpoint,
        [('warning', 'cut off, or .*'), ('ok', '1 in .*: work_dirs/run/iter_4.pth')],
    ),
    **{
        f'{name}, torch {torch_version}': (
            doctor._openmmlab,
            lambda p, name=name, torch_version=torch_version: versions(p, torch=torch_version, **{name: '0.10'}),
            [('ok', text), *[('warning', 'stock mmengine alone loads no .*')] * warns],
        )
        for name, torch_version, text, warns in (
            ('mmengine', '2.5.1', 'the stock line: mmengine 0.10', False),
            ('mmengine', '2.6.0', 'the stock line: mmengine 0.10', True),
            ('onedl_mmengine', '2.11.0', 'the maintained line: onedl-mmengine 0.10', False),
        )
    },
    **{
        f'both lines of {stock}': (
            doctor._openmmlab,
            lambda p, both=(stock, maintained): versions(p, **dict.fromkeys(both, '1')),
            [('error', f'{stock} and {maintained} provide the same import names .*')],
        )
        for stock, maintained in (
            *((name, f'onedl-{name}') for name in ('mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain')),
            ('mmdet', 'onedl-mmdetection'),
        )
    },
    'transformers 5 alone': (
        doctor._openmmlab,
        lambda p: (versions(p, mmcv='2', transformers='5.0.0'), absent(p, 'mmpretrain')),
        [('ok', 'the stock line: mmcv 2'), ('warning', 'not installed; its recipes need it')],
    ),
    'two lines': (
        doctor._openmmlab,
        lambda p: versions(p, mmdet='3', mmsegmentation='1', onedl_mmpretrain='2'),
        [('warning', 'a mixture of both lines: mmsegmentation 1, mmdet 3, onedl-mmpretrain 2')],
    ),
    'no line': (doctor._openmmlab, versions, [('error', 'none of its packages is installed')]),
    **{
        f'no {name}': (
            doctor._openmmlab,
            lambda p, name=name: (versions(p, onedl_mmcv='2'), absent(p, name))[0],
            [('ok', 'the maintained line: onedl-mmcv 2'), *[('warning', 'not installed; its recipes need it')] * warns],
        )
        for name, warns in (('mmseg', 1), ('mmdet', 1), ('mmpretrain', 1), ('mmengine', 0))
    },
    'no mmengine, new torch': (
        doctor._openmmlab,
        lambda p: versions(p, torch='2.11', mmcv='2.1'),
        [('ok', 'the stock line: mmcv 2.1')],
    ),
    **{
        f'transformers {version}': (
            doctor._openmmlab,
            lambda p, version=version: versions(p, mmcv='2', transformers=version),
            [('ok', 'the stock line: mmcv 2'), *[('warning', f'{version}, with which .*')] * warns],
        )
        for version, warns in (('4.99', 0), ('5.0.0', 1), ('10.1', 1))
    },
    'told to load as before': (
        doctor._openmmlab,
        lambda p: (versions(p, torch='2.6', mmengine='1'), p.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '0'))[0],
        [('ok', 'the stock line: mmengine 1'), ('warning', 'stock mmengine alone .*')],
    ),
    'told to load': (
        doctor._openmmlab,
        lambda p: (versions(p, torch='2.11', mmengine='1'), p.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')),
        [('ok', 'the stock line: mmengine 1')],
    ),
    'transformers 4': (
        doctor._openmmlab,
        lambda p: versions(p, mmengine='0.10', mmcv='2.1', transformers='4.57.6'),
        [('ok', r'the stock line: mmengine 0\.10, mmcv 2\.1')],
    ),
    'recipes': (
        doctor._recipes,
        two_recipes,
        [
            ('warning', 'not here; needed by seg/upernet_pelk_t_ade20k.py and 1 more'),
            *[('warning', f'not here; needed by seg/upernet_pelk_{size}_ade20k.py') for size in 'ts'],
            ('ok', 'none has its data and weights here'),
        ],
    ),
    'one of two recipes': (
        doctor._recipes,
        one_of_two_recipes,
        [
            *[('warning', 'not here; needed by seg/upernet_pelk_t_ade20k.py')] * 2,
            ('ok', '1 ready to train: seg/upernet_pelk_s_ade20k.py'),
        ],
    ),
    'a recipe without its imports': (
        doctor._recipes,
        recipe_without_its_imports,
        [
            *[('warning', 'not here; needed by seg/upernet_pelk_t_ade20k.py')] * 2,
            ('warning', r"seg/upernet_pelk_s_ade20k\.py import what is not here: No module named 'no_such_module'"),
            ('ok', 'none has its data and weights here'),
        ],
    ),
    'operators, no GPU': (doctor._mmcv_operators, lambda _: None, [('ok', 'compiled with .*')]),
    'no mmcv': (doctor._mmcv_operators, lambda p: absent(p, 'mmcv'), [('error', 'not installed')]),
    'no operators': (doctor._mmcv_operators, lambda p: absent(p, 'mmcv._ext'), [('warning', 'not compiled; .*')]),
    'operators of another torch': (doctor._mmcv_operators, other_torch, [('error', 'compiled for another torch .*')]),
    **{
        f'operators of CUDA {compiled}': (
            doctor._mmcv_operators,
            lambda p, compiled=compiled: other_cuda(p, compiled),
            [(state, f'compiled .* CUDA {compiled}.*')],
        )
        for compiled, state in (('12.1', 'warning'), ('13.0', 'ok'), ('13.1', 'warning'))
    },
    'no Triton, a GPU': (doctor._triton, no_triton, [('warning', 'not installed: the operator.*')]),
    'no Triton': (doctor._triton, versions, [('ok', 'not installed; a GPU alone needs it')]),
}


@pytest.mark.parametrize(('check', 'prepare', 'found'), FOUND.values(), ids=FOUND)
def test_what_a_check_says(
    check: Callable[[], Any],
    prepare: Callable[[Patch], None],
    found: list[tuple[str, str]],
    monkeypatch: Patch,
    tmp_path: Path,
) -> None:
    if check is doctor._mmcv_operators:
        pytest.importorskip('mmcv._ext')
    if check is doctor._shared_memory and not doctor._SHARED_MEMORY.is_dir():
        pytest.skip('no /dev/shm')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    prepare(monkeypatch)
    for finding, (state, text) in zip(check(), found, strict=True):
        assert finding.state == state
        assert re.fullmatch(text, finding.text), finding.text
        assert (finding.remedy is None) == (state == 'ok')


def write_project(root: Path, data: Path) -> Path:
    config = root / 'flowers.py'
    root.mkdir(parents=True)
    config.write_text(
        ''.join(
            f"{split}_dataloader = dict(dataset=dict(type='CocoDataset', data_root={str(data / split)!r}))\n"
            for split in ('train', 'val')
        )
    )
    return config


@pytest.mark.parametrize('inside', [False, True])
def test_a_project_is_spoken_of_instead_of_the_recipes(inside: bool, monkeypatch: Patch, tmp_path: Path) -> None:
    data = tmp_path / 'data'
    config = write_project(tmp_path / 'projects' / 'flowers', data)
    config.with_name('of_another_tool.py').write_text('import no_such_package')
    monkeypatch.chdir(config.parent if inside else tmp_path)
    for split in ('train', 'val'):
        (missing, summary) = doctor.examine([doctor._recipes])
        assert (missing.name, missing.state) == (str(data / split), 'warning')
        assert 'flowers.py' in missing.text
        assert 'new_project.py' in (missing.remedy or '')
        assert summary.name == 'projects'
        (data / split).mkdir(parents=True)
    (summary,) = doctor.examine([doctor._recipes])
    assert summary.text.startswith('1 ready to train')
    assert 'ade' not in summary.text


@pytest.mark.slow
def test_backends_pass_and_nothing_is_broken(monkeypatch: Patch) -> None:
    monkeypatch.delenv('MMPELK_BACKEND', raising=False)
    findings = {finding.name: finding for finding in doctor.examine([doctor._backends])}
    assert 'MMPELK_BACKEND' not in findings
    for name in available_backends():
        assert findings[f'backend {name}'].state == 'ok'
        assert 'agrees' in findings[f'backend {name}'].text


def test_every_backend_is_examined(monkeypatch: Patch) -> None:
    import mmpelk.ops

    right, asked = mmpelk.ops.peripheral_conv2d, []

    def record(*args: Any, backend: str) -> torch.Tensor:
        asked.append(backend)
        return right(*args, backend=backend)

    monkeypatch.setattr(mmpelk.ops, 'peripheral_conv2d', record)
    assert all(finding.state == 'ok' for finding in doctor._backends())
    assert asked == available_backends()


def test_backends_of_a_gpu_are_examined_there_and_in_their_precision(monkeypatch: Patch) -> None:
    """With an operator that computes the definition on the CPU, up to an error, and says what it was asked."""
    import mmpelk.ops

    right, to, placed, asked, errors = mmpelk.ops.peripheral_conv2d, torch.Tensor.to, [], [], [0.0]

    def move(tensor: torch.Tensor, device: Any, *others: Any) -> torch.Tensor:
        placed.append(device)
        return to(tensor, 'cpu', *others)

    def compute(x: torch.Tensor, weight: torch.Tensor, grid: Any, backend: str) -> torch.Tensor:
        asked.append((backend, x.dtype, weight.dtype))
        return (right(x.double(), weight.double(), grid, backend='dense') * (1 + errors[-1])).to(dtype=x.dtype)

    monkeypatch.setattr(mmpelk.ops, 'available_backends', lambda: ['dense', 'triton', 'triton_dft'])
    monkeypatch.setattr(mmpelk.ops, 'peripheral_conv2d', compute)
    monkeypatch.setattr(torch.Tensor, 'to', lambda tensor, *args, **kw: (to if kw else move)(tensor, *args, **kw))
    # Each precision's own limit lies between what rounding does and this.
    for error, wrong in ((0.0, set()), (2e-4, {'dense', 'triton'}), (2e-3, {'dense', 'triton', 'triton_dft'})):
        placed.clear(), asked.clear(), errors.append(error)
        found = {finding.name.split()[-1]: finding.state for finding in doctor._backends()}
        assert found.keys() == BACKENDS.keys()
        assert {name for name, state in found.items() if state != 'ok'} == wrong
        assert [device for device in placed if device in ('cpu', 'cuda')] == ['cpu'] * 2 + ['cuda'] * 4
        kinds = {name: torch.float16 if name == 'triton_dft' else torch.float32 for name, *_ in asked}
        assert asked == [(name, kind, kind) for name, kind in kinds.items()]
        assert kinds.keys() == {'dense', 'triton', 'triton_dft'}


def test_a_forced_backend_has_to_run_here(monkeypatch: Patch) -> None:
    monkeypatch.setattr('mmpelk.ops.available_backends', lambda: ['dense'])
    for name, states in (('dense', []), ('fft', ['error']), ('', [])):
        monkeypatch.setenv('MMPELK_BACKEND', name)
        assert [each.state for each in doctor._backends() if each.name == 'MMPELK_BACKEND'] == states


@pytest.mark.parametrize('gradient', ['weight_grad', 'input_grad'])
def test_a_wrong_gradient_is_an_error(gradient: str, monkeypatch: Patch) -> None:
    right = BACKENDS['fft']

    def wrong(*args: Any) -> torch.Tensor:
        if gradient == 'weight_grad':
            return 2 * right.weight_grad(*args)
        grad_out, weight, grid, *_ = args
        return 2 * right.forward(grad_out, weight.flip(-1, -2), None, grid)

    changes = {gradient: wrong}
    if gradient == 'input_grad':  # a backend that has one gets the planes that it keeps
        changes['weight_grad'] = lambda x, grad_out, grid, planes: right.weight_grad(x, grad_out, grid)
    monkeypatch.setitem(BACKENDS, 'fft', dataclasses.replace(right, **changes))
    assert {finding.name for finding in doctor._backends() if finding.state == 'error'} == {'backend fft'}


def one_wrong(out: torch.Tensor) -> torch.Tensor:
    changed = out.clone()
    changed.flatten()[-1] += 0.01 * out.abs().max()
    return changed


DAMAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    'NaN': lambda out: out * float('nan'),
    'infinite': lambda out: out * float('inf'),
    'one number': one_wrong,
}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('what', ['forward', 'weight_grad'])
def test_results_that_are_no_numbers_or_have_a_wrong_one(what: str, damage: str, monkeypatch: Patch) -> None:
    right = BACKENDS['fft']
    function = getattr(right, what)
    changed = dataclasses.replace(right, **{what: lambda *args: DAMAGES[damage](function(*args))})
    monkeypatch.setitem(BACKENDS, 'fft', changed)
    assert {finding.name for finding in doctor._backends() if finding.state == 'error'} == {'backend fft'}


@pytest.mark.parametrize('break_it', [failing_backend, wrong_backend])
def test_remedy_of_a_backend_is_another(break_it: Callable[[Patch], None], monkeypatch: Patch) -> None:
    break_it(monkeypatch)
    remedies = {finding.name: finding.remedy or '' for finding in doctor._backends() if finding.state == 'error'}
    others = {name: remedy.partition(' ')[0].removeprefix('MMPELK_BACKEND=') for name, remedy in remedies.items()}
    assert others == {'backend dense': 'fft', 'backend dft': 'dense', 'backend fft': 'dense'}


def test_exit_code_and_text(capsys: pytest.CaptureFixture) -> None:
    fine, bad = Finding('a', 'ok', 'b'), Finding('c', 'error', 'd', 'e')
    assert doctor.report([fine]) == 0
    assert doctor.report([fine, bad]) == 1
    assert 'remedy: e' in capsys.readouterr().out
    odd = Finding('f', 'warning', 'g', 'h')
    assert doctor.report([odd, fine, odd, bad]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == '1 errors, 2 warnings'
    assert doctor.report([odd]) == doctor.report([odd], as_json=True) == 0
    assert '"ok": true' in capsys.readouterr().out
    assert doctor.report([bad], as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {
        'ok': False,
        'findings': [{'name': 'c', 'state': 'error', 'text': 'd', 'remedy': 'e'}],
    }


def test_every_check_is_made_and_one_that_fails_is_a_finding() -> None:
    made = [value for value in vars(doctor).values() if inspect.isfunction(value)]
    assert {*doctor.CHECKS} == {each for each in made if each.__annotations__.get('return') == Iterator[Finding]}

    def _odd_check() -> Iterator[Finding]:
        yield Finding('a', 'ok', 'b')
        raise ValueError('odd')

    _, found = doctor.examine([_odd_check])
    assert (found.name, found.state, found.text) == ('odd check', 'error', 'ValueError: odd')


@pytest.mark.parametrize('as_json', [False, True])
@pytest.mark.parametrize('state', ['ok', 'error'])
def test_command(as_json: bool, state: str, monkeypatch: Patch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(doctor, 'examine', lambda: [Finding('a', state, 'b')])
    monkeypatch.setattr(sys, 'argv', ['mmpelk', 'doctor', *['--json'] * as_json])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module('mmpelk', run_name='__main__')
    assert ended.value.code == (state == 'error')
    assert capsys.readouterr().out.startswith('{' if as_json else state)


@pytest.mark.slow
def test_command_where_even_torch_is_missing(tmp_path: Path) -> None:
    block = 'import sys, runpy\nsys.modules["torch"] = sys.modules["mmengine"] = None\n'
    block += 'sys.argv = ["mmpelk", "doctor", "--json"]\n'
    code = f'{block}sys.path.insert(0, {str(ROOT)!r})\nrunpy.run_module("mmpelk", run_name="__main__")'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    printed = json.loads(done.stdout)
    errors = [finding['text'] for finding in printed['findings'] if finding['state'] == 'error']
    assert any('torch' in text for text in errors)
    assert all(finding['remedy'] for finding in printed['findings'] if finding['state'] == 'error')


@pytest.mark.parametrize('error', [ImportError('undefined symbol'), ModuleNotFoundError('mmcv._ext'), None], ids=str)
def test_why_operators_cannot_be_imported(error: ImportError | None, monkeypatch: Patch) -> None:
    load = mock.Mock(side_effect=error)
    monkeypatch.setattr(importlib, 'import_module', load)
    assert import_error() is error
    load.assert_called_once_with('mmcv._ext')


RECOMPILE = ('no-build-isolation', 'force-reinstall', 'no-deps', 'no-cache-dir')


@pytest.mark.parametrize(
    ('installed', 'requirement'),
    [
        (dict(mmcv='2.1.0'), 'mmcv==2.1.0'),
        (dict(onedl_mmcv='2.3.6', mmcv='2.1.0'), 'onedl-mmcv==2.3.6'),
        ({}, 'onedl-mmcv'),
    ],
)
def test_operators_are_compiled_for_the_mmcv_that_is_installed(
    installed: dict[str, str], requirement: str, monkeypatch: Patch
) -> None:
    versions(monkeypatch, **installed)
    *command, last = compile_command().split()
    assert last == requirement
    # Of a wheel that pip keeps, or of a build of its own with another torch, there would be no other operators.
    assert command == ['pip', 'install', *(f'--{word}' for word in RECOMPILE)]
