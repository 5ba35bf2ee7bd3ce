"""Data sets of other formats: outlines and boxes beside the pictures, and what Datumaro reads."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from mmpelk.errors import UserError

from .outlines import read_outlines, write_boxes, write_maps

_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = _ROOT / '.venv-data'
_VARIABLE = 'MMPELK_DATUMARO_PYTHON'  # names the Python of another environment


def convert(
    root: Path, task: str, out: Path, reason: str, name: str | None = None, classes: str | None = None
) -> dict[str, Any]:
    """Read a data set of another format.

    Args:
        root: Its folder.
        task: ``'seg'``, ``'det'`` or ``'cls'``.
        out: Folder for what has to be written.
        reason: Why the layouts that are read here do not fit, for messages.
        name: Of the format, as Datumaro calls it; found by default.
        classes: Names, where the format has none.

    Returns:
        ``format``, and in detection ``files``, COCO's annotations of each split; else ``samples``, each with ``image``,
        ``label`` (the path of a label map, or the name of a class) and ``subset``; in segmentation ``classes``, too.
        ``left_out`` is what could not be read, as :meth:`~own_data.dataset.DataSet.leave_out` takes it; ``said`` are
        other notes, kind and text.

    Raises:
        UserError: If it cannot be read.
    """
    out = out.resolve()  # the readers take other paths from the data set's folder
    out.mkdir(parents=True, exist_ok=True)
    if task != 'cls' and name is None and (content := read_outlines(root, classes)):
        return write_maps(root, content, out) if task == 'seg' else write_boxes(content, out)
    command = [_find_python(reason), str(Path(__file__).with_name('convert.py')), '--task', task, '--data', str(root)]
    command += ['--out', str(out), *(['--format', name] if name else [])]
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f'Datumaro failed on {str(root)!r}: {(done.stderr.strip() or "no message").splitlines()[-1]}')
    result = json.loads((out / 'converted.json').read_text(encoding='utf-8'))
    if result['error']:
        raise UserError(
            f"{reason}. Datumaro does not read '{root}' either ({result['error']}); --format NAME tries one of its "
            'formats, else convert it to one of the layouts of docs/your_own_data.md'
        )
    return result


def _find_python(reason: str) -> str:
    """A Python that has Datumaro."""
    if given := os.environ.get(_VARIABLE):
        return given
    if importlib.util.find_spec('datumaro'):
        return sys.executable
    own = _ENVIRONMENT / 'bin' / 'python'
    if own.is_file():
        return str(own)
    folder, list_ = shlex.quote(str(_ENVIRONMENT)), shlex.quote(str(_ROOT / 'requirements' / 'own_data.txt'))
    raise UserError(
        f'{reason}. Datumaro reads 80 other formats (CVAT, Open Images, ...), in an environment of its own: python -m '
        f'venv {folder} && {folder}/bin/pip install -r {list_}, then type this command again'
    )
