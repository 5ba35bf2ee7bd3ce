"""Work folders as mmengine leaves them behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_start(
    folder: Path, lines: Sequence[dict], config: str = 'train_cfg = dict(max_epochs=2)', second: int = 1, gpus: int = 2
) -> None:
    """A start of a training: its config, its log, and on how many GPUs."""
    start = folder / f'20260102_0304{second:02}'
    (start / 'vis_data').mkdir(parents=True)
    (start / 'vis_data' / 'config.py').write_text(config)
    (start / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    (start / f'{start.name}.log').write_text(f'    GPU 0,1: NVIDIA H100\n    GPU number: {gpus}\n')


def epoch(number: int, top1: float | None = None) -> list[dict[str, Any]]:
    """Lines of an epoch, with its test."""
    trained = dict(loss=1.0, epoch=number, iter=10 * number, step=10 * number)
    return [trained] + ([{'accuracy/top1': top1, 'step': number}] if top1 is not None else [])
