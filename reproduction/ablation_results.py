"""What the trainings of Tables 1, 5, 6, 7 and Fig. 2 gave: read from their work folders, stored, and laid out."""

import copy
import dataclasses
import functools
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

from mmengine.config import Config

from mmpelk.analysis.runs import TrainingRun, read_run
from mmpelk.analysis.table import Table

from .ablations import ABLATIONS, METRICS, ROWS, AblationRow, recipe_path, trained_as
from .marks import NOTHING, Results, computed, deviation, paper, target

__all__ = [
    'STEP_INTERVALS',
    'Seed',
    'Trained',
    'Trainings',
    'ablation_table',
    'collect',
    'load',
    'measured_rows',
    'merge',
    'other_settings',
    'recipe',
    'run_folder',
    'save',
]

# Settings of hooks that count iterations, and are multiplied where several iterations make up a step.
STEP_INTERVALS = {'mmpelk.SparsityHook': 'update_interval', 'EMAHook': 'interval'}
# What the settings of a training are about, for the tables.
_PARTS = {
    'schedule': ('train_cfg', 'param_scheduler'),
    'model': ('model', 'data_preprocessor'),
    'data': ('train_dataloader',),
    'optimizer': ('optim_wrapper', 'auto_scale_lr'),
    'hooks': ('custom_hooks',),
    'test': ('val_dataloader', 'val_cfg', 'val_evaluator'),
}
# Settings that do not change the experiment: paths, the machine, the tests, and what the number of GPUs decides.
_FREE = frozenset(
    (
        *('_scope_', 'init_cfg', 'data_root', 'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor'),
        *('val_begin', 'val_interval', 'batch_size', 'accumulative_counts', 'base_batch_size'),
    )
)


@functools.cache
def _read_recipe(stage: str, name: str) -> Config:
    return Config.fromfile(recipe_path(stage, name))


def recipe(stage: str, name: str) -> Config:
    """A recipe with its bases merged; the caller's own, since building a model changes its config."""
    return copy.deepcopy(_read_recipe(stage, name))


def run_folder(work_dir: Path, stage: str, name: str, seed: int) -> Path:
    """Where the training of a row lies: ``WORK_DIR/STAGE/RECIPE/seed_N``, one for all rows that share it."""
    return work_dir / stage / trained_as(stage, name) / f'seed_{seed}'


# Whether a run is the recipe's experiment


def _without(value: Any, keys: Collection[str]) -> Any:
    """Nested settings without some keys, wherever they are."""
    if isinstance(value, Mapping):
        return {key: _without(child, keys) for key, child in value.items() if key not in keys}
    return [_without(child, keys) for child in value] if isinstance(value, list | tuple) else value


def _parts(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The settings that determine a training, as text by what they are about; equal for any number of GPUs."""
    hooks = copy.deepcopy(cfg.get('custom_hooks') or [])
    for hook in hooks:
        if key := STEP_INTERVALS.get(hook.get('type')):
            hook[key] = hook.get(key, 1) / _accumulated(cfg)
    cfg = dict(cfg, custom_hooks=hooks)
    return {
        part: json.dumps(_without([cfg.get(key) or {} for key in keys], _FREE), sort_keys=True, default=str)
        for part, keys in _PARTS.items()
    }


def _accumulated(cfg: Mapping[str, Any]) -> int:
    return (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)


def other_settings(run: TrainingRun, cfg: Config) -> list[str]:
    """What the settings of a run differ in from a config: ``'schedule'``, ``'model'`` and so on."""
    parts, wanted = _parts(run.cfg), _parts(cfg.to_dict())
    return [part for part in _PARTS if parts[part] != wanted[part]]


def _changed(stage: str, name: str, run: TrainingRun) -> tuple[str, ...]:
    """What makes a run another experiment than a recipe; the images of a step count if the log has the processes."""
    cfg = _read_recipe(stage, name)
    different = other_settings(run, cfg)
    images = (run.cfg.get('train_dataloader') or {}).get('batch_size', 0) * run.processes * _accumulated(run.cfg)
    if run.processes > 0 and images != cfg.auto_scale_lr.base_batch_size:
        different.append('batch')
    if stage == 'seg':  # the pre-training lies beside it, with the same seed
        before = read_run(run.folder.parents[2] / 'cls' / name / run.folder.name, METRICS['cls'][0])
        if before.planned and _changed('cls', name, before):
            different.append('pre-training')
    return tuple(different)


# What was trained


@dataclass(frozen=True)
class Seed:
    """The training of a recipe with one seed.

    Attributes:
        seed: The seed.
        final: The metric at the end, in percent; ``None`` before.
        progress: Epochs or iterations so far.
        planned: Epochs or iterations in all.
        unit: ``'epoch'`` or ``'iteration'``.
        changed: What makes it another experiment than the recipe, such as ``'schedule'``, ``'batch'``, or, of a
            segmentation, ``'pre-training'``.
        machine: GPUs or ``'CPU'`` with the number of processes, or ``''``.
        date: Day of the newest start.
    """

    seed: int
    final: float | None
    progress: int
    planned: int
    unit: str
    changed: tuple[str, ...]
    machine: str
    date: str


@dataclass(frozen=True)
class Trained:
    """The trainings of one recipe that were started, by rising seeds."""

    seeds: tuple[Seed, ...] = ()

    @property
    def finished(self) -> list[Seed]:
        """Those that were tested at their end."""
        return [seed for seed in self.seeds if seed.final is not None]

    @property
    def values(self) -> list[float]:
        """The metric of each finished seed, in percent."""
        return [seed.final for seed in self.seeds if seed.final is not None]

    @property
    def mean(self) -> float | None:
        """Over the finished seeds."""
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the finished seeds; ``None`` for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self) -> str:
        """The mean, ``± deviation`` and the number of seeds; else how far it is; ``''`` if nothing was started."""
        if self.mean is not None:
            spread = f' ± {self.deviation:.2f}' if self.deviation is not None else ''
            marks = sorted({mark for seed in self.finished for mark in seed.changed})
            other = f', other {" and ".join(marks)}' if marks else ''
            return f'{self.mean:.2f}{spread} (n = {len(self.values)}{other})'
        if not self.seeds:
            return ''
        furthest = max(self.seeds, key=lambda seed: seed.progress)
        return f'seed {furthest.seed}: {furthest.unit} {furthest.progress} of {furthest.planned}'


#: By stage, and by the name of the recipe that was trained (:func:`.ablations.trained_as`).
Trainings: TypeAlias = dict[tuple[str, str], Trained]


def of_row(trainings: Trainings, stage: str, row: AblationRow) -> Trained:
    """What was trained for a row."""
    return trainings.get((stage, trained_as(stage, row.name)), Trained())


def collect(work_dirs: Sequence[Path]) -> Trainings:
    """Read the trainings of all rows.

    Args:
        work_dirs: Folders given as ``--work-dir`` to ``python -m reproduction.run_ablations``; of a seed that several
            of them hold, the run that came furthest counts.

    Returns:
        Those of which something was started.
    """
    found = {
        (stage, name): _collect(work_dirs, stage, name)
        for name, row in ROWS.items()
        for stage in row.paper
        if trained_as(stage, name) == name
    }
    return {key: trained for key, trained in found.items() if trained.seeds}


def _collect(work_dirs: Sequence[Path], stage: str, name: str) -> Trained:
    runs: dict[int, TrainingRun] = {}
    for folder in (folder for work_dir in work_dirs for folder in (work_dir / stage / name).glob('seed_*')):
        number = folder.name.removeprefix('seed_')
        if number.isdigit() and (run := read_run(folder, METRICS[stage][0])).planned:
            other = runs.get(int(number), run)
            runs[int(number)] = max(other, run, key=lambda one: (one.status == 'finished', one.progress))
    return Trained(
        tuple(
            Seed(
                seed, run.final, run.progress, run.planned, run.unit, _changed(stage, name, run), run.machine, run.date
            )
            for seed, run in sorted(runs.items())
        )
    )


# The file


def save(trainings: Trainings, path: Path) -> None:
    """Write ``benchmarks/results/ablations.json``."""
    stored = [
        dict(stage=stage, recipe=name, seeds=[dataclasses.asdict(seed) for seed in trained.seeds])
        for (stage, name), trained in trainings.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(collected=date.today().isoformat(), trainings=stored), indent=1) + '\n')


def load(path: Path) -> Trainings:
    """Read what :func:`save` wrote; nothing if there is no file.

    Raises:
        ValueError: If it is something else.
    """
    if not path.exists():
        return {}
    try:
        return {
            (one['stage'], one['recipe']): Trained(
                tuple(Seed(**dict(seed, changed=tuple(seed['changed']))) for seed in one['seeds'])
            )
            for one in json.loads(path.read_text())['trainings']
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{path}' holds no results of ablations ({error!r}); give another --out") from error


def merge(new: Trainings, stored: Trainings) -> Trainings:
    """Results, with what an earlier file has of recipes of which the new ones have nothing.

    Raises:
        ValueError: If the earlier file has seeds of a recipe that the new results lack.
    """
    for (stage, name), trained in new.items():
        known = stored.get((stage, name), Trained())
        if lost := {seed.seed for seed in known.seeds} - {seed.seed for seed in trained.seeds}:
            raise ValueError(
                f'the earlier results have seeds of {stage}/{name} that these folders do not have: '
                f'{", ".join(map(str, sorted(lost)))}; name all folders of its trainings, or another --out'
            )
    return stored | new


# The tables


def measured_rows(key: str, trainings: Trainings) -> int:
    """Number of rows of a table of which a training is finished."""
    rows = ABLATIONS[key].rows
    return sum(any(of_row(trainings, stage, row).finished for stage in row.paper) for row in rows)


def ablation_table(key: str, trainings: Trainings, results: Results) -> Table:
    """A table of the paper: labels, computed columns, and metrics where somebody has trained the rows.

    Args:
        key: Of :data:`.ablations.ABLATIONS`.
        trainings: What was trained.
        results: Numbers the runs that measured something.
    """
    table = ABLATIONS[key]
    stages = list(table.rows[0].paper)
    gains = any(row.gain_over for row in table.rows)
    columns = [*table.columns]
    for column in table.computed:
        columns += [column.heading, 'here', 'deviation']
    columns += [METRICS[stage][1] for stage in stages] + ['gain in mIoU'] * gains
    made = Table(columns, title=table.title, notes=table.notes, labels=len(table.columns))
    for row in table.rows:
        cells = [*row.label]
        for column in table.computed:
            printed, value = row.printed.get(column.heading), column.value(row, table)
            ours = round(value, column.digits)
            cells += [paper(printed, column.digits), computed(value, column.digits), deviation(ours, printed, 6)]
        cells += [_metric(row.paper[stage], of_row(trainings, stage, row), results, key) for stage in stages]
        made.add(*cells, *([_gain(row, trainings)] if gains else []))
    return made


def _metric(printed: float | None, trained: Trained, results: Results, key: str) -> str:
    cell = target(printed) if printed is not None else 'not printed'
    if not trained.finished:
        return '; '.join(filter(None, [cell, trained.text()]))
    newest = max(trained.finished, key=lambda seed: seed.date)
    machine = dict(device=newest.machine, date=newest.date)
    return f'{cell}; {results.measured(trained.text(), machine, f"ablations, {key}")}'


def _gain(row: AblationRow, trainings: Trainings) -> str:
    if row.gain_over is None:
        return NOTHING
    cell = target(f'{row.paper_gain:+.1f}') if row.paper_gain is not None else 'not printed'
    own, other = (of_row(trainings, 'seg', one).mean for one in (row, ROWS[row.gain_over]))
    return cell if own is None or other is None else f'{cell}; {own - other:+.2f}, from the measured column'
