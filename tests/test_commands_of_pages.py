"""Every command in README.md and docs/*.md: run word for word on small data, or at least read by its own parser.

Commands stand in blocks of code, and as code in sentences and tables; the latter are read and not run. A command that
no row of :data:`ROWS` knows fails, so that none comes untested into a page.
"""

import argparse
import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS, init_default_scope
from mmengine.runner import save_checkpoint

from mmpelk.sparsity import GRANULARITIES, attach_masks, remove_masks
from tests.commands import call, parse
from tests.paths import ROOT, TOOLS

pytestmark = pytest.mark.slow
# A command in the place of a word, with brackets in its brackets.
PRINTED = re.compile(r'\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)')
FENCED = re.compile(r'^( *)```(\w*)\n(.*?)^ *```', re.MULTILINE | re.DOTALL)
# Lines that are indented as code, and code in a sentence or a table.
CALL = r'(?:python|make|pip|mim|docker|env|exec|tools/\S+\.sh) '
OUTSIDE = re.compile(rf'^    (?={CALL})([^\n]+)|`((?:[A-Z_]+=\S+\s)*{CALL}[^`]+)`', re.MULTILINE)
REGISTRIES = (MODELS, HOOKS, OPTIM_WRAPPERS)
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        place: Page and line of its block.
        variables: Names of the environment variables before it.
        words: Its words, braces expanded.
        in_block: Whether it stands in a block of the shell.
    """

    place: str
    variables: tuple[str, ...]
    words: tuple[str, ...]
    in_block: bool = True

    def __str__(self) -> str:
        return ' '.join(self.words)


def commands_of(page: Path) -> Iterator[Command]:
    """The commands of a page."""
    text = page.read_text(encoding='utf-8')
    place = lambda found: f'{page.name}:{text.count(chr(10), 0, found.start()) + 1}'  # noqa: E731
    for block in FENCED.finditer(text):
        if block[2] in ('bash', 'sh', 'shell', 'console'):
            yield from _commands_in(block[3], place(block), in_block=True)
    prose = FENCED.sub(lambda block: re.sub('[^\n]', ' ', block[0]), text)
    for found in OUTSIDE.finditer(prose):
        line = re.sub(r'\[options\]|\.\.\.|…', '', found[1] or found[2].replace('\n', ' '))
        yield from _commands_in(line, place(found), in_block=False)


def _commands_in(code: str, place: str, in_block: bool) -> Iterator[Command]:
    values: dict[str, str] = {}
    for line in code.replace('\\\n', ' ').splitlines():
        for part in re.split(r'\s&&\s', PRINTED.sub('PRINTED', line)):
            words = [word for word in _words(part, values) if word not in ('env', 'exec')]
            given = dict(word.split('=', 1) for word in _assignments(words))
            if len(given) == len(words):
                values |= given
            else:
                yield Command(place, tuple(given), tuple(words[len(given) :]), in_block)


def _words(line: str, values: dict[str, str]) -> list[str]:
    for name, value in values.items():
        line = re.sub(rf'\$(?:{name}\b|{{{name}}})', value, line)
    return [word for text in shlex.split(line, comments=True) for word in _braces(text)]


def _braces(word: str) -> list[str]:
    """``{a,b}.c`` as bash makes words of it."""
    found = re.search(r'(?<!\$)\{([^{}]*,[^{}]*)\}', word)
    if found is None:
        return [word]
    parts = [word[: found.start()] + part + word[found.end() :] for part in found[1].split(',')]
    return [each for part in parts for each in _braces(part)]


def _assignments(words: list[str]) -> list[str]:
    number = next((i for i, word in enumerate(words) if not re.match(r'[A-Z_]+=', word)), len(words))
    return words[:number]


COMMANDS = [command for page in PAGES for command in commands_of(page)]

# What stands at the beginning of a command; what is done with it; and, where it is not run here, why, or where it is.
Row = tuple[str, str, str]
LAUNCHED = 'several processes and the real data: tests/tools/test_launchers.py and test_slurm.py run these'
SYSTEM = 'changes the machine or needs the network'
ROWS: list[Row] = [
    (
        r'python tools/(\w+\.py .*\bflowers\b|new_project\.py)',
        'parse',
        'tests/tools/test_new_project.py runs the four in one project',
    ),
    (r'python tools/(get_flops|export_dense|reparameterize_model|test|demo_image)\.py', 'run', ''),
    (r'python tools/(export_onnx|quantize_onnx|test_onnx|export_torch)\.py', 'run', ''),
    (r'python tools/convert_checkpoint\.py', 'parse', "others' weights: tests/tools/test_convert_checkpoint.py"),
    (r'python tools/analysis/\w+\.py', 'parse', 'make report runs these; tests/tools/analysis'),
    (r'python tools/demo/make_\w+\.py', 'parse', 'the demos run these'),
    (r'tools/demo/run_\w+\.sh', 'paths', 'minutes; tests/tools/demo'),
    (r'python tools/train\.py', 'parse', 'a training of hours; shorter ones are in tests/tools and tests/configs'),
    (r'tools/dist_train\.sh', 'parse', LAUNCHED),
    (r'tools/dist_test\.sh', 'parse', LAUNCHED),
    (r'tools/slurm_(train|test)\.sh', 'parse', LAUNCHED),
    (r'--cfg-options', 'parse', "options of any training of the page's recipes"),
    (
        r'python -m (reproduction|benchmarks)(\.\w+)?',
        'parse',
        'days of trainings: tests/reproduction and tests/benchmarks',
    ),
    (r'python -m tests\.fault_tolerance\.torture', 'parse', 'minutes: make torture'),
    (r'python (mmsegmentation/tools/)?train\.py', 'paths', "others' programs"),
    (r'python -m mmpelk', 'parse', 'tests/test_doctor.py runs it'),
    (r'make', 'make', 'minutes, and some install packages; continuous integration runs them'),
    (r'docker (build|run)', 'paths', 'needs docker: tests/packaging/test_container.py reads the Dockerfile'),
    (r'mim', 'paths', "mim's own options; tests/test_mim.py runs mim where it is installed"),
    (r'pip install|.*/pip install', 'install', SYSTEM),
    (r'apt-get|git clone|wget|unzip|python -m venv', 'paths', SYSTEM),
    (r'cd|mkdir|source', 'paths', 'of the shell'),
    (r'trtexec', 'paths', "TensorRT's, which needs a GPU"),
    (r'g\+\+|\./run', 'paths', 'tests/tools/test_export_torch.py compiles the program and runs it'),
]


def row_of(command: Command) -> Row:
    rows = [row for row in ROWS if re.match(rf'(?:{row[0]})(?!\w)', str(command))]
    if not rows:
        pytest.fail(f'{command.place}: no row of ROWS knows this command: {command}', pytrace=False)
    return rows[0]


def read(command: Command) -> argparse.Namespace:
    """Read a command by its own tool's parser."""
    words = list(command.words)
    if words[0] == '--cfg-options':
        words = ['python', 'tools/train.py', 'CONFIG', *words]
    if words[0].endswith('.sh'):
        positions = {'dist_train': (1, 2), 'dist_test': (1, 3)}.get(Path(words[0]).stem, (3, 0))
        if positions[1]:
            assert words[positions[1]] == 'N' or int(words[positions[1]]) > 0, command
        tool = 'test.py' if 'test' in words[0] else 'train.py'
        rest = [word for i, word in enumerate(words) if i >= positions[0] and i != positions[1]]
        words = ['python', f'tools/{tool}', *rest, '--launcher', 'pytorch']
    del words[: 2 if words[1] == '-m' else 1]
    try:
        return parse(*words)
    except SystemExit as error:
        pytest.fail(f'{command.place}: {command} is refused by its own parser, {error}', pytrace=False)


def check_settings(command: Command, args: argparse.Namespace) -> None:
    """Refuse ``--cfg-options`` that neither the config has nor the class that is built of that part of it."""
    settings = vars(args).get('cfg_options') or {}
    if not settings:
        return
    # The page of detection shows options without a command.
    name = 'configs/det/mask_rcnn_pelk_t_coco_1x.py' if args.config == 'CONFIG' else args.config
    cfg = Config.fromfile(ROOT / name)
    for key in settings:
        node: Any = cfg
        *path, last = key.split('.')
        for part in path:
            node = node[int(part)] if isinstance(node, list | tuple) else node[part]
        if last not in node:
            found = [kind for registry in REGISTRIES if (kind := registry.get(node.get('type', 'OptimWrapper')))]
            names = {name for kind in found for name in inspect.signature(kind).parameters}
            # Those that hand other arguments on are not judged.
            assert {last, 'kwargs'} & names, f'{command.place}: {key} is no setting of {name}'


def check_paths(command: Command) -> None:
    """Files of the project that a command names exist."""
    for word in command.words:
        # What a page has the reader make is in folders of other names.
        for path in re.findall(r'(?<![\w/])(?:tools|configs|requirements|reproduction|benchmarks)/[\w/.]+', word):
            assert (ROOT / path).exists(), f'{command.place}: there is no {path}: {command}'


def check_install(command: Command) -> None:
    extras = {
        name for word in command.words for found in re.findall(r'\[([\w,]+)\]', word) for name in found.split(',')
    }
    known = set(re.findall(r'^optional-dependencies\.([\w-]+) =', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE))
    assert extras <= known, f'{command.place}: {extras - known}'


def check_target(command: Command) -> None:
    done = subprocess.run(['make', '-n', *command.words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f'{command.place}: {command}: {done.stderr}'


def check(command: Command) -> None:
    how = row_of(command)[1]
    check_paths(command)
    if command.words[0].endswith('.sh'):
        script = (ROOT / command.words[0]).read_text() + (TOOLS / 'environment.sh').read_text()
        # Those of the package are tests/test_options_on_pages.py's.
        names = [name for name in command.variables if not name.startswith('MMPELK_')]
        assert not [name for name in names if not re.search(rf'\b{name}\b', script)], command
        if len(command.words) == 1:
            return
    if how == 'make':
        check_target(command)
    elif how == 'install':
        check_install(command)
    elif how in ('parse', 'run'):
        check_settings(command, read(command))


def test_every_command_is_known_and_read_by_its_parser() -> None:
    for command in COMMANDS:
        check(command)
    assert len(COMMANDS) > 50
    unused = [pattern for pattern, _, _ in ROWS if not any(row_of(command)[0] == pattern for command in COMMANDS)]
    assert not unused, 'rows of commands that no page has'


@pytest.mark.parametrize(
    'line',
    [
        'python tools/new_tool.py',
        'python tools/train.py configs/seg/upernet_pelk_t_ade20k.py --fast',
        'python tools/train.py configs/seg/upernet_pelk_t_ade20k.py --cfg-options model.backbone.kernels=3',
        'python tools/train.py configs/seg/no_recipe.py',
        'NODES=2 tools/dist_train.sh CONFIG 8',
        'make demos',
        'pip install -e ".[exports]"',
        'rm -r data',
    ],
)
def test_what_is_wrong_fails(line: str, tmp_path: Path) -> None:
    page = tmp_path / 'page.md'
    page.write_text(f'1. Do this:\n   ```bash\n   {line}   # at once\n   ```\n')
    with pytest.raises((AssertionError, pytest.fail.Exception)):  # noqa: PT012 - of any of its commands
        for command in commands_of(page):
            check(command)


@pytest.mark.parametrize(
    'line',
    [
        'python -m benchmarks.backbone --quick',
        'python tools/new_tool.py FOLDER',
        'NODES=2 tools/dist_train.sh ...',
        'make demos',
        "pip install 'mmpelk[exports]'",
    ],
)
def test_what_is_wrong_in_a_sentence_fails(line: str, tmp_path: Path) -> None:
    page = tmp_path / 'page.md'
    page.write_text(f'| a | type `{line}` at once |\n')
    (command,) = commands_of(page)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(command)


def test_words_are_those_of_the_shell(tmp_path: Path) -> None:
    page = tmp_path / 'page.md'
    page.write_text(
        '```bash\nDATA=/a\nB=1 c --d {x,y}.e=$DATA/f \\\n    "g h" && i "$(j k)"    # l\n```\n'
        'Say `python -m\nthis` or `A=1 make that`, not `make_that(it)`:\n\n    python or_this\n'
    )
    assert list(commands_of(page)) == [
        Command('page.md:1', ('B',), ('c', '--d', 'x.e=/a/f', 'y.e=/a/f', 'g h')),
        Command('page.md:1', (), ('i', 'PRINTED')),
        Command('page.md:6', (), ('python', '-m', 'this'), in_block=False),
        Command('page.md:7', ('A',), ('make', 'that'), in_block=False),
        Command('page.md:9', (), ('python', 'or_this'), in_block=False),
    ]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """A folder that has what the commands name, small: recipes of tiny networks, their weights, pictures, a video."""
    pytest.importorskip('mmseg')
    root = tmp_path_factory.mktemp('reader')
    recipes = {
        'seg/upernet_pelk_t_ade20k.py': tiny_config.read_text(encoding='utf-8'),
        'demo/upernet_pelk_nano_synthetic.py': 'max_iters = 1\n',
        'cls/pelk_t_unit_in1k.py': 'model = dict(backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), '
        'channels=(32, 48, 64, 80), kernel_sizes=(13, 11, 9, 7))), head=dict(in_channels=80, num_classes=10))\n',
    }
    for name, text in recipes.items():
        path = root / 'configs' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if '_base_' in text else f'_base_ = {str(ROOT / "configs" / name)!r}\n{text}')
    random = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for index in range(2):
            _write(root / f'data/demo_segmentation/images/{split}/{index}.jpg', random.integers(0, 256, (128, 128, 3)))
            labels = np.full((128, 128), index + 1)
            _write(root / f'data/demo_segmentation/annotations/{split}/{index}.png', labels)
    _write(root / 'photo.jpg', random.integers(0, 256, (64, 80, 3)))
    _write(root / 'holiday' / 'a.jpg', random.integers(0, 256, (64, 80, 3)))
    video = cv2.VideoWriter(str(root / 'street.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), 5, (80, 64))
    for _ in range(2):
        video.write(random.integers(0, 256, (64, 80, 3)).astype(np.uint8))
    video.release()
    tiny = _weights(root / 'configs/seg/upernet_pelk_t_ade20k.py', root / 'iter_160000.pth')
    for name in (
        'pelk_t_ade20k.pth',
        'work_dirs/upernet_pelk_t_ade20k/iter_160000.pth',
        'work_dirs/run/iter_160000.pth',
    ):
        _copy(tiny, root / name)
    for name in ('pelk_t_unit_in1k', 'pelk_t_in1k'):
        _copy(tiny, root / 'work_dirs' / name / 'epoch_300.pth')
    demo = root / 'configs/demo/upernet_pelk_nano_synthetic.py'
    trained = _weights(demo, root / 'work_dirs/demo_segmentation/iter_700.pth')
    call(TOOLS / 'export_onnx.py', demo, trained, 'model.onnx', '--shape', 64, 80, '--fold-preprocessing', cwd=root)
    (root / 'checkpoints').mkdir()
    return root


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels.astype(np.uint8))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _weights(recipe: Path, path: Path) -> Path:
    """Random weights of a recipe, half of their hidden units inactive."""
    init_default_scope('mmseg')
    cfg = Config.fromfile(recipe)
    cfg.model.backbone.norm_cfg = dict(type='BN')
    model = MODELS.build(cfg.model)
    layers = GRANULARITIES['unit'](model, 'backbone', ())
    attach_masks(entry for layer in layers for entry in layer.parameters)
    for layer in layers:
        layer.draw(layer.shape[0] * layer.shape[1] // 2, torch.Generator().manual_seed(0))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    remove_masks(model)
    classes = model.decode_head.num_classes
    names, palette = [f'class {index}' for index in range(classes)], [(index, 0, 0) for index in range(classes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(dataset_meta=dict(classes=names, palette=palette))
    save_checkpoint(dict(state_dict=state | model.state_dict(), meta=meta), str(path))
    return path


def test_commands_on_small_data(folder: Path) -> None:
    """One after the other, as the page has them: some read what others write."""
    pytest.importorskip('onnxruntime', reason='pip install -e .[export]')
    ran = 0
    for command in COMMANDS:
        if command.in_block and row_of(command)[1] == 'run':
            call(ROOT / command.words[1], *command.words[2:], cwd=folder)
            ran += 1
    assert ran > 10
