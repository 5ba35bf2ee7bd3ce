"""All that the readers find in the data sets of the tests, compared with files in ``expected``."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from own_data import DataSet

from mmpelk.errors import UserError
from tests.paths import ROOT

Compare = Callable[[str], None]


def described(data: DataSet) -> str:
    """What was found."""
    details = data.details
    labels = {pair.image: f'={pair.label}' for pair in details.get('pairs', ())}
    sizes = ', '.join(f'{count} of {size[0]}x{size[1]}' for size, count in sorted(Counter(data.sizes).items()))
    lines = [
        f'{data.counts} {data.unit} of {data.classes}, without {data.unlabelled:.4f}',
        sizes + ', EXIF ignored' * data.ignore_orientation,
        *(
            f'{split}: {" ".join(name + labels.get(name, "") for name in names)}'
            for split, names in data.splits.items()
        ),
    ]
    if rows := details.get('values'):
        lines.append('coloured ' * details['meaning'].coloured + '; '.join(' '.join(row) for row in rows))
    for content in details.get('contents', {}).values():
        classes = {category['id']: category['name'] for category in content['categories']}
        for image in content['images']:
            objects = [entry for entry in content['annotations'] if entry['image_id'] == image['id']]
            lines.append(' '.join([image['file_name'], *(_object(entry, classes) for entry in objects)]))
    if 'labels' in details:
        lines.append(str(sorted({(os.path.dirname(name), index) for name, index in details['labels'].items()})))
    lines += [f'{key} {details[key]}' for key in ('folders', 'masks') if key in details]
    lines += [f'{note.kind}: {note.text} ({" ".join(note.files)})' for note in data.notes]
    return _without_places('\n'.join(lines), data.root)


def _without_places(text: str, root: Path) -> str:
    """Without the names of folders, and what libraries say of damaged files."""
    text = text.replace(str(root), 'ROOT').replace(str(ROOT), 'REPOSITORY')
    return re.sub(r'damaged \(.*?\)(?=:)', 'damaged', re.sub(r'\((\w+Error): .*?\)(?= and are)', r'(\1)', text))


def _object(entry: dict[str, Any], classes: dict[int, str]) -> str:
    """Class, box, and what is not that of a box alone."""
    box = ','.join(f'{number:.4g}' for number in entry['bbox'])
    of_box = abs(entry['area'] - entry['bbox'][2] * entry['bbox'][3]) < 1e-6
    outline = entry.get('segmentation')
    more = '' if of_box else f' area {entry["area"]:.4g}'
    more += ' crowd' * entry['iscrowd'] + (f' outline {_corners(outline)}' if outline else '')
    return f'{classes[entry["category_id"]]}[{box}{more}]'


def _corners(outline: Any) -> str:
    """Number of corners of each polygon, and the first four; of a coded mask the size."""
    if isinstance(outline, dict):
        return f'in a mask of {outline["size"]}'
    return '; '.join(f'{len(part) // 2}: {",".join(f"{number:.4g}" for number in part[:8])}' for part in outline)


@pytest.fixture
def refuses(compare: Compare, tmp_path: Path) -> Callable[[], AbstractContextManager[None]]:
    """As ``pytest.raises(UserError)``; the message is compared."""

    @contextmanager
    def block() -> Iterator[None]:
        with pytest.raises(UserError) as caught:
            yield
        compare(_without_places(str(caught.value), tmp_path))

    return block


@pytest.fixture
def all_that_is_read(
    request: pytest.FixtureRequest, compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Compares every data set that the test has read, after it; label maps of outlines depend on Pillow's version."""
    found: list[str] = []

    def recorded(reader: Callable[..., DataSet]) -> Callable[..., DataSet]:
        def read(*args: Any, **options: Any) -> DataSet:
            data = reader(*args, **options)
            found.append(described(data))
            return data

        return read

    for name in ('read_segmentation', 'read_detection', 'read_classification'):
        if hasattr(request.module, name) and (name, request.path.stem) != ('read_segmentation', 'test_foreign'):
            monkeypatch.setattr(request.module, name, recorded(getattr(request.module, name)))
    yield
    if found:
        compare('\n-- next\n'.join(found))
