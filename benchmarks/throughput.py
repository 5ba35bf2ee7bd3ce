"""Inference throughput (Table 8 of the paper) of PeLK-T and its peers, all taking turns, in every setting.

python -m benchmarks.throughput --quick                      # float32, eager, batch 1 and 8: for the report
python -m benchmarks.throughput --plot throughput.png        # everything that a CPU can do
python -m benchmarks.throughput --device cuda --resume       # goes on where a stopped run was

Deployed models with their classifier on random images, in eval mode and without gradients. All models of a setting take
turns, so that a drifting clock meets all alike. Each is measured in two memory layouts, of which the faster one counts.
A model that fails, for memory or in the compiler, is a row with the reason.
"""

import argparse
import copy
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter
from torch import Tensor, nn

from benchmarks.timing import interleaved_medians, peak_memory
from mmpelk import __version__
from mmpelk.analysis.inference import InferenceForm, build_model
from mmpelk.analysis.machine import environment_info
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error, read_config
from mmpelk.models.pelk import PeLKStage
from mmpelk.ops import force_backend

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {
    'PeLK-T': 'pelk_t_in1k.py',
    'PeLK-101-T': 'ablations/table7_101_224.py',
    'SLaK-T': 'slak_t_in1k.py',
    'RepLK-51-T': 'replk_51_t_in1k.py',
    'ConvNeXt-T': 'convnext_t_in1k.py',
}
DENSE = ', dense kernels'  # as the paper computes the first model
# ``tf32`` is float32 whose matrix products and convolutions may round their factors to 10 bits, on NVIDIA GPUs only.
PRECISIONS = ('float32', 'tf32', 'bfloat16')
# Of the image, the weights and the maps between the blocks.
LAYOUTS = {'channels_first': torch.contiguous_format, 'channels_last': torch.channels_last}
PRECISIONS_OF = {'cpu': ['float32', 'bfloat16'], 'cuda': list(PRECISIONS)}
BATCHES_OF = {'cpu': [1, 8], 'cuda': [1, 8, 32, 64, 128]}
ROUNDS_OF = {'cpu': 5, 'cuda': 20}
# One per model, by position: each of the three alone tells the curves apart.
STYLES = [
    dict(color='tab:red', linestyle='-', marker='o'),
    dict(color='0.0', linestyle='--', marker='s'),
    dict(color='0.35', linestyle='-', marker='^'),
    dict(color='0.35', linestyle=':', marker='D'),
    dict(color='0.0', linestyle='-.', marker='x'),
    dict(color='tab:red', linestyle=':', marker='v'),
]


@dataclass(frozen=True)
class Setting:
    """What all models of a run have in common; with ``bfloat16`` weights and image are cast before the clock runs."""

    precision: str = 'float32'
    compiled: bool = False
    batch: int = 1
    size: int = 224

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f'unknown precision {self.precision!r}; known: {", ".join(PRECISIONS)}')
        if self.batch < 1 or self.size < 1:
            raise ValueError(f'batch and size are positive, got a batch of {self.batch} and a size of {self.size}')

    def __str__(self) -> str:
        mode = 'compiled' if self.compiled else 'eager'
        return f'{self.precision}, {mode}, {self.batch} x {self.size} x {self.size}'

    def order(self) -> tuple[int, int, bool, int]:
        """Key of the settings' order in the file."""
        return self.size, PRECISIONS.index(self.precision), self.compiled, self.batch


#: All models in one setting, as the file has it: ``setting``, ``device``, ``machine``, ``rounds``, and ``rows`` of a
#: ``model`` and its ``measurements``, one per layout: ``images_per_second``, ``peak_memory`` in bytes beyond weights
#: and image (on CUDA alone), and why it failed, each of which can be ``None``.
Run = dict[str, Any]


def best_speed(row: Mapping[str, Any]) -> float | None:
    """Images per second in the faster layout, which is the one that counts; ``None`` if both failed."""
    return max((one['images_per_second'] or 0.0 for one in row['measurements']), default=0.0) or None


def library_info(device: str) -> dict[str, Any]:
    """Machine and versions of a run."""
    return environment_info(device) | {'mmpelk': __version__, 'cudnn': torch.backends.cudnn.version()}


@contextmanager
def precision_flags(precision: str) -> Iterator[None]:
    """Set what torch decides globally about precision and algorithms, and set it back afterwards.

    TF32 is on for ``'tf32'`` and off otherwise, for matrix products and cuDNN's convolutions alike: torch's own
    default, off for the one and on for the other, is neither float32 nor TF32. cuDNN tries its algorithms on the
    first call and keeps the fastest, which is to the benefit of the peers.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = precision == 'tf32'
        cudnn.benchmark = True
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def in_layout(model: nn.Module, layout: str) -> nn.Module:
    """A copy of a model in eval mode whose blocks pass maps in one memory layout.

    The layer norms of the backbone leave channels last, which then holds for a whole stage. For ``channels_first`` the
    map is copied to that layout before each stage, where the authors' code of ConvNeXt, RepLKNet and SLaK has it too.
    """
    model = copy.deepcopy(model).eval().to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    if layout == 'channels_first':
        for module in model.modules():
            if isinstance(module, PeLKStage):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return model


class Call:
    """A forward that keeps its failure instead of raising it: the others go on."""

    def __init__(self, model: nn.Module, backend: str | None, layout: str, setting: Setting, image: Tensor) -> None:
        self.function: Callable[[Tensor], Any] = model
        self.backend, self.layout = backend, layout
        self.image = image.to(memory_format=LAYOUTS[layout])
        self.failure: str | None = None
        with self._failures_kept():
            self.function = in_layout(model, layout).to(image.device, image.dtype)
            if setting.compiled:
                self.function = _compiled(self.function)
        # Compile, load libraries, let cuDNN choose. A CPU without a compiler has no use for the whole batch.
        self(self.image if setting.compiled or image.is_cuda else self.image[:1])

    def __call__(self, image: Tensor | None = None) -> None:
        if self.failure is None:
            with self._failures_kept(), torch.inference_mode(), force_backend(self.backend):
                self.function(self.image if image is None else image)

    @contextmanager
    def _failures_kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any error of a model, the allocator or a compiler is a result here
            first_line = (str(error).strip().splitlines() or [''])[0][:200]
            self.failure = f'{type(error).__name__}: {first_line}'.removesuffix(': ')


_numbers = itertools.count()


def _compiled(model: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def call(image: Tensor) -> Any:
        return model(image)

    # torch.compile keeps its graphs by code object, looks through all of them at every call, and gives up after eight.
    # With a code object of its own a model does not wait for those of the others.
    call.__code__ = call.__code__.replace(co_name=f'model_{next(_numbers)}')
    return torch.compile(call, fullgraph=True, dynamic=False)


def measure_throughput(
    models: Mapping[str, tuple[nn.Module, str | None]],
    setting: Setting,
    device: str = 'cpu',
    rounds: int = 5,
    layouts: Sequence[str] = tuple(LAYOUTS),
) -> Run:
    """Images per second of every model, on random images.

    Args:
        models: Deployed models, and the backend that each is forced to or ``None``, by name. Ratios refer to the first.
        setting: Precision, compilation, batch and size.
        device: ``'cpu'`` or ``'cuda'``.
        rounds: How often each runs after the warm-up, at least.
        layouts: Names of :data:`LAYOUTS`.
    """
    dtype = torch.bfloat16 if setting.precision == 'bfloat16' else torch.float32
    with precision_flags(setting.precision):
        where = library_info(device)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(setting.batch, 3, setting.size, setting.size, generator=generator).to(device, dtype)
        if setting.compiled:
            torch.compiler.reset()  # the graphs of the settings before
        calls = {
            name: [Call(model, backend, layout, setting, image) for layout in layouts]
            for name, (model, backend) in models.items()
        }
        functions = {f'{name} {call.layout}': call for name in calls for call in calls[name]}
        seconds = interleaved_medians(functions, device, rounds)
        rows = []
        for name in calls:
            measured = []
            for call in calls[name]:
                speed = None if call.failure else setting.batch / seconds[f'{name} {call.layout}']
                memory = peak_memory(call, device) if device == 'cuda' and speed else None
                one = dict(layout=call.layout, images_per_second=speed, peak_memory=memory, failure=call.failure)
                measured.append(one)
            rows.append(dict(model=name, measurements=measured))
    return dict(setting=asdict(setting), device=device, machine=where, rounds=rounds, rows=rows)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='%(default)s')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images; 224 by default')
    batch = '1 8 on a CPU, 1 8 32 64 128 on a GPU by default'
    parser.add_argument('--batch', type=int, nargs='+', metavar='N', help=batch)
    parser.add_argument('--precision', nargs='+', choices=PRECISIONS, help='all that the device knows by default')
    modes = ['eager', 'compiled']
    parser.add_argument('--mode', nargs='+', choices=modes, default=modes, help='both by default')
    rounds = f'calls per model at least; {ROUNDS_OF["cpu"]} on a CPU, {ROUNDS_OF["cuda"]} on a GPU'
    parser.add_argument('--rounds', type=int, help=rounds)
    models = f'some of {", ".join(RECIPES)}, or recipes of classifiers; ratios refer to the first'
    parser.add_argument('--models', nargs='+', metavar='NAME[=CONFIG]', help=models)
    parser.add_argument('--no-dense-kernels', action='store_true', help='leave out the row of the dense backend')
    parser.add_argument('--quick', action='store_true', help='float32, eager, batch 1 and 8: about two minutes')
    parser.add_argument('--resume', action='store_true', help='skip what the file has from this machine and versions')
    out = 'JSON, in which the measured settings replace their earlier figures; by default '
    out += 'benchmarks/results/throughput_DEVICE.json, and with --models nothing'
    parser.add_argument('--out', type=Path, help=out)
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw throughput against batch')
    args = parser.parse_args()
    if args.out is None and args.models is None:
        args.out = ROOT / 'benchmarks' / 'results' / f'throughput_{args.device}.json'
    return args


def settings(args: argparse.Namespace) -> list[Setting]:
    """All combinations that the options ask for."""
    if args.quick:
        args.precision, args.mode, args.batch = ['float32'], ['eager'], args.batch or [1, 8]
    precisions = args.precision or PRECISIONS_OF[args.device]
    if unknown := set(precisions) - set(PRECISIONS_OF[args.device]):
        raise ValueError(f'{args.device} has no {", ".join(unknown)}; take {", ".join(PRECISIONS_OF[args.device])}')
    batches = args.batch or BATCHES_OF[args.device]
    return [
        Setting(precision, mode == 'compiled', batch, args.size)
        for mode, precision, batch in itertools.product(args.mode, precisions, batches)
    ]


def recipes(args: argparse.Namespace) -> Iterator[tuple[str, str, str | None]]:
    """Name, config and forced backend of each network."""
    for index, text in enumerate(args.models or RECIPES):
        name, _, config = text.partition('=')
        if not config and name not in RECIPES:
            raise ValueError(f"unknown model '{name}'; known: {', '.join(RECIPES)}; of others give NAME=CONFIG")
        config = config or str(ROOT / 'configs' / 'cls' / RECIPES[name])
        yield name, config, None
        if index == 0 and not args.no_dense_kernels:
            yield name + DENSE, config, 'dense'


def build(config: str) -> nn.Module:
    """A recipe's classifier up to the logits, deployed, with random weights."""
    model: Any = build_model(read_config(config)).eval()
    if hasattr(model.backbone, 'switch_to_deploy'):
        model.backbone.switch_to_deploy()
    return InferenceForm(model)


def load_runs(path: Path) -> dict[Setting, Run]:
    """The runs of a results file; none if there is no file.

    Raises:
        ValueError: If the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        return {Setting(**run['setting']): run for run in json.loads(path.read_text(encoding='utf-8'))['runs']}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' does not hold throughput results ({type(error).__name__}: {error}); "
            'name another file, or remove this one'
        ) from error


def save_runs(path: Path, runs: Mapping[Setting, Run]) -> None:
    """Write runs as JSON, ``{"runs": [...]}``, in the order of their settings.

    The file is replaced in one step: a reader finds the old runs or the new ones, also if the process is stopped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    ordered = [runs[setting] for setting in sorted(runs, key=Setting.order)]
    part.write_text(json.dumps({'runs': ordered}, indent=1) + '\n', encoding='utf-8')
    os.replace(part, path)


def is_current(run: Run, device: str, models: Sequence[str], rounds: int) -> bool:
    """Whether a run of the same setting has the same models, machine and versions, and as many rounds."""
    here = library_info(device)
    identity = ('device', 'threads', 'torch', 'python', 'mmpelk', 'cudnn')
    return (
        run['device'] == device
        and run['rounds'] >= rounds
        and [row['model'] for row in run['rows']] == list(models)
        and all(run['machine'].get(key) == here[key] for key in identity)
    )


def measure(args: argparse.Namespace) -> dict[Setting, Run]:
    """Measure what the options ask for, writing after every setting; returns all runs of the file, or the new ones."""
    rounds = args.rounds or ROUNDS_OF[args.device]
    runs = load_runs(args.out) if args.out else {}
    networks = list(recipes(args))
    names = [name for name, _, _ in networks]
    wanted = settings(args)
    models: dict[str, tuple[nn.Module, str | None]] = {}
    for number, setting in enumerate(wanted, 1):
        stored = runs.get(setting) if args.resume else None
        if stored and is_current(stored, args.device, names, rounds):
            print(f'[{number}/{len(wanted)}] {setting}: in the file already')
            continue
        models = models or {name: (build(config), backend) for name, config, backend in networks}
        print(f'[{number}/{len(wanted)}] {setting} ...', flush=True)
        runs[setting] = measure_throughput(models, setting, args.device, rounds)
        if args.out:
            save_runs(args.out, runs)
        run_table(runs[setting]).print()
    return runs


def run_table(run: Run) -> Table:
    """One setting: images per second in every layout, and ratios to the first model."""
    rows = run['rows']
    layouts = [one['layout'].replace('_', ' ') for one in rows[0]['measurements']]
    columns = ['model', *layouts, f'to {rows[0]["model"]}', 'peak MB', 'failure']
    notes = [f'{_where(run)}, {run["machine"]["date"]}, median of {run["rounds"]} rounds or more']
    table = Table(columns, title=f'Images per second: {Setting(**run["setting"])}', notes=notes)
    first = best_speed(rows[0])
    for row in rows:
        measured, best = row['measurements'], best_speed(row)
        memory = [one['peak_memory'] for one in measured if one['images_per_second'] == best]
        table.add(
            row['model'],
            *(f'{one["images_per_second"]:.4g}' if one['images_per_second'] else 'failed' for one in measured),
            f'{best / first:.3f}' if best and first else '-',
            f'{memory[0] / 2**20:.0f}' if memory and memory[0] is not None else '-',
            '; '.join(dict.fromkeys(one['failure'] for one in measured if one['failure'])),
        )
    return table


def _where(run: Run) -> str:
    at = run['machine']
    threads = f', threads: {at["threads"]}' if run['device'] == 'cpu' else ''
    return f'{at["device"]}{threads}, torch {at["torch"]}'


def draw(runs: Mapping[Setting, Run]) -> Figure:
    """Throughput against batch, a row of panels per mode, a column per precision.

    Args:
        runs: Of one image size.
    """
    modes = sorted({setting.compiled for setting in runs})
    precisions = sorted({setting.precision for setting in runs}, key=PRECISIONS.index)
    names = list(dict.fromkeys(row['model'] for run in runs.values() for row in run['rows']))
    batches = sorted({setting.batch for setting in runs})
    figure = Figure(figsize=(4.6 * len(precisions) + 2.2, 3.9 * len(modes) + 0.6), layout='constrained')
    grid = figure.subplots(len(modes), len(precisions), squeeze=False, sharey=True)
    for mode, line in zip(modes, grid, strict=True):
        for precision, axes in zip(precisions, line, strict=True):
            shown = {one.batch: runs[one] for one in runs if (one.precision, one.compiled) == (precision, mode)}
            _draw_panel(axes, dict(sorted(shown.items())), names, batches)
            axes.set_title(f'{precision}, {"compiled" if mode else "eager"}')
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside right center')
    where, side = ' and '.join(dict.fromkeys(map(_where, runs.values()))), next(iter(runs)).size
    figure.suptitle(f'Inference throughput at {side} x {side}, the faster of two memory layouts\n{where}', fontsize=10)
    return figure


def _draw_panel(axes: Axes, runs: Mapping[int, Run], names: Sequence[str], batches: Sequence[int]) -> None:
    for name, style in zip(names, itertools.cycle(STYLES)):
        found = [(batch, row) for batch, run in runs.items() for row in run['rows'] if row['model'] == name]
        speeds = {batch: speed for batch, row in found if (speed := best_speed(row))}
        axes.plot(list(speeds), list(speeds.values()), label=name, markersize=5, **style)  # type: ignore[arg-type]
    axes.set(xlabel='batch, images', ylabel='throughput, images/s', xscale='log', yscale='log')
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlim(batches[0] / 1.2, batches[-1] * 1.2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise ValueError('torch sees no GPU here; measure with --device cpu')
        runs = measure(args)
        if args.out:
            print(f'results are in {args.out}')
        if args.plot:
            args.plot.parent.mkdir(parents=True, exist_ok=True)
            draw({setting: run for setting, run in runs.items() if setting.size == args.size}).savefig(
                args.plot, dpi=110
            )
            print(f'figure: {args.plot}')


if __name__ == '__main__':
    main()
