"""The commands that make the pictures and results of the page, and running them."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from . import ROOT

_FIGURES = 'docs/figures/reproduction'
_DEMO = 'work_dirs/demo_segmentation/iter_700.pth'
_DEMO_7X7 = 'work_dirs/demo_segmentation_7x7/iter_700.pth'
_NANO = 'configs/demo/upernet_pelk_nano_synthetic.py'
_KERNELS_7X7 = '"model.backbone.kernel_sizes=(7,7)"'


@dataclass(frozen=True)
class Step:
    """A command of the report."""

    name: str  # placeholder of the command in the template
    command: str  # as a user types it in the project's folder
    makes: str | None = None  # a file that makes the step superfluous once it is there; ``None`` to run it every time


STEPS = (
    Step('run_demo', 'make demo', _DEMO),
    Step('run_demo_7x7', f'env WORK_DIR={Path(_DEMO_7X7).parent} tools/demo/run_seg.sh {_KERNELS_7X7}', _DEMO_7X7),
    Step(
        'run_grids',
        f'python tools/analysis/plot_kernels.py grid --grid 2 1 2 --kernel-size 31 --center-size 5 '
        f'--out {_FIGURES}/sharing_grids.png',
    ),
    Step(
        'run_kernels',
        f'python tools/analysis/plot_kernels.py kernel {_DEMO} --config {_NANO} --out {_FIGURES}/learnt_kernels.png',
    ),
    Step(
        'run_embedding',
        f'python tools/analysis/plot_kernels.py embedding {_DEMO} --config {_NANO} --map-size 32 32 '
        f'--out {_FIGURES}/positional_embedding.png',
    ),
    Step('run_flops', f'python -m reproduction.shares --out {_FIGURES}/flop_shares.png'),
    Step('run_scaling', f'python -m reproduction.scaling --out {_FIGURES}/model_size.png'),
    Step('run_pictures', 'python tools/demo/make_segmentation_data.py --out data/demo_segmentation'),
    Step(
        'run_erf_random',
        f'python tools/analysis/erf.py --max-images 2 --out {_FIGURES}/erf_random.png '
        '--json benchmarks/results/erf_random.json',
    ),
    Step(
        'run_erf_demo',
        f'python tools/analysis/erf.py --size 128 '
        f'--model "kernels 31 and 29, trained" {_NANO} {_DEMO} '
        f'--model "kernels 31 and 29, untrained" {_NANO} random '
        f'--model "kernels 7, trained" {_NANO} {_DEMO_7X7} {_KERNELS_7X7} '
        f'--model "kernels 7, untrained" {_NANO} random {_KERNELS_7X7} '
        f'--out {_FIGURES}/erf_demo.png --json benchmarks/results/erf_demo.json',
    ),
    Step('run_throughput', f'python -m benchmarks.throughput --quick --plot {_FIGURES}/throughput_cpu.png'),
    Step('run_mixers', f'python -m reproduction.mixers --out {_FIGURES}/mixer_comparison.png'),
)


def run_steps(console: Console, steps: Sequence[Step] = STEPS, folder: Path = ROOT) -> None:
    """Run commands, each with a log of its own; stop at the first that fails, with its exit code.

    Args:
        console: Where to say what runs.
        steps: In order. One whose file is there already is left out.
        folder: Where they run; the logs are in ``work_dirs/report`` there.
    """
    logs = folder / 'work_dirs/report'
    logs.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps, start=1):
        if step.makes and (folder / step.makes).exists():
            continue
        words = shlex.split(step.command)
        if words[0] == 'python':
            words[0] = sys.executable
        console.print(f'{number}/{len(steps)} {step.command}', highlight=False, markup=False, soft_wrap=True)
        begin, log = time.monotonic(), logs / f'{step.name}.log'
        with console.status(f'the log is in {log.relative_to(folder)}'), log.open('w', encoding='utf-8') as output:
            # The launchers take the Python that this runs in.
            environment = os.environ | {'PYTHON': sys.executable}
            done = subprocess.run(words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode:
            console.print(log.read_text(encoding='utf-8')[-2000:], highlight=False, markup=False)
            console.print(f'failed with code {done.returncode}; the whole log is in {log.relative_to(folder)}')
            sys.exit(done.returncode)
        console.print(f'{time.monotonic() - begin:.0f} s', style='dim')
