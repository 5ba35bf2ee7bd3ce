"""Print Tables 1, 5, 6, 7 and Fig. 2 of the paper with what ``python -m reproduction.run_ablations`` measured.

python -m reproduction.collect_ablations [WORK_DIR ...] [--out benchmarks/results/ablations.json]

The JSON keeps what it has of seeds that were not trained in these folders, such as those of another machine.
"""

import copy
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

from mmengine.config import Config

from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error

from . import RESULTS, argument_parser
from .ablations import ABLATIONS, METRICS, ROWS, AblationRow, recipe_path, trained_as
from .marks import NOT_PRINTED, NOTHING, Results, computed, deviation, paper, target, with_deviation
from .runs import TrainingRun, read_run
from .variants import mean_and_deviation

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
    """The training of a recipe with one seed."""

    seed: int
    final: float | None  # the metric at the end, in percent; ``None`` before
    progress: int  # epochs or iterations so far
    planned: int  # epochs or iterations in all
    unit: str  # ``'epoch'`` or ``'iteration'``
    # what makes it another experiment than the recipe, such as ``'schedule'``, ``'batch'``, or, of a
    # segmentation, ``'pre-training'``
    changed: tuple[str, ...]
    machine: str  # GPUs or ``'CPU'`` with the number of processes, or ``''``
    date: str  # day of the newest start


#: The seeds that were started, rising, by stage and by the name of the recipe that was trained
#: (:func:`.ablations.trained_as`).
Trainings: TypeAlias = dict[tuple[str, str], list[Seed]]


def of_row(trainings: Trainings, stage: str, row: AblationRow) -> list[Seed]:
    """What was trained for a row."""
    return trainings.get((stage, trained_as(stage, row.name)), [])


def values(seeds: Sequence[Seed]) -> list[float]:
    """The metric of each finished seed, in percent."""
    return [seed.final for seed in seeds if seed.final is not None]


def summary(seeds: Sequence[Seed]) -> str:
    """The mean, ``± deviation`` and the number of seeds; else how far it is; ``''`` if nothing was started."""
    if finals := values(seeds):
        mean, spread = mean_and_deviation(finals)
        marks = sorted({mark for seed in seeds if seed.final is not None for mark in seed.changed})
        other = f', other {" and ".join(marks)}' if marks else ''
        return f'{mean:.2f}{f" ± {spread:.2f}" if len(finals) > 1 else ""} (n = {len(finals)}{other})'
    if not seeds:
        return ''
    furthest = max(seeds, key=lambda seed: seed.progress)
    return f'seed {furthest.seed}: {furthest.unit} {furthest.progress} of {furthest.planned}'


def collect(work_dirs: Sequence[Path]) -> Trainings:
    """Read the trainings of all rows.

    Args:
        work_dirs: Folders given as ``--work-dir`` to ``python -m reproduction.run_ablations``; of a seed that several
            of them hold, the run that came furthest counts.

    Returns:
        Those of which something was started.
    """
    found: Trainings = {}
    for stage, name in ((stage, name) for name, row in ROWS.items() for stage in row.paper):
        runs: dict[int, TrainingRun] = {}
        for folder in (folder for work_dir in work_dirs for folder in (work_dir / stage / name).glob('seed_*')):
            number = folder.name.removeprefix('seed_')
            if number.isdigit() and (run := read_run(folder, METRICS[stage][0])).planned:
                other = runs.get(int(number), run)
                runs[int(number)] = max(other, run, key=lambda one: (one.status == 'finished', one.progress))
        seeds = [
            Seed(number, run.final, run.progress, run.planned, run.unit, changes, run.machine, run.date)
            for number, run in sorted(runs.items())
            for changes in [_changed(stage, name, run)]
        ]
        if seeds:
            found[stage, name] = seeds
    return found


# The file


def save(trainings: Trainings, path: Path) -> None:
    """Write ``benchmarks/results/ablations.json``."""
    stored = [
        dict(stage=stage, recipe=name, seeds=[asdict(seed) for seed in seeds])
        for (stage, name), seeds in trainings.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(dict(collected=date.today().isoformat(), trainings=stored), indent=1) + '\n', encoding='utf-8'
    )


def load(path: Path) -> Trainings:
    """Read what :func:`save` wrote; nothing if there is no file.

    Raises:
        ValueError: If it is something else.
    """
    if not path.exists():
        return {}
    try:
        return {
            (one['stage'], one['recipe']): [Seed(**dict(seed, changed=tuple(seed['changed']))) for seed in one['seeds']]
            for one in json.loads(path.read_text(encoding='utf-8'))['trainings']
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{path}' holds no results of ablations ({error!r}); give another --out") from error


def merge(new: Trainings, stored: Trainings) -> Trainings:
    """Results, with the seeds of an earlier file that the new ones do not have."""
    merged: Trainings = {}
    for key in [*stored, *(key for key in new if key not in stored)]:
        seeds = {seed.seed: seed for seed in [*stored.get(key, []), *new.get(key, [])]}
        merged[key] = [seeds[number] for number in sorted(seeds)]
    return merged


# The tables


def measured_rows(key: str, trainings: Trainings) -> int:
    """Number of rows of a table of which a training is finished."""
    rows = ABLATIONS[key].rows
    return sum(any(values(of_row(trainings, stage, row)) for stage in row.paper) for row in rows)


def ablation_table(key: str, trainings: Trainings, results: Results) -> Table:
    """A table of the paper: labels, computed columns, and metrics where the rows were trained.

    Columns of which the paper prints nothing and nobody has measured anything are left out.

    Args:
        key: Of :data:`.ablations.ABLATIONS`.
        trainings: What was trained.
        results: Numbers the runs that measured something.
    """
    table = ABLATIONS[key]
    gains = any(row.gain_over for row in table.rows)
    columns = [*table.columns]
    for heading in table.computed:
        columns += [heading, f'{heading}, here']
    columns += [METRICS[stage][1] for stage in table.rows[0].paper] + ['gain in mIoU'] * gains
    rows = []
    for row in table.rows:
        cells, printed = [*row.label], row.printed
        for digits, value in table.computed.values():
            ours = round(value(row), digits)
            cells += [paper(printed, digits), with_deviation(computed(ours, digits), deviation(ours, printed, 6))]
            printed = None  # the paper prints values of the first column alone
        cells += [_metric(score, of_row(trainings, stage, row), results, key) for stage, score in row.paper.items()]
        rows.append([*cells, *([_gain(row, trainings)] if gains else [])])
    kept = [index for index in range(len(columns)) if {row[index] for row in rows} - {NOTHING, NOT_PRINTED}]
    made = Table([columns[index] for index in kept], title=table.title, notes=table.notes, labels=len(table.columns))
    for cells in rows:
        made.add(*(cells[index] for index in kept))
    return made


def _metric(printed: float | None, seeds: Sequence[Seed], results: Results, key: str) -> str:
    text = summary(seeds)
    if finished := [seed for seed in seeds if seed.final is not None]:
        newest = max(finished, key=lambda seed: seed.date)
        text = results.measured(text, dict(device=newest.machine, date=newest.date), f'ablations, {key}')
    return '; '.join(filter(None, [NOT_PRINTED if printed is None else target(printed), text]))


def _gain(row: AblationRow, trainings: Trainings) -> str:
    if row.gain_over is None:
        return NOTHING
    cell = target(f'{row.paper_gain:+.1f}') if row.paper_gain is not None else NOT_PRINTED
    own, other = (values(of_row(trainings, 'seg', one)) for one in (row, ROWS[row.gain_over]))
    if not own or not other:
        return cell
    return f'{cell}; {mean_and_deviation(own)[0] - mean_and_deviation(other)[0]:+.2f}, from the measured column'


def main() -> None:
    parser = argument_parser('collect_ablations', __doc__)
    folders = 'folders given to run_ablations as --work-dir; work_dirs/ablations by default'
    parser.add_argument('work_dirs', nargs='*', type=Path, default=[Path('work_dirs/ablations')], help=folders)
    parser.add_argument('--tables', nargs='+', choices=list(ABLATIONS), default=list(ABLATIONS), help='all by default')
    parser.add_argument('--out', type=Path, default=RESULTS / 'ablations.json', help='the JSON; %(default)s by default')
    args = parser.parse_args()
    with exit_on_user_error():
        trainings, results = collect(args.work_dirs), Results()
        for key in args.tables:
            ablation_table(key, trainings, results).print()
        if results.runs:
            results.listing().print()
        if not trainings:
            folders = ', '.join(map(str, args.work_dirs))
            print(f'no training in {folders}: every figure is a target, and {args.out} is left as it is')
            return
        save(merge(trainings, load(args.out)), args.out)
        print(args.out)


if __name__ == '__main__':
    main()
