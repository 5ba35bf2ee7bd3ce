"""The files of a project: its config, its split, and what was found in the data."""

import json
from pathlib import Path
from typing import Any

from mmpelk.errors import UserError

from . import segmentation
from .dataset import DataSet
from .plan import Plan
from .recipes import config_text
from .report import print_report

__all__ = ['write_project']


def write_project(data: DataSet, plan: Plan, out: Path, overwrite: bool = False) -> Path:
    """Write the config, the lists of the split, label maps of indices where they are needed, and the report.

    Args:
        data: The data set.
        plan: How to train on it.
        out: Folder of the project; the config has its name.
        overwrite: Replace a config that is there.

    Returns:
        Path of the config.

    Raises:
        UserError: If there is a config already.
    """
    out = out.resolve()
    config = out / f'{out.name}.py'
    if config.exists() and not overwrite:
        raise UserError(f"'{config}' is there already; --overwrite replaces it, with all changes that were made to it")
    out.mkdir(parents=True, exist_ok=True)
    if data.task == 'seg':
        rewritten = segmentation.write_labels(data, out / 'labels')
        datasets = {split: _segmentation_lists(data, out, split, rewritten) for split in data.splits}
    elif data.task == 'det':
        datasets = {split: _detection_file(data, out, split) for split in data.splits}
    else:
        datasets = {split: _classification_list(data, out, split) for split in data.splits}
    config.write_text(config_text(data, plan, datasets))
    with (out / 'data.txt').open('w') as file:
        print_report(data, file)
    return config


def _segmentation_lists(data: DataSet, out: Path, split: str, rewritten: bool) -> list[dict[str, Any]]:
    """One list of names for all pictures whose folders and ends are the same; mostly it is one."""
    groups: dict[tuple[int, str, str], list[str]] = {}
    for pair in data.details['splits'][split]:
        label_end = '.png' if rewritten else pair.label_end
        groups.setdefault((pair.folders, pair.image_end, label_end), []).append(pair.name)
    parts = []
    for index, ((number, image_end, label_end), names) in enumerate(groups.items()):
        name = f'{split}.txt' if len(groups) == 1 else f'{split}_{index}.txt'
        (out / name).write_text('\n'.join(names) + '\n')
        folders = data.details['folders'][number]
        labels = f'{{{{ fileDirname }}}}/labels/{folders.labels}' if rewritten else folders.labels
        parts.append(
            dict(
                ann_file=f'{{{{ fileDirname }}}}/{name}',
                data_prefix=dict(img_path=folders.images, seg_map_path=labels),
                img_suffix=image_end,
                seg_map_suffix=label_end,
            )
        )
    return parts


def _detection_file(data: DataSet, out: Path, split: str) -> list[dict[str, Any]]:
    (out / f'{split}.json').write_text(json.dumps(data.details['contents'][split]))
    folder = data.details['folders'][split]
    return [dict(ann_file=f'{{{{ fileDirname }}}}/{split}.json', data_prefix=dict(img='' if folder == '.' else folder))]


def _classification_list(data: DataSet, out: Path, split: str) -> list[dict[str, Any]]:
    index = {name: number for number, name in enumerate(data.classes)}
    lines = [f'{name} {index[name.split("/")[data.details["depth"]]]}' for name in data.splits[split]]
    (out / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    return [dict(ann_file=f'{{{{ fileDirname }}}}/{split}.txt', data_prefix='')]
