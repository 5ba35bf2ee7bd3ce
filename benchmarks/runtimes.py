"""Exported networks in the runtimes that users deploy with: images per second, and how far from the network.

    make demo
    python -m benchmarks.runtimes --images PICTURES

Writes each network as ONNX of one size and of any size and as a package of AOTInductor, into ``work_dirs/runtimes``
(kept there for the next run), compares onnxruntime and OpenVINO with eager torch on real pictures, and lets all of them
take turns on one image. *Without convolution* is PeLK-T with identities as mixers, exported the same way: the ceiling
that no form of the operator can pass. All but the demo's network have random weights: speed does not depend on them.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from rich.console import Console
from torch import Tensor, nn

from benchmarks.ceiling import without_mixer
from benchmarks.timing import interleaved_medians
from mmpelk.analysis.inference import build_model
from mmpelk.analysis.machine import environment_info
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import build_runner
from mmpelk.export import (
    ExportedNetwork,
    Preprocessing,
    calibration_images,
    compare,
    compile_program,
    export_onnx,
    export_program,
    in_half,
    load_deployed,
    load_program,
    onnx_operators,
    open_onnx,
    quantize_onnx,
    real_image,
    replace_weights,
    runner_of,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'runtimes.json'
FILES = Path('work_dirs/runtimes')  # exported networks
DEMO, DEMO_DATA = Path('work_dirs/demo_segmentation/iter_700.pth'), Path('data/demo_segmentation')  # of `make demo`
THREADS, ROUNDS = 2, 7
SIZES = [(224, 224), (333, 500)]  # that files of any size are compared at, besides their own
HALF, INT8 = 'onnxruntime, float16', 'onnxruntime, INT8'
Run = Callable[[np.ndarray], Sequence[np.ndarray]]
Pictures = Sequence[Path | None]  # None: the photograph of the export tools


# Supported by TensorRT 10.15, says docs/operators.md of github.com/onnx/onnx-tensorrt, and possible in exported files.
SUPPORTED = """
    Add And ArgMax AveragePool Cast CastLike Clip Concat Constant ConstantOfShape Conv Cos DequantizeLinear Div
    Equal Erf Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool Greater GreaterOrEqual Identity
    LayerNormalization Less MatMul MaxPool Mod Mul Neg Pad Pow QuantizeLinear Range Reciprocal ReduceMean ReduceSum
    Relu Reshape Resize Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze Where
"""
TENSORRT = frozenset(SUPPORTED.split())


@dataclass(frozen=True)
class Subject:
    """A network of the benchmark."""

    name: str
    recipe: str
    size: tuple[int, int]
    part: str = ''  # 'backbone' alone, or with identities as mixers


SUBJECTS = {
    'ceiling': Subject('PeLK-T without convolution', 'cls/pelk_t_in1k', (224, 224), 'without convolution'),
    'backbone': Subject('PeLK-T, backbone', 'cls/pelk_t_in1k', (224, 224), 'backbone'),
    'classifier': Subject('PeLK-T, classifier', 'cls/pelk_t_in1k', (224, 224)),
    'demo': Subject("demo's UperNet PeLK-nano", 'demo/upernet_pelk_nano_synthetic', (128, 128)),
    'detector': Subject(
        'Cascade Mask R-CNN PeLK-T, backbone and neck', 'det/cascade_mask_rcnn_pelk_t_coco', (333, 500)
    ),
    'upernet': Subject('UperNet PeLK-T', 'seg/upernet_pelk_t_ade20k', (512, 512)),
}


def randomise(model: nn.Module) -> None:
    """Give every norm and layer scale a value of a trained network's size: initial ones hide the mixers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # there is no public name
            cast(Tensor, module.running_mean).normal_(std=0.1)
            cast(Tensor, module.running_var).uniform_(0.5, 1.5)
        if isinstance(gamma := getattr(module, 'gamma', None), nn.Parameter) and 'stages' in name:
            nn.init.uniform_(gamma, 0.2, 0.5)


class _Backbone(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(image))


def build(subject: Subject) -> ExportedNetwork:
    """A network as it is exported: the demo's trained, the others with random weights."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{subject.recipe}.py')
    checkpoint = DEMO
    if not subject.recipe.startswith('demo/'):
        cfg.model.backbone.init_cfg = None
        checkpoint = FILES / f'{Path(subject.recipe).name}.pth'
        if not checkpoint.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = build_model(cfg, seed=0)
                randomise(model)
            torch.save(dict(state_dict=model.state_dict()), checkpoint)
    model = load_deployed(cfg, str(checkpoint))
    if not subject.part:
        return ExportedNetwork.of(cfg, model)
    backbone = cast(Any, model).backbone
    backbone = without_mixer(backbone) if subject.part == 'without convolution' else backbone
    return ExportedNetwork(_Backbone(backbone), ('features',), 'detection', Preprocessing.of(cfg), 4)


def run_openvino(path: Path) -> Run:
    """An ONNX file in OpenVINO as a function of one image, in float32."""
    import openvino

    settings = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_NUM_THREADS': THREADS,
        'INFERENCE_PRECISION_HINT': 'f32',
    }
    model = openvino.compile_model(path, 'CPU', settings)
    return lambda image: list(model(image).values())


def run_onnxruntime(path: Path) -> Run:
    """An ONNX file in onnxruntime as a function of one image; its threads do not spin into others' turns."""
    return runner_of(open_onnx(path, THREADS, spin=False))


def files_of(key: str, network: ExportedNetwork, image: Tensor) -> dict[str, Path]:
    """Write what is not there yet: ONNX of one size, of any size, and AOTInductor's package."""
    paths = {name: FILES / f'{key}-{name}' for name in ('fixed.onnx', 'dynamic.onnx', 'compiled.pt2')}
    for name in ('fixed.onnx', 'dynamic.onnx'):
        if not paths[name].exists():
            export_onnx(network, image, paths[name], dynamic=name == 'dynamic.onnx')
    if not paths['compiled.pt2'].exists() and key in ('backbone', 'demo'):  # the others compile for many minutes
        compile_program(export_program(network, image), paths['compiled.pt2'])
    return paths


def parity(
    network: ExportedNetwork, runs: Mapping[str, Run], pictures: Pictures, size: tuple[int, int]
) -> dict[str, dict[str, Any]]:
    """Largest difference and least share of the labels over pictures and sizes, by runtime."""
    rows: dict[str, dict[str, Any]] = {name: dict(difference=0.0, same_labels=1.0, sizes=[]) for name in runs}
    for name, run in runs.items():
        sizes = list(dict.fromkeys([size, *SIZES])) if 'any size' in name else [size]
        for shape in sizes:
            for picture in pictures:
                image = network.preprocessing.of_image(real_image(picture, shape))
                found = compare(run, network, image)
                rows[name]['difference'] = max(rows[name]['difference'], found.difference)
                rows[name]['same_labels'] = min(rows[name]['same_labels'], found.same_labels)
        rows[name].update(sizes=sizes, pictures=len(pictures))
    return rows


def precise_files(key: str, network: ExportedNetwork, pictures: Pictures) -> dict[str, Path]:
    """Files of one size in half precision and in INT8; without a training set, calibrated on the pictures."""
    subject, paths = SUBJECTS[key], {HALF: FILES / f'{key}-half.onnx', INT8: FILES / f'{key}-int8.onnx'}
    if key not in ('demo', 'classifier'):
        return {}
    if not paths[HALF].exists():
        image = network.preprocessing.of_image(real_image(None, subject.size))
        export_onnx(in_half(network), image.half(), paths[HALF])
    if not paths[INT8].exists():
        shown = (real_image(picture, subject.size) for picture in pictures)
        images: Iterable[Tensor] = map(network.preprocessing.of_image, shown)
        if key == 'demo':
            images = calibration_images(demo_config(), 64)
        quantize_onnx(FILES / f'{key}-fixed.onnx', paths[INT8], images)
    return paths


def demo_config() -> Config:
    """The demo's recipe with its data."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{SUBJECTS["demo"].recipe}.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(DEMO_DATA)
    cfg.work_dir = str(FILES / 'test')
    return cfg


def loss(key: str, network: ExportedNetwork, run: Run, path: Path, pictures: Pictures) -> dict[str, Any]:
    """What a precision costs: the difference on pictures, and the demo's mean IoU in percent."""
    worst, same = 0.0, list[float]()
    for picture in pictures:
        image = network.preprocessing.of_image(real_image(picture, SUBJECTS[key].size))
        found = compare(run, network, image.half() if 'half' in path.name else image)
        worst, same = max(worst, found.difference), [*same, found.same_labels]
    row = dict(difference=worst, same_labels=sum(same) / len(same), megabytes=path.stat().st_size / 2**20)
    if key == 'demo':
        row['mean_iou'] = mean_iou(path)
        row['mean_iou_float32'] = mean_iou(FILES / 'demo-fixed.onnx')
    return row


def mean_iou(path: Path) -> float:
    """Of the demo's test set, in percent, computed from a file."""
    runner = build_runner(demo_config())
    replace_weights(runner.model, open_onnx(path, THREADS))
    return float(runner.test()['mIoU'])


def measure(key: str, pictures: Pictures) -> dict[str, Any]:
    """Everything about one network."""
    subject = SUBJECTS[key]
    network = build(subject)
    image = network.preprocessing.of_image(real_image(None, subject.size))
    paths = files_of(key, network, image)
    result: dict[str, Any] = dict(network=subject.name, size=subject.size)
    result['operators'] = {
        form: onnx_operators(paths[name]) for form, name in (('fixed', 'fixed.onnx'), ('dynamic', 'dynamic.onnx'))
    }
    runs: dict[str, Run] = {
        'onnxruntime': run_onnxruntime(paths['fixed.onnx']),
        'onnxruntime, any size': run_onnxruntime(paths['dynamic.onnx']),
        'OpenVINO': run_openvino(paths['fixed.onnx']),
        'OpenVINO, any size': run_openvino(paths['dynamic.onnx']),
    }
    result['parity'] = parity(network, runs, pictures, subject.size)
    for name, path in precise_files(key, network, pictures).items():
        runs[name] = run_onnxruntime(path)
        result.setdefault('precision', {})[name] = loss(key, network, runs[name], path, pictures)
    if paths['compiled.pt2'].exists():
        runs['torch, AOTInductor'] = load_program(paths['compiled.pt2'], compiled=True)
    if key == 'backbone':  # in the same turns, so that the two can be compared
        runs['onnxruntime, without convolution'] = run_onnxruntime(FILES / 'ceiling-fixed.onnx')
    given = image.numpy()
    if HALF in runs:
        runs[HALF] = partial(lambda run, image: run(image.astype(np.float16)), runs[HALF])

    def eager() -> Any:
        with torch.no_grad():
            return network.network(image)

    calls: dict[str, Callable[[], Any]] = {'torch, eager': eager}
    calls |= {name: partial(run, given) for name, run in runs.items()}
    seconds = interleaved_medians(calls, 'cpu', ROUNDS)
    result['images_per_second'] = {name: 1 / value for name, value in seconds.items()}
    return result


def speed_table(networks: Sequence[Mapping[str, Any]]) -> Table:
    """Images per second of every network in every runtime."""
    runtimes = list(dict.fromkeys(name for row in networks for name in row.get('images_per_second', ())))
    table = Table(('one image', *runtimes), title='images per second')
    for row in networks:
        if speeds := row.get('images_per_second'):
            cells = (f'{speeds[name]:.1f}' if name in speeds else '-' for name in runtimes)
            table.add(f'{row["network"]}, {row["size"][0]} x {row["size"][1]}', *cells)
    return table


def parity_table(networks: Sequence[Mapping[str, Any]]) -> Table:
    """How far the files are from the networks: the largest difference by runtime, and the least share of labels."""
    runtimes = list(dict.fromkeys(name for row in networks for name in row.get('parity', ())))
    table = Table(('network', 'sizes', 'pictures', *runtimes, 'same labels'), labels=2)
    for row in networks:
        if parity := row.get('parity', {}):
            every = max((found['sizes'] for found in parity.values()), key=len)
            sizes = ', '.join(f'{height} x {width}' for height, width in every)
            labels = min(found['same_labels'] for found in parity.values())
            table.add(
                row['network'],
                sizes,
                str(max(found['pictures'] for found in parity.values())),
                *(f'{parity[name]["difference"]:.1e}' if name in parity else '-' for name in runtimes),
                '-' if 'backbone' in row['network'] else f'{labels:.3%}',
            )
    return table


def precision_table(networks: Sequence[Mapping[str, Any]]) -> Table:
    """What half precision and INT8 cost."""
    table = Table(('network', 'file', 'MB', 'difference', 'same labels', 'mIoU', 'of float32'), labels=2)
    for row in networks:
        for name, found in row.get('precision', {}).items():
            scores = [f'{found[key]:.2f}' if key in found else '-' for key in ('mean_iou', 'mean_iou_float32')]
            cells = f'{found["megabytes"]:.1f}', f'{found["difference"]:.1e}', f'{found["same_labels"]:.2%}'
            table.add(row['network'], name, *cells, *scores)
    return table


def operators_table(networks: Sequence[Mapping[str, Any]]) -> Table:
    """Which operators each file uses, and which of them TensorRT does not list."""
    table = Table(('network', 'file', 'operators', 'not in TensorRT'), labels=4)
    for row in networks:
        for form, names in row['operators'].items():
            missing = ', '.join(sorted(set(names) - TENSORRT)) or 'none'
            table.add(row['network'], form, ', '.join(names), missing)
    return table


PAGE_TABLES = speed_table, precision_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', choices=[*SUBJECTS, []], help='all by default')
    parser.add_argument('--images', type=Path, nargs='+', default=[], help='pictures to compare on, or folders of them')
    args = parser.parse_args()
    FILES.mkdir(parents=True, exist_ok=True)
    pictures = [path for given in args.images for path in (sorted(given.rglob('*.jpg')) or [given])] or [None]
    torch.set_num_threads(THREADS)
    for key in args.networks or SUBJECTS:
        measured = measure(key, pictures)
        results: dict[str, Any] = (
            json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.exists() else dict(networks={})
        )
        results['networks'].setdefault(key, {}).update(measured)
        versions = {name: version(name) for name in ('onnxruntime', 'openvino')}
        results['machine'] = environment_info('cpu') | versions
        RESULTS.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    console = Console()
    for table in (*PAGE_TABLES, parity_table, operators_table):
        table([results['networks'][key] for key in SUBJECTS if key in results['networks']]).print(console)


if __name__ == '__main__':
    main()
