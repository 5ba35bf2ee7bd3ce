"""The files of a project: what was found in the data, and then its config, its split and its label maps."""

import json
import os
from pathlib import Path

from mmpelk.errors import UserError

from .dataset import DataSet
from .plan import Plan
from .preview import draw_preview
from .recipes import config_text
from .report import print_report
from .segmentation import write_labels

__all__ = ['write_findings', 'write_project']


def config_path(out: Path, overwrite: bool) -> Path:
    """Path of the config of a project.

    Raises:
        UserError: If it is there already.
    """
    out = out.resolve()
    config = out / f'{out.name}.py'
    if config.exists() and not overwrite:
        raise UserError(f"'{config}' is there already; --overwrite replaces it, with all changes that were made to it")
    return config


def write_findings(data: DataSet, out: Path) -> None:
    """Write what was understood, ``data.txt``, and a drawing of it, ``data.png``."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / 'data.txt').open('w', encoding='utf-8', errors='replace') as file:
        print_report(data, file)
    draw_preview(data, out / 'data.png')


def write_project(data: DataSet, plan: Plan, out: Path, overwrite: bool = False) -> Path:
    """Write the config, the lists of the split, and label maps of indices.

    Args:
        data: The data set.
        plan: How to train on it.
        out: Folder of the project; the config has its name.
        overwrite: Replace a config that is there.

    Returns:
        Path of the config.

    Raises:
        UserError: If there is a config already, or a question is open.
    """
    config = config_path(out, overwrite)
    if data.questions:
        raise UserError(f'{len(data.questions)} questions are open: {data.questions[0]}')
    config.parent.mkdir(parents=True, exist_ok=True)
    for split, names in data.splits.items():
        if data.task == 'det':
            content, folder = data.details['contents'][split], data.details['folders'][split]
            below = [os.path.relpath(i['file_name'], folder) if folder else i['file_name'] for i in content['images']]
            images = [dict(image, file_name=name) for image, name in zip(content['images'], below, strict=True)]
            (config.parent / f'{split}.json').write_text(json.dumps(dict(content, images=images)), encoding='utf-8')
            continue
        labels = data.details.get('labels')
        lines = [f'{name} {labels[name]}' if labels else name for name in names]
        (config.parent / f'{split}.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    if data.task == 'seg':
        write_labels(data, config.parent / 'labels')
    config.write_text(config_text(data, plan, config.parent), encoding='utf-8')
    return config
