"""What the trainings of Tables 1, 5, 6, 7 and Fig. 2 gave, read from their work folders."""

import copy
import functools
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from .ablations import ABLATIONS, METRICS, AblationRow, AblationTable, computed, grids, half_grid, recipe
from .runs import TrainingRun, read_run

__all__ = [
    'STEP_INTERVALS',
    'Measured',
    'collect',
    'gain',
    'merge',
    'model_text',
    'report',
    'run_folder',
    'trained_as',
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
# What makes no other training: paths, the machine, when it is tested, and what the number of GPUs decides.
_FREE = frozenset(
    (
        *('_scope_', 'init_cfg', 'data_root', 'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor'),
        *('val_begin', 'val_interval', 'batch_size', 'accumulative_counts', 'base_batch_size'),
    )
)


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

    return json.dumps(_without(model, {'_scope_', 'init_cfg'}), sort_keys=True)


def _without(value: Any, keys: Collection[str]) -> Any:
    """Nested settings without some keys, wherever they are."""
    if isinstance(value, Mapping):
        return {key: _without(child, keys) for key, child in value.items() if key not in keys}
    return [_without(child, keys) for child in value] if isinstance(value, list | tuple) else value


def _parts(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The settings that determine a training, as text by what they are about; equal for any number of GPUs."""
    cfg = dict(cfg)
    hooks = copy.deepcopy(cfg.get('custom_hooks') or [])
    for hook in hooks:
        if key := STEP_INTERVALS.get(hook.get('type')):
            hook[key] = hook.get(key, 1) / _accumulated(cfg)
    cfg['custom_hooks'] = hooks
    return {
        part: json.dumps(_without([cfg.get(key) or {} for key in keys], _FREE), sort_keys=True, default=str)
        for part, keys in _PARTS.items()
    }


def _accumulated(cfg: Mapping[str, Any]) -> int:
    return (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)


@functools.cache
def _recipe_parts(stage: str, name: str) -> dict[str, str]:
    return _parts(recipe(stage, name).to_dict())


def _differences(stage: str, name: str, run: TrainingRun) -> list[str]:
    """What makes a run another experiment than a recipe; the images of a step count if the log has the processes."""
    parts, wanted = _parts(run.cfg), _recipe_parts(stage, name)
    different = [part for part in _PARTS if parts[part] != wanted[part]]
    images = (run.cfg.get('train_dataloader') or {}).get('batch_size', 0) * run.processes * _accumulated(run.cfg)
    batch = recipe(stage, name).auto_scale_lr.base_batch_size
    return different + ['batch'] * (run.processes > 0 and images != batch)


@functools.cache
def trained_as(stage: str, name: str) -> str:
    """Name of the first recipe of the plan that trains exactly what this one trains; mostly its own.

    Two trainings are one if the resolved recipes are equal, and in segmentation those of their pre-trainings, too.
    """
    wanted = _identity(stage, name)
    rows = (row.name for table in ABLATIONS.values() for row in table.rows if stage in row.paper)
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
    runs: Mapping[int, TrainingRun]

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

    def changed(self, run: TrainingRun) -> list[str]:
        """What makes a run another experiment than the recipe, such as ``'schedule'`` or ``'batch'``, or nothing.

        Of a segmentation, that is ``'pre-training'``, too, if the one that lies beside it, with the same seed, was
        another experiment.
        """
        different = _differences(self.stage, self.name, run)
        if self.stage == 'seg':
            pretraining = run_folder(run.folder.parents[2], 'cls', self.name, 0).with_name(run.folder.name)
            before = read_run(pretraining, METRICS['cls'][0])
            different += ['pre-training'] * bool(before.planned and _differences('cls', self.name, before))
        return different

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
    for row in (row for table in ABLATIONS.values() for row in table.rows):
        results[row.name] = {
            stage: Measured(stage, trained_as(stage, row.name), paper, _runs(work_dirs, stage, row.name))
            for stage, paper in row.paper.items()
        }
    return results


def _runs(work_dirs: Sequence[Path], stage: str, name: str) -> dict[int, TrainingRun]:
    found: dict[int, TrainingRun] = {}
    for work_dir in work_dirs:
        for folder in run_folder(work_dir, stage, name, 0).parent.glob('seed_*'):
            seed = folder.name.removeprefix('seed_')
            if seed.isdigit() and (run := read_run(folder, METRICS[stage][0])).planned:
                other = found.get(int(seed), run)
                found[int(seed)] = max(other, run, key=lambda one: (one.status == 'finished', one.progress))
    return dict(sorted(found.items()))


def gain(row: AblationRow, results: Mapping[str, Mapping[str, Measured]]) -> float | None:
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
        for key, table in ABLATIONS.items()
    }
    return dict(collected=date.today().isoformat(), tables=tables)


def merge(new: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """A report with what an earlier one has of rows and stages of which nothing was trained in the folders of the new.

    Args:
        new: What :func:`report` returned; changed in place.
        stored: An earlier report, collected from other folders.

    Returns:
        The new report.

    Raises:
        ValueError: If the earlier report has some seeds of a training, and the new one has others alone.
    """
    try:
        earlier = {row['name']: row['metrics'] for table in stored['tables'].values() for row in table['rows']}
        rows = {row['name']: row for table in new['tables'].values() for row in table['rows']}
        for name, row in rows.items():
            for stage, metrics in row['metrics'].items():
                if not (known := earlier.get(name, {}).get(stage)):
                    continue
                if not metrics['runs']:
                    row['metrics'][stage] = dict(known, paper=metrics['paper'])
                elif lost := {run['seed'] for run in known['runs']} - {run['seed'] for run in metrics['runs']}:
                    raise ValueError(
                        f'the earlier results have seeds of {stage}/{name} that these folders do not have: '
                        f'{", ".join(map(str, sorted(lost)))}; name all folders of its trainings, or another --out'
                    )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'the earlier results are no report of ablations ({error!r}); give another --out') from error
    for row in (row for row in rows.values() if row['gain']):
        own, other = (rows[name]['metrics']['seg']['mean'] for name in (row['name'], row['gain']['over']))
        row['gain']['measured'] = None if own is None or other is None else own - other
    return new


def _row_report(
    row: AblationRow, table: AblationTable, results: Mapping[str, Mapping[str, Measured]]
) -> dict[str, Any]:
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
