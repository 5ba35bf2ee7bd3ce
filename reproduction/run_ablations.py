"""Train the rows of Tables 1, 5, 6, 7 and Fig. 2 of the paper, on this machine or through Slurm.

python -m reproduction.run_ablations --tables 5 6 --gpus 8 --seeds 0 1 2
python -m reproduction.run_ablations --gpus 8 --launcher slurm --partition PARTITION --jobs 4

The same command again goes on where it stopped: what is finished is left out, what was interrupted is resumed. Rows
whose recipes are equal are trained once. ``python -m reproduction.collect_ablations`` prints the tables.
"""

import argparse
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmpelk.engine.checks import check_data, check_option_names
from mmpelk.engine.command_line import exit_on_user_error, parse_settings

from . import ROOT, argument_parser
from .ablations import ABLATIONS, METRICS, recipe_path, trained_as
from .collect_ablations import STEP_INTERVALS, other_settings, recipe, run_folder
from .runs import planned_steps, read_run
from .trainings import Training, run_trainings

SEG_GPUS = 8  # of the segmentation recipes, with two images each


@dataclass(eq=False, kw_only=True)
class Job(Training):
    """The training of a recipe with a seed."""

    stage: str  # ``'cls'`` or ``'seg'``
    cfg: Config  # the recipe with all options


def parse_args() -> argparse.Namespace:
    parser = argument_parser('run_ablations', __doc__)
    parser.add_argument('--tables', nargs='+', choices=list(ABLATIONS), default=list(ABLATIONS), help='all by default')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='only these of their rows, named as their recipes')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], metavar='SEED', help='0 by default')
    parser.add_argument('--gpus', type=int, required=True, help='processes of a pre-training')
    parser.add_argument('--seg-gpus', type=int, help=f'processes of a segmentation; {SEG_GPUS} or --gpus, if fewer')
    parser.add_argument('--launcher', choices=['local', 'slurm'], default='local', help='this machine or Slurm')
    parser.add_argument('--partition', help="Slurm's")
    parser.add_argument('--jobs', type=int, default=1, help='Slurm jobs at a time')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/ablations'), help='for all of them')
    parser.add_argument('--amp', action='store_true', help='pre-train in mixed precision; segmentation always does')
    parser.add_argument('--dry-run', action='store_true', help='print the commands that are left, and start none')
    settings: dict[str, Any] = dict(nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--cfg-options', **settings, help='change settings of every recipe')
    parser.add_argument('--cls-options', **settings, help='change settings of the pre-trainings')
    parser.add_argument('--seg-options', **settings, help='change settings of the segmentations')
    return parser.parse_args()


def batch_options(cfg: Config, gpus: int, given: Collection[str] = ()) -> dict[str, int]:
    """Options that keep the batch of a step at the size of the recipe.

    Pre-training adds up the gradients of several iterations, and multiplies the intervals of sparsity and EMA, which
    count iterations, by as much. Segmentation is as long as its iterations, so that each GPU gets more images instead.

    Args:
        cfg: The recipe with the user's options.
        gpus: Number of processes.
        given: Keys of the user's options; with ``optim_wrapper.accumulative_counts`` among them, nothing is computed.

    Returns:
        Options for ``--cfg-options``.

    Raises:
        ValueError: If so many GPUs cannot make up the batch.
    """
    per_gpu, whole = cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size
    if 'optim_wrapper.accumulative_counts' in given:
        return {}
    if planned_steps(cfg)[1] == 'iteration':
        if whole == gpus * per_gpu:
            return {}
        if whole % gpus or 'train_dataloader.batch_size' in given:
            raise ValueError(
                f'{gpus} GPUs x {per_gpu} images are not the {whole} of a step of segmentation; pass a --seg-gpus that '
                f'divides {whole}, and leave train_dataloader.batch_size to this command'
            )
        return {'train_dataloader.batch_size': whole // gpus}
    counts, rest = divmod(whole, gpus * per_gpu)
    if rest or not counts:
        raise ValueError(
            f'{gpus} GPUs x {per_gpu} images cannot add up to the {whole} of a step of pre-training; pass a --gpus '
            f'that divides {whole // per_gpu}, or --cls-options train_dataloader.batch_size=N for other images per GPU'
        )
    before = cfg.optim_wrapper.get('accumulative_counts', 1)
    if counts == before:
        return {}
    options = {'optim_wrapper.accumulative_counts': counts}
    for index, hook in enumerate(cfg.custom_hooks):
        key = STEP_INTERVALS.get(hook.type)
        if key:
            options[f'custom_hooks.{index}.{key}'] = hook.get(key, 1) * counts // before
    return options


def resume_options(job: Job) -> list[str]:
    """``--resume``: from the latest checkpoint, or from nothing if there is none.

    A training that was stopped between its last checkpoint and its last test has nothing left to train, and would never
    be tested. It goes on from the checkpoint before.

    Raises:
        ValueError: If what lies in the folder is another training, or has no checkpoint before the last.
    """
    run, planned = read_run(job.folder, METRICS[job.stage][0]), planned_steps(job.cfg)[0]
    if run.planned and (other := {'schedule', 'model'}.intersection(other_settings(run, job.cfg))):
        raise ValueError(
            f'the training of {job.name} was started with another {" and ".join(sorted(other))}; give another '
            f"--work-dir, or remove '{job.folder}'"
        )
    last = run.checkpoint(planned)
    if not last.exists() or job.is_finished():
        return ['--resume']
    for steps in range(planned - 1, 0, -1):
        if (checkpoint := run.checkpoint(steps)).exists():
            return ['--resume', str(checkpoint)]
    raise ValueError(f"the training of {job.name} was stopped before its last test; to train again, remove '{last}'")


def make_job(args: argparse.Namespace, stage: str, name: str, seed: int, needs: Job | None, index: int) -> Job:
    """The training of a recipe with a seed."""
    path, cfg = recipe_path(stage, name), recipe(stage, name)
    words = [*args.cfg_options, *(args.cls_options if stage == 'cls' else args.seg_options)]
    options = parse_settings(words)
    check_option_names(cfg, options)
    cfg.merge_from_dict(options)
    gpus = args.gpus if stage == 'cls' else args.seg_gpus or min(args.gpus, SEG_GPUS)
    computed: dict[str, object] = {'randomness.seed': seed, **batch_options(cfg, gpus, options)}
    if needs:
        computed['model.backbone.init_cfg.checkpoint'] = needs.folder / f'epoch_{planned_steps(needs.cfg)[0]}.pth'
    folder = run_folder(args.work_dir, stage, name, seed)

    def is_finished() -> bool:
        return max(read_run(folder, METRICS[stage][0]).tested, default=0) >= planned_steps(cfg)[0]

    variables: dict[str, str] = {}
    if args.launcher == 'slurm':
        launch = [_short('tools/slurm_train.sh'), args.partition, f'{stage}-{name}-{seed}', _short(path)]
        # Jobs on one machine must not meet at one port.
        variables = dict(GPUS=str(gpus), PORT=str(int(os.environ.get('PORT', 29500)) + index))
    else:
        launch = [_short('tools/dist_train.sh'), _short(path), str(gpus)]
    job = Job(f'{stage}/{name} seed {seed}', [], folder, is_finished, variables, needs, stage=stage, cfg=cfg)
    job.command = [
        *launch,
        *('--work-dir', str(folder)),
        *resume_options(job),
        *(['--amp'] if args.amp and stage == 'cls' else []),
        *('--cfg-options', *words, *(f'{key}={value}' for key, value in computed.items())),
    ]
    return job


def _short(path: str | Path) -> str:
    """A file of the project, relative to the current folder if it lies below."""
    path = ROOT / path
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def plan(args: argparse.Namespace) -> list[Job]:
    """All trainings that the options ask for, each once, a pre-training before what needs it.

    Raises:
        ValueError: If an option is wrong.
    """
    rows = {row.name: row for key in args.tables for row in ABLATIONS[key].rows}
    if unknown := set(args.rows or ()) - rows.keys():
        raise ValueError(
            f'no row {sorted(unknown)[0]!r} in the tables {", ".join(args.tables)}; known: {", ".join(rows)}'
        )
    if args.launcher == 'slurm' and not args.partition:
        raise ValueError('--launcher slurm needs a --partition')
    if args.launcher == 'local' and args.jobs != 1:
        raise ValueError('on this machine one training runs at a time, on all of its GPUs; --jobs is for Slurm')
    jobs: dict[tuple[str, str, int], Job] = {}
    for row in rows.values():
        for seed in args.seeds if not args.rows or row.name in args.rows else ():
            needs = None
            for stage in row.paper:
                key = (stage, trained_as(stage, row.name), seed)
                if key not in jobs:
                    jobs[key] = make_job(args, *key, needs, len(jobs))
                needs = jobs[key]
    return list(jobs.values())


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        jobs = plan(args)
        left = [job for job in jobs if not job.is_finished()]
        if not args.dry_run and args.launcher == 'local':  # Slurm's machines may see other disks
            for job in left:
                check_data(job.cfg, ['train_dataloader', 'val_dataloader'])
    if args.dry_run:
        for job in left:
            print(job.shell())
        return
    try:
        failed = run_trainings(left, args.jobs)
    except KeyboardInterrupt:
        print('stopped; the same command goes on', file=sys.stderr)
        sys.exit(130)
    print(f'{len(left) - len(failed)} trained, {len(jobs) - len(left)} finished before, {len(failed)} failed')
    for name, reason in failed.items():
        print(f'  {name}: {reason}')
    if failed:
        sys.exit(1)


if __name__ == '__main__':
    main()
