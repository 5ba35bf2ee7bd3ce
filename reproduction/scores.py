"""Scores of Tables 2, 3 and 4 that somebody measured with the project's recipes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .paper import TABLES

__all__ = ['RESULT_FILES', 'MeasuredScores', 'measured_scores']

#: By table.
RESULT_FILES = {2: 'ade20k.json', 3: 'coco.json', 4: 'imagenet.json'}


@dataclass(frozen=True)
class MeasuredScores:
    """Scores of a trained recipe.

    Attributes:
        machine: What the file says of the machine; :func:`mmpelk.analysis.timing.environment_info` describes one.
        scores: In per cent, by the metric names of :class:`.paper.PublishedTable`.
    """

    machine: Mapping[str, Any]
    scores: Mapping[str, float]


def measured_scores(number: int, folder: Path) -> dict[str, MeasuredScores]:
    """Scores of a table's recipes, from its file of :data:`RESULT_FILES`.

    The file has the form ``{"machine": {...}, "results": {"upernet_pelk_t_ade20k": {"mIoU": 47.9}}}``: scores in per
    cent, by recipe (its file's name without ``.py``) and by metric (``mIoU``; ``AP_box``, ``AP_mask``; ``top1``).

    Args:
        number: 2, 3 or 4.
        folder: Folder of the file.

    Returns:
        Scores by the recipe's name, such as ``'seg/upernet_pelk_t_ade20k.py'``; none if there is no file.

    Raises:
        ValueError: If the file has another form, or names an unknown recipe or metric.
    """
    path = folder / RESULT_FILES[number]
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ('machine', 'results')):
        raise ValueError(f"'{path}' must hold an object 'machine' and an object 'results' of scores by recipe")
    names = (row.network.own_name for row in TABLES[number])
    known = {Path(name).stem: name for name in names if name}
    for recipe, scores in content['results'].items():
        if recipe not in known:
            raise ValueError(f"'{path}': unknown recipe '{recipe}'; Table {number} has {', '.join(known)}")
        _check(scores, tuple(TABLES[number][0].scores), f"'{path}': '{recipe}'")
    return {known[recipe]: MeasuredScores(content['machine'], scores) for recipe, scores in content['results'].items()}


def _check(scores: Any, metrics: tuple[str, ...], where: str) -> None:
    if not isinstance(scores, dict) or not scores:
        raise ValueError(f'{where} must hold scores in per cent by metric: {", ".join(metrics)}')
    for metric, score in scores.items():
        if metric not in metrics:
            raise ValueError(f'{where} has an unknown metric {metric!r}; known: {", ".join(metrics)}')
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 100:
            raise ValueError(f'{where}: {metric} must be a number of per cent, got {score!r}')
