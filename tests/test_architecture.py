"""Who may import whom: ``ops`` torch alone, ``models`` the operator, no module of the package a toolbox, and nobody the
reproduction."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / 'mmpelk'
TOOLBOXES = {'mmseg', 'mmdet', 'mmpretrain'}
# `.mim` holds links to configs and tools; those may import what they like.
MODULES = [path for path in sorted(PACKAGE.rglob('*.py')) if '.mim' not in path.parts]
# What each room, or module at the top of the package, may import: rooms of the project ('' is `mmpelk` itself), and
# others' packages. Dependencies point one way.
BASE = {'errors', 'fault_tolerance'}
ALLOWED = {
    'ops': ({'ops'}, {'torch', 'triton'}),
    'fault_tolerance': ({'fault_tolerance'}, {'torch', 'mmengine', 'numpy', 'safetensors'}),
    'models': (
        BASE | {'models', 'ops', 'registry'},
        {'torch', 'mmengine', 'mmcv', 'safetensors', 'huggingface_hub', 'timm'},
    ),
    'sparsity': (BASE | {'sparsity', 'models', 'registry'}, {'torch', 'mmengine', 'rich'}),
    'engine': (
        BASE | {'engine', 'models', 'registry', 'config', 'mmcv_operators'},
        {'torch', 'mmengine', 'mmcv', 'numpy', 'matplotlib', 'rich'},
    ),
    'export': (
        BASE | {'export', 'engine', 'sparsity', 'models', 'ops'},
        {'torch', 'mmengine', 'mmcv', 'cv2', 'numpy', 'matplotlib', 'rich', 'onnx', 'onnxruntime', 'onnxscript'},
    ),
    'analysis': (
        BASE | {'analysis', 'engine', 'sparsity', 'models', 'ops'},
        {'torch', 'mmengine', 'mmcv', 'cv2', 'PIL', 'numpy', 'matplotlib', 'rich'},
    ),
    'configs': ({''}, set()),
    '__init__.py': ({'config', 'models'}, set()),
    '__main__.py': ({'doctor'}, set()),
    'config.py': (set(), {'mmengine'}),
    'doctor.py': (
        {'', 'config', 'engine', 'mmcv_operators', 'ops'},
        {'torch', 'torchvision', 'mmengine', 'mmcv'},
    ),
    'errors.py': ({'fault_tolerance'}, set()),
    'hub.py': (BASE | {'models'}, {'torch', 'mmengine'}),
    'mmcv_operators.py': (set(), {'mmcv'}),
    'registry.py': (set(), {'mmengine'}),
    'timm.py': ({'errors', 'models', 'sparsity'}, {'torch', 'mmengine', 'timm'}),
}
# The folders beside the package, and which of them each may import; the package imports none.
BESIDE = {'tools': set(), 'reproduction': set(), 'benchmarks': {'reproduction'}}
SCRIPTS = sorted(path for folder in BESIDE for path in (ROOT / folder).rglob('*.py'))


def imports(path: Path) -> Iterator[str]:
    """Absolute names of what a module imports, wherever in it, by its name as well; the beginning of computed ones."""
    yield from imported(path.read_text(encoding='utf-8'), path.relative_to(ROOT).with_suffix('').parts)


def imported(text: str, parts: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = '.'.join(parts[: -node.level]) if node.level else ''
            module = '.'.join(part for part in (package, node.module) if part)
            folder = ROOT.joinpath(*module.split('.'))
            for alias in node.names:
                is_module = list(folder.glob(f'{alias.name}.py')) or (folder / alias.name).is_dir()
                yield f'{module}.{alias.name}' if is_module else module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(('import_module', '__import__')):
            name = node.args[0]
            beginning = name.values[0] if isinstance(name, ast.JoinedStr) else name
            yield str(beginning.value) if isinstance(beginning, ast.Constant) else 'a name that no rule can read'


def test_timms_and_transformers_users_need_no_mmcv() -> None:
    """Where ``mmpelk.timm`` comes from, mmcv is imported in functions alone, for what a config names."""
    rooms = {'timm.py', 'errors.py', 'registry.py', 'models', 'sparsity', 'ops', 'fault_tolerance'}
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] in rooms:
            at_import = [
                node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            assert 'mmcv' not in ' '.join(map(ast.unparse, at_import)), path


def test_texts_are_utf8_in_every_locale() -> None:
    """The tests run in Python's UTF-8 mode, in which a missing encoding makes no difference."""
    wrong = []
    for path in (*MODULES, *SCRIPTS):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, words = ast.unparse(call.func), ast.unparse(call)
            is_text = name == 'open' and not re.search(r"'[rwax]*b", words)
            if (is_text or name.endswith(('.read_text', '.write_text'))) and "'utf-8" not in words:
                wrong.append(f'{path}:{call.lineno}')
    assert wrong == []


def test_imports_of_every_kind_are_found() -> None:
    assert 'mmpelk.engine.layer_decay' in imports(PACKAGE / 'engine' / '__init__.py')
    text = (
        'from mmpelk import analysis, __version__\nfrom .. import sparsity\nfrom ..models.pelk import PeLK\n'
        "def f(): importlib.import_module('mmseg.apis'), __import__('mmcv'), import_module(f'mmpelk.export.{name}')\n"
    )
    assert {*imported(text, ('mmpelk', 'ops', 'fft'))} == {
        *('mmpelk', 'mmpelk.analysis', 'mmpelk.sparsity', 'mmpelk.models.pelk', 'mmseg.apis', 'mmcv', 'mmpelk.export.'),
    }


def test_imports() -> None:
    wrong = []
    for path in MODULES:
        ours, others = ALLOWED.get(path.relative_to(PACKAGE).parts[0], (set(), set()))
        for name in sorted(set(imports(path))):
            package, _, rest = name.partition('.')
            allowed = rest.split('.')[0] in ours if package == 'mmpelk' else package in others
            if not allowed and package not in sys.stdlib_module_names:
                wrong.append(f'{path.relative_to(ROOT)}: {name}')
    assert not wrong


def test_no_circles() -> None:
    """No module needs itself, counting imports in functions and for type checkers."""
    files = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path for path in MODULES}
    graph = {
        module: {
            other
            for name in imports(path)
            for other in files
            if other == name or (name.endswith('.') and other.startswith(name))
        }
        for module, path in files.items()
    }
    assert any(graph.values())
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows a circle


def test_imports_beside_the_package() -> None:
    wrong = []
    for path in SCRIPTS:
        folder = path.relative_to(ROOT).parts[0]
        refused = {name.split('.')[0] for name in imports(path)} & ({*BESIDE, 'tests'} - {folder} - BESIDE[folder])
        wrong += [f'{path.relative_to(ROOT)}: {name}' for name in sorted(refused)]
    assert not wrong


def run_blocked(blocked: set[str], code: str) -> subprocess.CompletedProcess:
    """Run code in a process in which importing any of the blocked packages fails."""
    block = f'import sys\nfor name in {sorted(blocked)}: sys.modules[name] = None\n'
    return subprocess.run([sys.executable, '-c', block + code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_operator_runs_without_openmmlab() -> None:
    code = (
        'import torch\nfrom mmpelk.ops import peripheral_conv2d, sharing_grid\n'
        'grid = sharing_grid(13, 5)\n'
        'print(peripheral_conv2d(torch.rand(1, 2, 9, 9), torch.rand(2, 1, len(grid), len(grid)), grid).shape)'
    )
    done = run_blocked(TOOLBOXES | {'mmengine', 'mmcv', 'numpy'}, code)
    assert done.returncode == 0, done.stderr
    assert 'torch.Size([1, 2, 9, 9])' in done.stdout


@pytest.mark.slow
def test_timms_models_train_without_mmcv() -> None:
    code = (
        'import sys, torch, mmpelk.timm, timm\n'
        'small = dict(depths=(1, 1), channels=(8, 12), kernel_sizes=(13, 11), drop_path_rate=0.1)\n'
        'model = timm.create_model("pelk_tiny", features_only=True, out_indices=(0, 1), **small)\n'
        'maps = model(torch.rand(2, 3, 32, 32))\n'
        'sum(each.mean() for each in maps).backward()\n'
        'print(sorted(name for name in sys.modules if name.startswith("mmcv") and sys.modules[name]))'
    )
    pytest.importorskip('timm')
    done = run_blocked(TOOLBOXES | {'mmcv'}, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'


@pytest.mark.slow
def test_importing_the_package_is_light() -> None:
    done = run_blocked(
        {'torch', 'mmengine', 'numpy'}, 'import mmpelk; print(mmpelk.__version__, mmpelk.list_configs())'
    )
    assert done.returncode == 0, done.stderr
    assert 'upernet_pelk_t_ade20k.py' in done.stdout


@pytest.mark.slow
def test_package_imports_without_the_toolboxes_and_extras_only_when_asked_for() -> None:
    code = (
        'import importlib, pkgutil, sys, mmpelk.analysis, mmpelk.engine, mmpelk.export, mmpelk.sparsity\n'
        'from mmpelk.models import PeLK\n'
        'print(sorted({"huggingface_hub", "onnx", "onnxruntime", "timm"} & set(sys.modules)))\n'
        'sys.modules |= dict.fromkeys(("huggingface_hub", "timm"))\n'
        'def want_mixin(): PeLK(depths=(1,), channels=(8,), kernel_sizes=(7,)).save_pretrained("nowhere")\n'
        'def want_hub(): import mmpelk.hub\n'
        'def want_timm(): import mmpelk.timm\n'
        'for want in (want_mixin, want_hub, want_timm):\n'
        '    try:\n        want()\n'
        '    except ImportError as error:\n        print(error)\n'
        'del sys.modules["huggingface_hub"], sys.modules["timm"]\n'
        'for module in pkgutil.walk_packages(mmpelk.__path__, "mmpelk."):\n'
        '    if not module.name.startswith(("mmpelk.configs.", "mmpelk.ops.backends.triton")):\n'
        '        importlib.import_module(module.name)\n'
    )
    done = run_blocked(TOOLBOXES, code)
    assert done.returncode == 0, done.stderr
    unasked, *messages = done.stdout.splitlines()
    assert unasked == '[]'
    assert [message.rpartition(' ')[2] for message in messages] == ["'mmpelk[hub]'", "'mmpelk[hub]'", "'mmpelk[timm]'"]
