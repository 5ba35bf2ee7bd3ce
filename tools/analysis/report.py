"""Every table and figure of the paper: run what a CPU can do in minutes, and write docs/reproduction.md.

    python tools/analysis/report.py                 # `make report`
    python tools/analysis/report.py --render-only   # the page alone, from what is computed and stored

The prose is in ``reproduction.template.md`` beside this file; :mod:`sections` makes the tables.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template

import sections
from cells import Runs
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/reproduction.md'
TEMPLATE = Path(__file__).with_name('reproduction.template.md')
RESULTS = ROOT / 'benchmarks/results'
FIGURES = 'docs/figures/reproduction'
LOGS = ROOT / 'work_dirs/report'
DEMO = 'work_dirs/demo_segmentation/iter_700.pth'
DEMO_7X7 = 'work_dirs/demo_segmentation_7x7/iter_700.pth'
NANO = 'configs/demo/upernet_pelk_nano_synthetic.py'
KERNELS_7X7 = '"model.backbone.kernel_sizes=(7,7)"'


@dataclass(frozen=True)
class Step:
    """A command of the report.

    Attributes:
        name: Placeholder of the command in the template.
        command: As a user types it in the project's folder.
        makes: A file that makes the step superfluous once it is there; ``None`` to run it every time.
    """

    name: str
    command: str
    makes: str | None = None


STEPS = (
    Step('run_demo', 'make demo', makes=DEMO),
    Step(
        'run_demo_7x7',
        f'env WORK_DIR={Path(DEMO_7X7).parent} tools/demo/run_seg.sh {KERNELS_7X7}',
        makes=DEMO_7X7,
    ),
    Step(
        'run_grids',
        f'python tools/analysis/plot_kernels.py grid --grid 2 1 2 --kernel-size 31 --center-size 5 '
        f'--out {FIGURES}/sharing_grids.png',
    ),
    Step(
        'run_kernels',
        f'python tools/analysis/plot_kernels.py kernel {DEMO} --config {NANO} --out {FIGURES}/learnt_kernels.png',
    ),
    Step(
        'run_embedding',
        f'python tools/analysis/plot_kernels.py embedding {DEMO} --config {NANO} --map-size 32 32 '
        f'--out {FIGURES}/positional_embedding.png',
    ),
    Step('run_flops', f'python tools/analysis/plot_flops.py --out {FIGURES}/flop_shares.png'),
    Step('run_scaling', f'python tools/analysis/plot_scaling.py --out {FIGURES}/model_size.png'),
    Step('run_pictures', 'python tools/demo/make_segmentation_data.py --out data/demo_segmentation'),
    Step(
        'run_erf_random',
        f'python tools/analysis/erf.py --max-images 2 --out {FIGURES}/erf_random.png '
        '--json benchmarks/results/erf_random.json',
    ),
    Step(
        'run_erf_demo',
        f'python tools/analysis/erf.py --size 128 '
        f'--model "kernels 31 and 29, trained" {NANO} {DEMO} '
        f'--model "kernels 31 and 29, untrained" {NANO} random '
        f'--model "kernels 7, trained" {NANO} {DEMO_7X7} {KERNELS_7X7} '
        f'--model "kernels 7, untrained" {NANO} random {KERNELS_7X7} '
        f'--out {FIGURES}/erf_demo.png --json benchmarks/results/erf_demo.json',
    ),
    Step('run_throughput', f'python tools/analysis/throughput.py --quick --plot {FIGURES}/throughput_cpu.png'),
    Step(
        'run_mixers',
        f'python tools/analysis/plot_mixer_comparison.py --out {FIGURES}/mixer_comparison.png',
    ),
)


def render() -> str:
    """The page, from what can be computed and from the results files."""
    runs = Runs()
    parts: dict[str, Callable[[], str]] = {
        'states': partial(sections.states, RESULTS),
        'grids': sections.grids,
        **{f'table_{key}': partial(sections.ablation, key, RESULTS, runs) for key in ('1', '5', '6', '7')},
        'figure_2': partial(sections.ablation, 'fig2', RESULTS, runs),
        'growth': sections.growth,
        'saved': sections.saved,
        **{f'table_{number}': partial(sections.counts, number, RESULTS, runs) for number in (2, 3, 4)},
        'upernet_head': sections.upernet_head,
        'erf_random': partial(sections.receptive_fields, 'erf_random', RESULTS, runs),
        'erf_demo': partial(sections.receptive_fields, 'erf_demo', RESULTS, runs),
        'figure_5': sections.flops,
        'figure_6': sections.scaling,
        'table_8': partial(sections.speed, RESULTS, runs),
        'mixers': partial(sections.mixers, RESULTS, runs),
    }
    template = TEMPLATE.read_text()
    texts = {step.name: step.command for step in STEPS}
    # In the order of the page, in which the runs are numbered.
    for name in sorted(parts, key=lambda name: template.index(f'${{{name}}}')):
        texts[name] = parts[name]()
    return Template(template).substitute(texts, runs=runs.listing())


def run_steps(console: Console) -> None:
    """Run all commands, each with a log of its own; stop at the first that fails, with its exit code."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(STEPS, start=1):
        if step.makes and (ROOT / step.makes).exists():
            continue
        words = shlex.split(step.command)
        if words[0] == 'python':
            words[0] = sys.executable
        console.print(f'{number}/{len(STEPS)} {step.command}', highlight=False, markup=False, soft_wrap=True)
        begin, log = time.monotonic(), LOGS / f'{step.name}.log'
        with console.status(f'the log is in {log.relative_to(ROOT)}'), log.open('w') as output:
            # The launchers take the Python that this runs in.
            environment = os.environ | {'PYTHON': sys.executable}
            done = subprocess.run(words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode:
            console.print(log.read_text()[-2000:], highlight=False, markup=False)
            console.print(f'failed with code {done.returncode}; the whole log is in {log.relative_to(ROOT)}')
            sys.exit(done.returncode)
        console.print(f'{time.monotonic() - begin:.0f} s', style='dim')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--render-only', action='store_true', help='write the page without running anything')
    args = parser.parse_args()
    console = Console()
    if not args.render_only:
        run_steps(console)
    PAGE.write_text(render())
    console.print(f'written to {PAGE.relative_to(ROOT)}')


if __name__ == '__main__':
    main()
