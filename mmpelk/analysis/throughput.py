"""Inference throughput of several networks in one run: the measurement behind Table 8 of the paper.

All networks of a run take turns (:func:`~mmpelk.analysis.timing.interleaved_medians`), so that a drifting clock or a
busy machine meets all alike. Each is measured in both memory layouts, and the faster one counts: a network is not
slower than its peer because of the layout it happens to be written for.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmpelk import __version__
from mmpelk.models.pelk import PeLKStage
from mmpelk.ops import force_backend

from .timing import environment_info, interleaved_medians, peak_memory

__all__ = [
    'LAYOUTS',
    'PRECISIONS',
    'Candidate',
    'Measurement',
    'Row',
    'Run',
    'Setting',
    'in_layout',
    'library_info',
    'measure_throughput',
    'precision_flags',
]

#: ``tf32`` is float32 whose matrix products and convolutions may round their factors to 10 bits, on NVIDIA GPUs only.
PRECISIONS = ('float32', 'tf32', 'bfloat16')

#: Of the image, the weights and the maps between the blocks.
LAYOUTS = {'channels_first': torch.contiguous_format, 'channels_last': torch.channels_last}


@dataclass(frozen=True)
class Setting:
    """What all networks of a run have in common. Two runs with the same setting measure the same thing.

    Attributes:
        precision: One of :data:`PRECISIONS`. With ``bfloat16`` weights and image are cast once, before the clock runs.
        compiled: ``torch.compile`` with its defaults, the whole network as one graph of fixed shape.
        batch: Images per call.
        size: Height and width of the image in pixels.

    Raises:
        ValueError: If the precision is unknown, or batch or size are not positive.
    """

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


@dataclass(frozen=True)
class Candidate:
    """A network to measure.

    Attributes:
        model: Takes ``(N, 3, size, size)``. It is copied, not changed.
        backend: Backend of the peripheral convolution that it is forced to; ``None`` for the fastest.
    """

    model: nn.Module
    backend: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One network in one layout.

    Attributes:
        layout: One of :data:`LAYOUTS`.
        images_per_second: From the median seconds of a call; ``None`` if it failed.
        peak_memory: Bytes that a call allocates at its peak, beyond weights and image; ``None`` but on CUDA.
        failure: Why there is no figure, in one line.
    """

    layout: str
    images_per_second: float | None
    peak_memory: int | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Row:
    """One network: a measurement per layout."""

    model: str
    measurements: tuple[Measurement, ...]

    @property
    def best(self) -> Measurement:
        """The faster layout, which is the one that counts; the first if all failed."""
        return max(self.measurements, key=lambda one: one.images_per_second or 0.0)

    @property
    def images_per_second(self) -> float | None:
        """In the faster layout; ``None`` if the network failed in all of them."""
        return self.best.images_per_second

    def in_layout(self, layout: str) -> Measurement | None:
        """The measurement in one layout, if there is one."""
        return next((one for one in self.measurements if one.layout == layout), None)


@dataclass(frozen=True)
class Run:
    """All networks in one setting, interleaved.

    Attributes:
        setting: What was measured.
        device: ``'cpu'`` or ``'cuda'``.
        machine: :func:`library_info` of the run.
        rounds: How often every network ran, at least.
        rows: The networks in the order that they were given.
    """

    setting: Setting
    device: str
    machine: dict[str, Any]
    rounds: int
    rows: tuple[Row, ...]

    def row(self, model: str) -> Row:
        """The row of a network.

        Raises:
            ValueError: If the run has no such network.
        """
        for row in self.rows:
            if row.model == model:
                return row
        raise ValueError(f'the run has no {model!r}; it has {", ".join(row.model for row in self.rows)}')

    def ratio(self, model: str, to: str | None = None) -> float | None:
        """Images per second of a network over those of another, the first one by default; ``None`` if either failed."""
        speed, other = (self.row(name).images_per_second for name in (model, to or self.rows[0].model))
        return speed / other if speed and other else None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> 'Run':
        """The run that :func:`dataclasses.asdict` gave the dictionary of, or that was read from JSON."""
        rows = (Row(row['model'], tuple(Measurement(**one) for one in row['measurements'])) for row in data['rows'])
        return cls(Setting(**data['setting']), data['device'], dict(data['machine']), data['rounds'], tuple(rows))


def library_info(device: str) -> dict[str, Any]:
    """:func:`~mmpelk.analysis.timing.environment_info`, with the versions of this package and of cuDNN."""
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

    Args:
        model: Any model; only the stages of a :class:`~mmpelk.models.PeLK` get the copy.
        layout: One of :data:`LAYOUTS`.
    """
    model = copy.deepcopy(model).eval().to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    if layout == 'channels_first':
        for module in model.modules():
            if isinstance(module, PeLKStage):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return model


class _Call:
    """A forward that keeps its failure instead of raising it: the others go on."""

    def __init__(self, model: Callable[[Tensor], Any], image: Tensor, backend: str | None) -> None:
        self.model, self.image, self.backend = model, image, backend
        self.failure: str | None = None

    def __call__(self, image: Tensor | None = None) -> None:
        if self.failure is not None:
            return
        try:
            with torch.inference_mode(), force_backend(self.backend):
                self.model(self.image if image is None else image)
        except Exception as error:  # whatever a model, the allocator or a compiler raises is a result here
            self.failure = _one_line(error)

    def warm_up(self, compiled: bool) -> None:
        """Compile, load libraries, let cuDNN choose. A CPU without a compiler has no use for the whole batch."""
        self(self.image if compiled or self.image.is_cuda else self.image[:1])


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    return f'{type(error).__name__}: {text.splitlines()[0][:200]}' if text else type(error).__name__


def _compiled(model: nn.Module, number: int) -> Callable[[Tensor], Any]:
    def call(image: Tensor) -> Any:
        return model(image)

    # torch.compile keeps its graphs by code object, looks through all of them at every call, and gives up after eight.
    # With a code object of its own a model does not wait for those of the others.
    call.__code__ = call.__code__.replace(co_name=f'model_{number}')
    return torch.compile(call, fullgraph=True, dynamic=False)


def _prepare(candidate: Candidate, layout: str, setting: Setting, image: Tensor, number: int) -> _Call:
    image = image.to(memory_format=LAYOUTS[layout])
    try:
        model = in_layout(candidate.model, layout).to(image.device, image.dtype)
        function = _compiled(model, number) if setting.compiled else model
    except Exception as error:  # out of memory, above all
        call = _Call(candidate.model, image, None)
        call.failure = _one_line(error)
        return call
    return _Call(function, image, candidate.backend)


def measure_throughput(
    models: Mapping[str, nn.Module | Candidate],
    setting: Setting,
    device: str = 'cpu',
    rounds: int = 5,
    layouts: Sequence[str] = tuple(LAYOUTS),
) -> Run:
    """Images per second of every network, in eval mode and without gradients, on random images.

    Every network is warmed up in every layout (and compiled, if the setting says so), then all take turns. One that
    fails, for memory or in the compiler, is a row with the reason.

    Args:
        models: Networks by name; the first is the one that ratios refer to. Deploy them before.
        setting: Precision, compilation, batch and size.
        device: ``'cpu'`` or ``'cuda'``.
        rounds: How often each runs after the warm-up, at least.
        layouts: Names of :data:`LAYOUTS`.

    Returns:
        The run, with a row per network.

    Raises:
        ValueError: If there is nothing to measure, a layout is unknown, or the device does not know the precision.
    """
    if not models or not layouts:
        raise ValueError('nothing to measure: give at least one model and one layout')
    if unknown := set(layouts) - set(LAYOUTS):
        raise ValueError(f'unknown layouts {sorted(unknown)}; known: {", ".join(LAYOUTS)}')
    if setting.precision == 'tf32' and device != 'cuda':
        raise ValueError("TF32 is a mode of NVIDIA GPUs: measure 'float32' or 'bfloat16' on a CPU")
    dtype = torch.bfloat16 if setting.precision == 'bfloat16' else torch.float32
    candidates = {name: model if isinstance(model, Candidate) else Candidate(model) for name, model in models.items()}
    with precision_flags(setting.precision):
        where = library_info(device)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(setting.batch, 3, setting.size, setting.size, generator=generator).to(device, dtype)
        if setting.compiled:
            torch.compiler.reset()  # the graphs of the settings before
        calls = {
            (name, layout): _prepare(candidate, layout, setting, image, number)
            for number, (name, candidate, layout) in enumerate(
                (name, candidate, layout) for name, candidate in candidates.items() for layout in layouts
            )
        }
        for call in calls.values():
            call.warm_up(setting.compiled)
        seconds = interleaved_medians(
            {f'{name} {layout}': call for (name, layout), call in calls.items()}, device, rounds
        )
        measured: dict[str, list[Measurement]] = {name: [] for name in candidates}
        for (name, layout), call in calls.items():
            memory = peak_memory(call, device) if device == 'cuda' and call.failure is None else None
            if call.failure is None:
                one = Measurement(layout, setting.batch / seconds[f'{name} {layout}'], memory)
            else:
                one = Measurement(layout, None, failure=call.failure)
            measured[name].append(one)
    return Run(setting, device, where, rounds, tuple(Row(name, tuple(ones)) for name, ones in measured.items()))
