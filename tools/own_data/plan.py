"""Crop, batch, length and learning rate of a training, from the data and the machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpelk.config import get_config
from mmpelk.errors import UserError

from .dataset import DataSet, spread
from .machine import Machine

# GB that a megapixel takes in training, and GB of weights, gradients, optimizer and CUDA. The first are the activations
# that PeLK-T's recipes save in float32, counted on the CPU by torch.autograd.graph.saved_tensors_hooks (5.7 with
# UperNet, 3.2 without a detector's region heads, 3.0 with a classifier); mixed precision takes less. Not measured on a
# GPU: the training itself says after 50 iterations how much memory it takes.
_PER_MEGAPIXEL = {'seg': 5.8, 'det': 4.5, 'cls': 3.0}
_FIXED = 2.5
_LARGEST_BATCH = {'seg': 16, 'det': 16, 'cls': 128}
# Recipe of every task, and the one whose backbone starts from ConvNeXt's weights.
_RECIPES = {
    'seg': 'seg/upernet_pelk_t_ade20k.py',
    'det': 'det/mask_rcnn_pelk_t_coco_1x.py',
    'cls': 'cls/pelk_t_in1k.py',
}
_PUBLIC = 'seg/upernet_pelk_convnext_t_ade20k.py'  # names the address of those weights
# Pictures that a training sees, as iterations of its batch: on a CPU a look at the whole, on a GPU a training.
_CPU_ITERATIONS = 300
_GPU_ITERATIONS = (3000, 80000)
_VALIDATIONS = {'seg': 10, 'det': 5, 'cls': 10}  # of a training, at most
_GPU_EPOCHS = {'seg': 120, 'det': 24, 'cls': 100}


@dataclass(frozen=True)
class Plan:
    """What the config says beyond the data.

    Attributes:
        recipe: The recipe to inherit.
        nano: A network that a CPU trains in minutes stands in for PeLK-T.
        weights: File or URL of ConvNeXt's weights to start from, or ``None``: from scratch.
        size: Width and height that training sees: the crop, the longest and shortest side, or the input.
        resized: Short side that pictures are resized to before the crop.
        batch_size: Pictures of one process.
        workers: Processes that load data.
        iterations: Length.
        epochs: The same in epochs.
        lr: Learning rate for ``batch_size``.
        val_interval: Of the validation; iterations in segmentation, else epochs.
        backbone: Its arguments that the weights decide.
        widths: Channels of its stages.
    """

    recipe: str
    nano: bool
    weights: str | None
    size: tuple[int, int]
    resized: int
    batch_size: int
    workers: int
    iterations: int
    epochs: int
    lr: float
    val_interval: int
    backbone: dict[str, Any] = field(default_factory=dict)
    widths: tuple[int, ...] = ()

    def summary(self, machine: Machine) -> str:
        """One sentence about the training, for the terminal."""
        network = 'a nano PeLK' if self.nano else 'PeLK-T'
        if self.weights:
            network = f"{self.backbone['arch']} with PeLK's kernels"
        start = 'from scratch, without weights' if self.weights is None else f'from {self.weights}'
        return (
            f'{network} {start}, {self.size[0]}x{self.size[1]}, {self.iterations} iterations of {self.batch_size} '
            f'images, for {machine.name}'
        )


def make_plan(
    data: DataSet, machine: Machine, weights: str = 'none', size: str | None = None, batch_size: int | None = None
) -> Plan:
    """Fit a training to data and machine.

    Args:
        data: The data set.
        machine: The machine.
        weights: ``'none'``; ``'public'``, ConvNeXt-T's, downloaded when the training starts; or a file of them.
        size: ``'nano'`` or ``'tiny'``; by default the first on a CPU without weights.
        batch_size: Pictures of one process, instead of what fits.

    Raises:
        UserError: If there is no such file, or weights are wanted for a network that they do not fit.
    """
    source = None
    if weights == 'public':
        source = get_config(_PUBLIC).model.backbone.init_cfg.checkpoint
    elif weights != 'none':
        if '://' not in weights and not Path(weights).is_file():
            raise UserError(f"there are no weights '{weights}'; --weights takes a file, a URL, 'public' or 'none'")
        source = weights if '://' in weights else str(Path(weights).resolve())
    backbone, widths, larger = _form(source) if source else ({}, (), 1.0)
    nano = size == 'nano' or (size is None and not machine.gpu_memory and source is None)
    if nano and source:
        raise UserError('the weights are those of a ConvNeXt: give --size tiny, or no --weights')
    shape, resized = _fit_size(data, bool(machine.gpu_memory), nano)
    area = shape[0] * shape[1] / 1e6
    largest = _LARGEST_BATCH[data.task] if machine.gpu_memory else 32 if data.task == 'cls' else 4
    largest = min(largest, max(2, len(data.splits['train'])))
    if machine.gpu_memory:
        fitted = machine.batch_size(larger * area * _PER_MEGAPIXEL[data.task], larger * _FIXED, largest)
    else:
        fitted = largest
    batch = batch_size or fitted
    steps = max(1, len(data.splits['train']) // batch)  # of an epoch
    wanted = _CPU_ITERATIONS
    if machine.gpu_memory:
        wanted = min(max(_GPU_EPOCHS[data.task] * steps, _GPU_ITERATIONS[0]), _GPU_ITERATIONS[1])
    recipe = _RECIPES[data.task]
    if source and data.task != 'det':
        recipe = recipe.replace('pelk_t', 'pelk_convnext_t')
    epochs = max(1, round(wanted / steps))
    if data.task != 'seg':  # whole epochs
        wanted = epochs * steps
    rate = _learning_rate(data.task, batch, nano, source is not None)
    count = _fit_validation(data, wanted * batch * area, resized, shape)
    interval = max(1, (wanted if data.task == 'seg' else epochs) // count)
    rate = float(f'{rate:.2g}')
    return Plan(
        recipe, nano, source, shape, resized, batch, machine.workers, wanted, epochs, rate, interval, backbone, widths
    )


def _form(source: str) -> tuple[dict[str, Any], tuple[int, ...], float]:
    """The backbone's arguments and widths for weights, and how many times ConvNeXt-T's memory it takes, at least once.

    What is downloaded when the training starts is taken to be ConvNeXt-T's.
    """
    from mmpelk.fault_tolerance.safe_loading import read_checkpoint
    from mmpelk.models import ARCHITECTURES
    from mmpelk.models.weights.checkpoint import state_dict_of
    from mmpelk.models.weights.identify import Reading

    sizes = {name: arch for name, arch in ARCHITECTURES.items() if name.startswith('convnext-')}
    tiny = sizes['convnext-tiny']
    if '://' in source:
        return dict(arch='convnext-tiny'), tuple(tiny['channels']), 1.0
    reading = Reading(state_dict_of(read_checkpoint(source), source), f"'{source}'")
    layout = reading.layout
    names = [name for name, arch in sizes.items() if (arch['depths'], arch['channels']) == layout[:2]]
    if not names:
        raise UserError(f'{reading.name} is {reading}: --weights takes {", ".join(sizes)}')
    backbone: dict[str, Any] = dict(arch=names[0])
    if layout.use_grn:
        backbone['use_grn'] = True
    if not layout.layer_scale:
        backbone['layer_scale_init_value'] = 0
    own, usual = (
        sum(depth * width / 4**stage for stage, (depth, width) in enumerate(zip(*each, strict=True)))
        for each in (layout[:2], (tiny['depths'], tiny['channels']))
    )
    return backbone, layout.channels, max(1.0, own / usual)


def _fit_validation(data: DataSet, trained: float, resized: int, shape: tuple[int, int]) -> int:
    """How often to validate, so that it takes a quarter of the run at most.

    Where even two validations would take longer, they see a part of the pictures, and the test at the end all.

    Args:
        data: The data set; its splits may change.
        trained: Megapixels of the whole training.
        resized: Short side of a picture at validation.
        shape: Width and height that training sees.
    """
    short, long = sorted(data.median_size)
    area = resized * resized * long / short / 1e6 if data.task == 'seg' else shape[0] * shape[1] / 1e6
    # A forward pass takes a third of a training step; windows that overlap by a third see a pixel 2.25 times.
    each = area / 3 * (2.25 if data.task == 'seg' and long * resized / short > shape[0] else 1.0)
    pictures = data.splits['val']
    allowed = trained / 3 / max(each, 1e-9)  # pictures in all validations
    if 2 * len(pictures) > allowed:
        kept = max(1, int(allowed / 2))
        if kept < len(pictures):
            data.validate_on(spread(pictures, kept))
            data.note(
                'decision',
                f'validations during the training see {kept} of {len(pictures)} pictures, to take a quarter of '
                'its time; tools/test.py sees ' + ('the test split' if 'test' in data.splits else 'all'),
            )
            pictures = data.splits['val']
    return min(_VALIDATIONS[data.task], max(2, int(allowed / len(pictures))))


def _fit_size(data: DataSet, gpu: bool, nano: bool) -> tuple[tuple[int, int], int]:
    """What training sees, and the short side that pictures are resized to."""
    short, long = sorted(data.median_size)
    if data.task == 'cls':
        side = next((side for side in (32, 64, 128) if short <= 1.25 * side), 224)
        side = min(side, 128) if nano else max(side, 64)
        return (side, side), side
    if data.task == 'det':
        resized = min(_multiple(short), 800 if gpu else 256)
        return (min(_multiple(long * resized / short), 1333 if gpu else 448), resized), resized
    # A crop of half the picture's short side at least, and nothing larger than the recipe's.
    largest = 512 if gpu else 192
    resized = min(_multiple(short), 2 * largest if gpu else largest)
    crop = min(largest, resized)
    return (crop, crop), resized


def _multiple(value: float, of: int = 32) -> int:
    return max(of, round(value / of) * of)


def _learning_rate(task: str, batch: int, nano: bool, pretrained: bool) -> float:
    """The recipe's at its batch, in proportion to the batch; larger where nothing is pre-trained.

    From scratch, AdamW takes the rates of the demos, whose networks are as small.
    """
    if nano:
        return {'seg': 2e-3 * batch / 4, 'det': 1e-3 * batch / 8, 'cls': 3e-3 * batch / 64}[task]
    if task == 'cls':
        return (5e-5 if pretrained else 5e-4) * batch / 64
    return (1e-4 if pretrained else 4e-4) * batch / 16
