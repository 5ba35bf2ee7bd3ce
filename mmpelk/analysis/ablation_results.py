"""What the trainings of Tables 1, 5, 6, 7 and Fig. 2 gave, read from their work folders."""

import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from .ablations import METRICS, TABLES, Row, Table, computed, grids, half_grid, recipe
from .runs import Run, planned_steps, read_run

__all__ = [
    'Measured',
    'collect',
    'gain',
    'model_text',
    'report',
    'run_folder',
    'trained_as',
]


@functools.cache
def _identity(stage: str, name: str) -> str:
    """All that determines a training: what the runner reads, without the path of the weights that it starts from."""
    read_by_runner = (
        *('model', 'data_preprocessor', 'train_dataloader', 'val_dataloader', 'val_evaluator', 'train_cfg', 'val_cfg'),
        *('optim_wrapper', 'param_scheduler', 'custom_hooks', 'default_hooks', 'env_cfg', 'default_scope', 'load_from'),
    )
    cfg = recipe(stage, name).to_dict()
    training = {key: cfg[key] for key in read_by_runner if key in cfg}
    if stage == 'cls':
        return json.dumps(training, sort_keys=True)
    training['model'] = model_text(training['model'])
    return json.dumps([training, _identity('cls', name)], sort_keys=True)


def model_text(model: Mapping[str, Any]) -> str:
    """A model's config as text: equal for equal networks, wherever their weights come from."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(child) for key, child in value.items() if key not in ('_scope_', 'init_cfg')}
        return [plain(child) for child in value] if isinstance(value, list | tuple) else value

    return json.dumps(plain(model), sort_keys=True)


@functools.cache
def trained_as(stage: str, name: str) -> str:
    """Name of the first recipe of the plan that trains exactly what this one trains; mostly its own.

    Two trainings are one if the resolved recipes are equal, and in segmentation those of their pre-trainings, too.
    """
    wanted = _identity(stage, name)
    rows = (row.name for table in TABLES.values() for row in table.rows if stage in row.paper)
    return next((other for other in rows if _identity(stage, other) == wanted), name)


def run_folder(work_dir: Path, stage: str, name: str, seed: int) -> Path:
    """Where the training of a row lies: ``WORK_DIR/STAGE/RECIPE/seed_N``, one for all rows that share it."""
    return work_dir / stage / trained_as(stage, name) / f'seed_{seed}'


@dataclass(frozen=True)
class Measured:
    """What the trainings of one row gave at one stage.

    Attributes:
        stage: ``'cls'`` or ``'seg'``.
        name: The recipe that was trained.
        paper: The paper's figure, in percent; ``None`` if it prints none.
        runs: The trainings that were started, by seed.
    """

    stage: str
    name: str
    paper: float | None
    runs: Mapping[int, Run]

    @property
    def values(self) -> list[float]:
        """The metric of each finished seed at its end, in percent."""
        return [run.final for run in self.runs.values() if run.final is not None]

    @property
    def mean(self) -> float | None:
        """Over the finished seeds."""
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the finished seeds; ``None`` for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def changed(self, run: Run) -> list[str]:
        """What makes a run another experiment than the recipe: ``'schedule'``, ``'model'``, or nothing."""
        cfg = recipe(self.stage, self.name)
        same_model = model_text(run.model or {}) == model_text(cfg.model)
        return ['schedule'] * (run.planned != planned_steps(cfg)[0]) + ['model'] * (not same_model)

    def text(self) -> str:
        """For a table: the mean, ``± deviation``, the number of seeds; else how far it is; else ``'target'``."""
        if self.mean is not None:
            spread = f' ± {self.deviation:.2f}' if self.deviation is not None else ''
            marks = sorted({mark for run in self.runs.values() if run.final is not None for mark in self.changed(run)})
            other = f', other {" and ".join(marks)}' if marks else ''
            return f'{self.mean:.2f}{spread} (n = {len(self.values)}{other})'
        if self.runs:
            seed, run = max(self.runs.items(), key=lambda item: item[1].progress)
            return f'seed {seed}: {run.unit} {run.progress} of {run.planned}'
        return 'target'


def collect(work_dirs: Sequence[Path]) -> dict[str, dict[str, Measured]]:
    """Read the trainings of all rows.

    Args:
        work_dirs: Folders given as ``--work-dir`` to ``tools/analysis/run_ablations.py``; of a seed that several of
            them hold, the run that came furthest counts.

    Returns:
        Per row's name and stage. A row of which nothing was started has no runs.
    """
    results: dict[str, dict[str, Measured]] = {}
    for row in (row for table in TABLES.values() for row in table.rows):
        results[row.name] = {
            stage: Measured(stage, trained_as(stage, row.name), paper, _runs(work_dirs, stage, row.name))
            for stage, paper in row.paper.items()
        }
    return results


def _runs(work_dirs: Sequence[Path], stage: str, name: str) -> dict[int, Run]:
    found: dict[int, Run] = {}
    for work_dir in work_dirs:
        for folder in run_folder(work_dir, stage, name, 0).parent.glob('seed_*'):
            seed = folder.name.removeprefix('seed_')
            if seed.isdigit() and (run := read_run(folder, METRICS[stage][0])).planned:
                other = found.get(int(seed), run)
                found[int(seed)] = max(other, run, key=lambda one: (one.status == 'finished', one.progress))
    return dict(sorted(found.items()))


def gain(row: Row, results: Mapping[str, Mapping[str, Measured]]) -> float | None:
    """Mean mIoU of a row minus that of the row it is compared with; ``None`` while one of them is missing."""
    if row.gain_over is None:
        return None
    own, other = results[row.name]['seg'].mean, results[row.gain_over]['seg'].mean
    return None if own is None or other is None else own - other


def report(work_dirs: Sequence[Path]) -> dict[str, Any]:
    """Everything about the tables as plain data, for ``benchmarks/results/ablations.json``."""
    results = collect(work_dirs)
    tables = {
        key: dict(
            title=table.title,
            columns=table.columns,
            rows=[_row_report(row, table, results) for row in table.rows],
            notes=table.notes,
        )
        for key, table in TABLES.items()
    }
    return dict(collected=date.today().isoformat(), tables=tables)


def _row_report(row: Row, table: Table, results: Mapping[str, Mapping[str, Measured]]) -> dict[str, Any]:
    columns = [
        dict(heading=c.heading, value=c.value, digits=c.digits, printed=c.printed, deviation=c.deviation)
        for c in computed(row, table)
    ]
    metrics = {stage: _measured_report(measured) for stage, measured in results[row.name].items()}
    told = dict(over=row.gain_over, measured=gain(row, results), paper=row.paper_gain) if row.gain_over else None
    grid = half_grid(grids(recipe('cls', row.name))[0])
    return dict(
        name=row.name,
        label=row.label,
        half_grid=grid,
        printed_half_grid=row.printed_grid,
        computed=columns,
        metrics=metrics,
        gain=told,
    )


def _measured_report(measured: Measured) -> dict[str, Any]:
    metric, heading = METRICS[measured.stage]
    runs = [
        dict(
            seed=seed,
            status=run.status,
            final=run.final,
            best=run.best,
            progress=run.progress,
            planned=run.planned,
            unit=run.unit,
            changed=measured.changed(run),
            machine=run.machine,
            date=run.date,
        )
        for seed, run in measured.runs.items()
    ]
    return dict(
        metric=metric,
        heading=heading,
        paper=measured.paper,
        mean=measured.mean,
        deviation=measured.deviation,
        n=len(measured.values),
        text=measured.text(),
        trained_as=measured.name,
        runs=runs,
    )
