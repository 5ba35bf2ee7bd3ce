"""What the wizard writes for some data sets and machines, compared with files in ``expected``."""

import difflib
import inspect
import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import new_project
import pytest
from new_project import answer
from own_data import Answers, DataSet, Machine, UnknownLayoutError, make_plan, print_report, writing
from own_data.recipes import config_text, literal

from mmpelk.errors import UserError
from tests.paths import TOOLS

URL = 'https://example.org/convnext_tiny.pth'
MACHINES = [Machine(), Machine(8.0, 2, 'GPU'), Machine(24.0, 4, 'GPU'), Machine(80.0, 32, 'GPU')]
# Of each task the configs: machine, options of the plan, and what is other in the data set.
GPU, TEST = MACHINES[2], dict(test=True)
CONFIGS: list[tuple[str, Machine, dict[str, Any], dict[str, Any]]] = [
    ('nano', MACHINES[0], {}, {}),
    ('PeLK-T with a test split', GPU, {}, TEST),
    ('pretrained, a batch given', GPU, dict(weights=URL, batch_size=6), dict(size=(1500, 900), pictures=3000)),
    ('nano of larger pictures', MACHINES[0], {}, dict(size=(400, 300), exif=True, boxes=True, classes=30)),
]


def data_of(
    task: str,
    pictures: int = 50,
    size: tuple[int, int] = (96, 64),
    classes: int = 3,
    test: bool = False,
    exif: bool = False,
    boxes: bool = False,
) -> DataSet:
    """A data set that nothing is read of."""
    data = DataSet(task, Path('/data'), [f'class {index}' for index in range(classes)], [], {}, [], [], 'counted')
    data.palette = [(index, 2 * index, 3 * index) for index in range(classes)]
    for split, count in (('train', pictures), ('val', pictures // 5), ('test', 2 * test)):
        if count:
            data.splits[split] = [f'{split}/{index}.jpg' for index in range(count)]
    data.sizes = [(32, 24), size, size, (2 * size[0], size[1])]
    data.counts = [100 - index * index // 9 for index in range(classes)]
    data.unlabelled, data.ignore_orientation = 0.125, exif
    contents = {
        split: dict(
            images=[dict(id=index, file_name=name) for index, name in enumerate(names)], annotations=[], categories=[]
        )
        for split, names in data.splits.items()
    }
    if task == 'det':
        folders = {split: split for split in data.splits}
        data.details = dict(masks=not boxes, folders=folders, contents=contents, sides=[*range(90, 10, -1)])
    if task == 'seg':
        data.details['values'] = [(str(index), 'a [red] class', str(index), '1.00%') for index in range(3 * classes)]
    data.note('remark', 'something', [f'{index}.jpg' for index in range(7)])
    data.note('question', 'which?')
    return data


def written(task: str) -> str:
    """Configs and reports, the later ones as what differs from the first, and a line for every plan."""
    parts, first = [], ''
    for title, machine, options, more in CONFIGS:
        data = data_of(task, **more)
        plan = make_plan(data, machine, **options)
        text = f'{plan.summary(machine)}\n{config_text(data, plan, Path("/project"))}'
        lines = difflib.unified_diff(first.splitlines(), text.splitlines(), n=0, lineterm='') if first else [text]
        parts += [f'-- {title}', *(line for line in lines if not line.startswith(('---', '+++', '@@')))]
        first = first or text
    print_report(data, report := io.StringIO())
    parts.append(report.getvalue())
    parts.append('-- plans: size of most pictures, GB, cores, pictures to train and to validate on')
    for size in ((28, 28), (150, 120), (1920, 1200)):
        for machine, options in [*((machine, {}) for machine in MACHINES), (GPU, dict(weights=URL))]:
            for pictures in (6, 500, 100_000):
                data = data_of(task, pictures, size)
                plan = make_plan(data, machine, **options)
                parts.append(
                    f'{size} {machine.gpu_memory:g} {machine.cores} {pictures} {len(data.splits["val"])}: '
                    f'{plan.size} {plan.resized} of {plan.batch_size} {plan.workers} {plan.iterations} {plan.epochs} '
                    f'{plan.val_interval} {plan.lr} {plan.recipe if options else plan.nano}'
                )
    return '\n'.join(line.rstrip() for part in parts for line in part.splitlines()) + '\n'


def test_what_was_found_and_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is a file beside the drawing; questions that the user accepts are decisions."""
    data, drawn = data_of('cls'), []
    data.note('decision', 'a name that is no text', ['a\udcff.jpg'])  # as Python reads such files' names
    monkeypatch.setattr(writing, 'draw_preview', lambda data, path: drawn.append(path))
    writing.write_findings(data, tmp_path / 'projects' / 'mine')
    print_report(data, report := io.StringIO())
    assert (tmp_path / 'projects' / 'mine' / 'data.txt').read_text() == report.getvalue().replace('\udcff', '?')
    assert drawn == [tmp_path / 'projects' / 'mine' / 'data.png']
    with pytest.raises(UserError, match=r'^1 of the lines above are questions'):
        answer(data, yes=False)
    answer(data, yes=True)
    assert [(note.kind, note.text) for note in data.notes[:2]] == [('remark', 'something'), ('decision', 'which?')]


@pytest.mark.parametrize(('cores', 'workers'), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize('classes', [5, 6])
def test_workers_stay_and_five_guesses_are_of_more_classes(cores: int, workers: int, classes: int) -> None:
    data = data_of('cls', classes=classes)
    text = config_text(data, make_plan(data, Machine(8.0, cores, 'GPU')), Path('/project'))
    assert text.count(f'num_workers={workers},') == text.count('persistent_workers=True,') == 2
    assert ('topk=(1, 5)' in text) is (classes > 5)
    assert 'persistent_workers=True' not in config_text(data, make_plan(data, Machine()), Path('/project'))


def test_the_largest_classes_and_the_sizes_by_area_are_shown(tmp_path: Path) -> None:
    """Whatever their order; the rest is added up."""
    data = data_of('det', classes=26)
    data.counts = [(7 * index) % 26 * 100 for index in range(26)]
    data.sizes = [(300, 10), (20, 20), (50, 50), (60, 60), (10, 500)]
    data.details['sides'] = [*range(19, 0, -1)]
    data.note('remark', 'the first')
    data.note('question', 'the last')
    print_report(data, report := io.StringIO())
    cells = [
        [cell.strip() for cell in re.split(r'[│┃|]|  +', line) if cell.strip()]
        for line in report.getvalue().splitlines()
    ]
    shown = [row for row in cells if row and row[0].startswith('class ') and len(row) == 4]
    total = sum(data.counts)
    wanted = sorted(range(26), key=lambda index: -data.counts[index])
    assert [row[1:] for row in shown] == [
        [str(index), str(data.counts[index]), f'{data.counts[index] / total:.2%}'] for index in wanted[:20]
    ]
    rest = sum(data.counts[index] for index in wanted[20:])
    assert ['6 more', str(rest), f'{rest / total:.2%}'] in cells
    assert ['sizes: smallest, middle, largest', '20x20, 300x10, 10x500'] in cells
    assert ['sides of boxes: 10 %, middle, 90 %', '2 px, 10 px, 18 px'] in cells
    notes = [line for line in report.getvalue().splitlines() if line.startswith('- ')]
    assert [line.split(':')[0] for line in notes] == ['- question', '- question', '- remark', '- remark']


def test_a_project_is_written_without_questions_and_over_nothing(tmp_path: Path) -> None:
    data = data_of('cls')
    data.splits = dict(train=['日本/é.jpg', 'b/1.jpg'], val=['b/2.jpg'])
    data.details['labels'] = {'日本/é.jpg': 0, 'b/1.jpg': 1, 'b/2.jpg': 1}
    plan = make_plan(data, Machine())
    with pytest.raises(UserError, match=r'^1 questions are open: question: which\?$'):
        writing.write_project(data, plan, tmp_path / 'mine')
    assert not (tmp_path / 'mine').exists()
    answer(data, yes=True)
    config = writing.write_project(data, plan, tmp_path / 'mine')
    assert config == (tmp_path / 'mine' / 'mine.py').resolve()
    assert (tmp_path / 'mine' / 'train.txt').read_text('utf-8') == '日本/é.jpg 0\nb/1.jpg 1\n'
    config.write_text('precious')
    with pytest.raises(UserError, match='is there already; --overwrite replaces it'):
        writing.write_project(data, plan, tmp_path / 'mine')
    assert config.read_text() == 'precious'
    writing.write_project(data, plan, tmp_path / 'mine', overwrite=True)
    assert 'classes' in config.read_text('utf-8')


@pytest.mark.parametrize('task', ['seg', 'det', 'cls'])
def test_one_class_is_a_list_of_one_and_a_path_is_data(task: str) -> None:
    data, weights = data_of(task, classes=1), "https://a.org/it's {{ fileDirname }}.pth"
    text = config_text(data, make_plan(data, GPU, weights), Path('/project'))
    assert "classes = ('class 0',)\n" in text
    assert f'checkpoint={literal(weights)})' in text
    assert task == 'cls' or 'palette = [(0, 0, 0)]\n' in text


def test_pictures_are_listed_below_the_folder_of_their_split(tmp_path: Path) -> None:
    data = data_of('det', pictures=10)
    data.details['folders'] = dict(train='a', val='')
    for split, paths in dict(train=('a/x/0.jpg', 'a/y/0.jpg'), val=('a/0.jpg', '/of an archive/0.jpg')).items():
        data.details['contents'][split]['images'] = [dict(id=index, file_name=path) for index, path in enumerate(paths)]
    answer(data, yes=True)
    writing.write_project(data, make_plan(data, Machine()), tmp_path / 'mine')
    for split, paths in dict(train=['x/0.jpg', 'y/0.jpg'], val=['a/0.jpg', '/of an archive/0.jpg']).items():
        written = json.loads((tmp_path / 'mine' / f'{split}.json').read_text())
        assert [image['file_name'] for image in written['images']] == paths


@pytest.mark.parametrize('task', ['seg', 'det', 'cls'])
def test_every_option_reaches_its_reader(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = dict(seg='segmentation', det='detection', cls='classification')
    readers = {each: mock.create_autospec(getattr(new_project, f'read_{kind}')) for each, kind in kinds.items()}
    for each, kind in kinds.items():
        monkeypatch.setattr(new_project, f'read_{kind}', readers[each])
    words = ['mine', '--task', task, '--data', 'folder', '--classes', 'a,b', '--val-share', '0.3']
    more = {
        'seg': ['--images', 'x', '--labels', 'y', '--ignore', '3', '--background', '4', '--soft-edges'],
        'det': ['--images', 'x', '--annotations', 't.json', 'v.json'],
        'cls': [],
    }
    monkeypatch.setattr(sys, 'argv', ['new_project.py', *words, *more[task]])
    new_project.read_as(new_project.parse_args(), converted := dict(format='VOC'))
    given = inspect.signature(readers[task]).bind(*readers[task].call_args.args, **readers[task].call_args.kwargs)
    expected = dict(root=Path('folder'), classes='a,b', val_share=0.3, converted=converted)
    expected |= {
        'seg': dict(images='x', labels='y', answers=Answers(['3'], '4', True)),
        'det': dict(images='x', annotations=['t.json', 'v.json']),
        'cls': {},
    }[task]
    assert given.arguments == expected


@pytest.mark.parametrize(
    ('words', 'memory'), [([], None), (['--gpu-memory', '0'], 0.0), (['--gpu-memory', '11'], 11.0)]
)
def test_the_machine_is_the_one_of_the_command(
    words: list[str], memory: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory of 0 is one that was given."""
    asked: list[float | None] = []
    monkeypatch.setattr(new_project.Machine, 'here', lambda memory: asked.append(memory) or sys.exit(3))
    monkeypatch.setattr(sys, 'argv', ['', 'mine', '--task', 'cls', '--data', 'x', '--out', str(tmp_path / 'm'), *words])
    with pytest.raises(SystemExit):
        new_project.main()
    assert asked == [memory]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataSet]:
    """What the command reads of a set in no layout that is known, with words of its own and what is converted."""

    def reads(*words: str, converted: dict[str, Any], outlines: bool = False) -> DataSet:
        def read_as(args: Any, found: dict[str, Any] | None) -> DataSet:
            if found is None:
                raise UnknownLayoutError('no label map')
            assert found is converted
            return data_of('seg')

        monkeypatch.setattr(new_project, 'read_as', read_as)
        monkeypatch.setattr(new_project, 'has_outlines', lambda root: outlines)
        monkeypatch.setattr(new_project, 'convert', lambda *given: asked.append(given) or converted)
        monkeypatch.setattr(sys, 'argv', ['new_project.py', 'mine', '--data', str(tmp_path), *words])
        return new_project.read(new_project.parse_args(), Path('out'))

    asked: list[tuple[Any, ...]] = []
    reads.asked = asked  # type: ignore[attr-defined]
    return reads


@pytest.mark.parametrize('form', [None, 'voc'])
def test_what_is_said_of_another_format(form: str | None, read: Any, tmp_path: Path) -> None:
    converted = dict(format='VOC', said=[['question', 'is it so?'], ['mistake', 'it is not']], unused=['cow', 'hen'])
    data = read('--task', 'seg', *(['--format', form] if form else []), converted=converted)
    assert [(note.kind, note.text, [*note.files]) for note in data.notes[-4:]] == [
        ('decision', 'the data set is read as one of the format VOC', []),
        ('question', 'is it so?', []),
        ('mistake', 'it is not', []),
        ('decision', '2 classes that the format lists have no object and are left out', ['cow', 'hen']),
    ]
    reason = f'the format is to be {form}' if form else 'no label map'
    assert read.asked == [(tmp_path, 'seg', Path('out') / 'converted', reason, form, None)]


@pytest.mark.parametrize(('words', 'outlines', 'converts'), [
    (['seg'], False, True), (['seg', '--classes', 'a,b'], False, False), (['seg', '--classes', 'a,b'], True, True),
    (['det', '--classes', 'a,b'], False, True),
])  # fmt: skip
def test_who_has_named_the_classes_of_label_maps_means_those(
    words: list[str], outlines: bool, converts: bool, read: Any
) -> None:
    """And is told what is wrong with them; other formats have names of their own."""
    if converts:
        assert read('--task', *words, converted=dict(format='VOC'), outlines=outlines)
        assert read.asked[0][-1] == (words[2] if words[2:] else None)
    else:
        with pytest.raises(UnknownLayoutError, match=r'^no label map$'):
            read('--task', *words, converted={}, outlines=outlines)


def test_the_next_commands_are_as_a_shell_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, test = map(shlex.split, new_project.next_steps(tmp_path / "it's" / 'mine.py').splitlines())
    assert train[-3:] == ['python', str(TOOLS / 'train.py'), "it's/mine.py"]
    checkpoint = '$(cat work_dirs/mine/last_checkpoint)'
    assert test[-6:] == ['python', str(TOOLS / 'test.py'), "it's/mine.py", checkpoint, '--show-dir', 'drawn']


@pytest.mark.parametrize('share', ['0', '1', '-0.2'])
def test_shares_that_leave_nothing(share: str, read: Any) -> None:
    with pytest.raises(UserError, match=f'--val-share is a share between 0 and 1, got {share}$'):
        read('--task', 'det', '--val-share', share, converted={})


@pytest.mark.parametrize('task', ['seg', 'det', 'cls'])
def test_configs_reports_and_plans(task: str, compare: Callable[[str], None]) -> None:
    """The values have their reasons in ``plan.py`` and ``recipes.py``; here they are seen to change."""
    compare(written(task))
