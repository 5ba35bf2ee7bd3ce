"""Read the work folder of a training of mmengine: its progress and its metrics."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mmengine.config import Config


@dataclass(frozen=True)
class TrainingRun:
    """One training, put together from all the starts that it took."""

    folder: Path  # its work folder
    planned: int = 0  # epochs or iterations that it was started for; 0 if it was never started
    unit: str = 'epoch'  # ``'epoch'`` or ``'iteration'``, of ``planned`` and of the keys of ``tested``
    progress: int = 0  # epochs or iterations in which something was logged last; an epoch counts once it has begun
    tested: dict[int, float] = field(default_factory=dict)  # the metric after so many epochs or iterations
    machine: str = ''  # GPUs or ``'CPU'`` with the number of processes, as the newest log says, or ``''``
    processes: int = 0  # their number; 0 if no log has it
    date: str = ''  # day of the newest start, as ``YYYY-MM-DD``, or ``''``
    cfg: dict[str, Any] = field(default_factory=dict)  # the newest start's config

    @property
    def status(self) -> str:
        """``'finished'`` once the last test is there, ``'unfinished'``, running or not, or ``'missing'``."""
        if not self.planned:
            return 'missing'
        return 'finished' if max(self.tested, default=0) >= self.planned else 'unfinished'

    @property
    def final(self) -> float | None:
        """The metric at the end; ``None`` before."""
        return self.tested[max(self.tested)] if self.status == 'finished' else None

    def checkpoint(self, steps: int) -> Path:
        """Where mmengine stores the checkpoint after so many epochs or iterations."""
        return self.folder / f'{"epoch" if self.unit == "epoch" else "iter"}_{steps}.pth'


def planned_steps(cfg: Config) -> tuple[int, str]:
    """Length of the training that a config describes, and ``'epoch'`` or ``'iteration'``."""
    loop = cfg.train_cfg
    if 'max_iters' in loop:
        return int(loop.max_iters), 'iteration'
    return int(loop.max_epochs), 'epoch'


def read_run(folder: Path, metric: str) -> TrainingRun:
    """Read a work folder.

    A training that was resumed has several logs. Of what one of them says about the steps at and after the point where
    the next one begins, nothing counts, so that a training started anew does not inherit its predecessor's end.

    Args:
        folder: The training's work folder; it need not exist.
        metric: Name of a metric in the log, such as ``'accuracy/top1'``.

    Returns:
        The run; one whose ``status`` is ``'missing'`` if nothing was ever started there.
    """
    # mmengine names each start's folder by its second, so that their order is that of time.
    starts = sorted(path.parent.parent for path in folder.glob('????????_??????/vis_data/config.py'))
    if not starts:
        return TrainingRun(folder)
    cfg = Config.fromfile(starts[-1] / 'vis_data' / 'config.py')
    planned, unit = planned_steps(cfg)
    tested: dict[int, float] = {}
    progress = 0
    for start in starts:
        first = True
        for line in _lines(start / 'vis_data' / 'scalars.json'):
            if metric in line:
                tested[line['step']] = line[metric]
                continue
            if (position := line.get('epoch' if unit == 'epoch' else 'iter')) is None:
                continue  # a test without this metric
            if first:
                first, tested = False, {step: value for step, value in tested.items() if step < position}
            progress = position
    date = datetime.strptime(starts[-1].name, '%Y%m%d_%H%M%S').date().isoformat()
    return TrainingRun(folder, planned, unit, progress, tested, *_machine(starts[-1]), date, cfg.to_dict())


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    if not log.exists():  # stopped before the first line
        return
    for line in log.read_text(encoding='utf-8').splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # killed while writing it
            return


def _machine(start: Path) -> tuple[str, int]:
    log = start / f'{start.name}.log'
    # The environment stands on top; logs of long trainings are long.
    head = log.read_bytes()[:16384].decode(errors='replace') if log.exists() else ''
    processes = re.search(r'GPU number: (\d+)', head)
    if processes is None:
        return '', 0
    names = re.findall(r'^ +GPU [\d,]+: (.+)$', head, re.MULTILINE) or ['CPU']
    return f'{processes[1]} x {" / ".join(names)}', int(processes[1])
