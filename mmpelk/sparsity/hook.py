"""The hook that makes a training run sparse, in any project of the MM family."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.networks import unwrap_model
from mmpelk.fault_tolerance.random_state import make_generator
from mmpelk.models.hidden_units import find_hidden_units
from mmpelk.registry import HOOKS

from .enforce import StepMasker, mask_average
from .granularity import GRANULARITIES, Layer, active_in_units
from .initialisation import INITIALISATIONS, active_total, erk, snip, uniform
from .loading import Loaded, LoadTracker
from .masks import MaskedParameter, apply_masks, attach_masks, broadcast_masks
from .probe import snip_scores
from .report import density_table, layer_densities, overall_density
from .update import cosine_prune_rate

Mode = Literal['dense', 'fixed', 'dynamic']

_INITIAL_TAG, _UPDATE_TAG, _GROWTH_TAG = 0, 1, 3  # 2 is the probe's


@HOOKS.register_module()
class SparsityHook(Hook):
    """Train with a share of the weights at zero: SLaK's and PeLK's dynamic sparsity.

    Modes:

    - ``dynamic`` (pre-training): every ``update_interval`` iterations the smallest weights of each layer are dropped,
      and as many inactive ones grown at random, at zero. The last iteration of the run changes nothing, since what it
      grew would never be trained.
    - ``fixed`` (fine-tuning): the masks stay as the checkpoint brings them, or as the initialisation drew them.
    - ``dense``: no masks. The hook then only guards against training a sparse checkpoint densely by accident.

    Granularities:

    - ``weight`` (SLaK, PeLK): each weight on its own. It lowers counts, not memory or time.
    - ``unit``: hidden units of blocks with two linear layers, with as many active weights in the whole ``target`` as
      ``weight``; its other weights are all active. ``tools/export_dense.py --shrink`` takes the inactive units out.
    - ``2:4``: two of every four weights along the input of each linear layer; ``density`` has no effect.

    A run without a checkpoint draws its masks from ``initialisation``; one with a checkpoint (``load_from``,
    ``resume``, or ``init_cfg=dict(type='Pretrained', ...)``) takes the masks in it. After every optimizer step the
    inactive weights, their optimizer moments and their EMA copies are exactly zero.

    Args:
        mode: ``'dynamic'``, ``'fixed'`` or ``'dense'``.
        granularity: ``'weight'``, ``'unit'`` or ``'2:4'``. With ``mode='fixed'`` the default takes masks of any.
        density: Share of the weights that are active when masks are drawn. PeLK: 0.6.
        initialisation: What decides each layer's share: ``'snip'`` (one batch), ``'erk'`` or ``'uniform'``.
        target: Submodule to make sparse, or several; None for the whole model.
        exclude: Parameters whose name contains one of these strings stay dense.
        update_interval: Iterations between two updates. SLaK: 2000 for T; 100 for S and B.
        prune_rate: Share of each layer's active weights that the first update would replace. SLaK: 0.5 for T; 0.3 for
            S and B.
        prune_rate_end: Share at the end of the run, reached along a cosine.
        adopt_zeros: Take ``weight != 0`` as the mask where a checkpoint has weights but no masks. Without it, that is
            an error.
        snip_batch_size: Samples per rank for SNIP, in the weights' own precision; None takes the training loader's.
        seed: Seed of the masks; None takes the run's.
        table_interval: Log the table of the layers at every so many updates.

    Raises:
        ValueError: If an argument is out of its range; at the start of training, if checkpoint and mode do not fit
            together.
    """

    # Before EMAHook (NORMAL, or 49 in several recipes): its copy of the model has to contain the masks.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        mode: Mode = 'dynamic',
        granularity: Literal['weight', 'unit', '2:4'] = 'weight',
        density: float = 0.6,
        initialisation: Literal['snip', 'erk', 'uniform'] = 'snip',
        target: str | Sequence[str] | None = 'backbone',
        exclude: Collection[str] = (),
        update_interval: int = 2000,
        prune_rate: float = 0.5,
        prune_rate_end: float = 0.005,
        adopt_zeros: bool = False,
        snip_batch_size: int | None = None,
        seed: int | None = None,
        table_interval: int = 1,
    ) -> None:
        if mode not in get_args(Mode):
            raise UserError(f'mode must be one of {get_args(Mode)}, but is {mode!r}')
        if granularity not in GRANULARITIES:
            raise UserError(f'granularity must be one of {tuple(GRANULARITIES)}, but is {granularity!r}')
        if initialisation not in INITIALISATIONS:
            raise UserError(f'initialisation must be one of {INITIALISATIONS}, but is {initialisation!r}')
        if not 0 < density <= 1:
            raise UserError(f'density must be in (0, 1], but is {density}: it is the share of active weights')
        if not 0 <= prune_rate_end <= prune_rate <= 1:
            raise UserError(
                f'0 <= prune_rate_end <= prune_rate <= 1 must hold, but got {prune_rate_end} and {prune_rate}'
            )
        if update_interval < 1 or table_interval < 1:
            raise UserError('update_interval and table_interval must be at least 1')
        if isinstance(exclude, str):
            raise UserError(f'exclude must be a list of strings, but is the string {exclude!r}')
        self.mode = mode
        self.granularity = granularity
        self.density = density
        self.initialisation = initialisation
        self.target = target
        self.exclude = tuple(exclude)
        self.update_interval = update_interval
        self.prune_rate = prune_rate
        self.prune_rate_end = prune_rate_end
        self.adopt_zeros = adopt_zeros
        self.snip_batch_size = snip_batch_size
        self.seed = seed
        self.table_interval = table_interval
        self.layers: list[Layer] = []
        self.parameters: list[MaskedParameter] = []
        self._tracker: LoadTracker | None = None
        self._maskers: list[StepMasker] = []

    # Stages of a run. mmengine calls before_run, then initialises and loads weights, then before_train.

    def before_run(self, runner: Runner) -> None:
        """Register the masks, so that checkpoints and the copies of the model find them; watch what is loaded."""
        model = unwrap_model(runner.model)
        self.layers = GRANULARITIES[self.granularity](model, self.target, self.exclude)
        self.parameters = [entry for layer in self.layers for entry in layer.parameters]
        if self._tracker is not None:
            self._tracker.close()
        if self.mode != 'dense':
            _refuse_inner_averages(model)
            attach_masks(self.parameters)
        self._tracker = LoadTracker(self.parameters, find_hidden_units(model))

    def before_train(self, runner: Runner) -> None:
        """Take the masks from the checkpoint, or draw them; start to enforce them."""
        assert self._tracker is not None, 'before_run comes first'
        loaded, self._tracker = self._tracker.close(), None
        if self.mode == 'dense':
            self._refuse_masks(loaded)
            return
        self._take_or_draw_masks(runner, loaded)
        broadcast_masks(self.parameters)
        self._maskers = [StepMasker(optimizer, self.parameters) for optimizer in _optimizers(runner.optim_wrapper)]
        self._enforce(runner)
        self._report(runner, f'Sparse training, mode {self.mode!r}')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Update the masks in every ``update_interval``-th iteration; nothing in the others."""
        done = runner.iter + 1
        if self.mode == 'dynamic' and done % self.update_interval == 0 and done < runner.max_iters:
            self._update(runner, done)

    def after_train(self, runner: Runner) -> None:
        """Stop masking the steps of the optimizers."""
        for masker in self._maskers:
            masker.close()
        self._maskers = []

    def _take_or_draw_masks(self, runner: Runner, loaded: Loaded) -> None:
        """Masks from the checkpoint if there is one, else drawn."""
        logger = runner.logger
        brought = [layer for layer in self.layers if layer.parameters[0].name in loaded.masks]
        misfits = [*sorted(loaded.misfits), *filter(None, (layer.misfit() for layer in brought))]
        if misfits:
            raise UserError(
                f"granularity={self.granularity!r}, but the checkpoint's masks are of another one: {misfits[0]}. Give "
                'the granularity that it was trained with'
            )
        if loaded.masks and loaded.without_masks and self.mode == 'fixed' and not self.adopt_zeros:
            names = sorted(loaded.without_masks)
            logger.info(
                f'{len(names)} parameters, such as {names[:3]}, have no masks in the checkpoint: they are dense.'
            )
            for entry in self.parameters:
                if entry.name in loaded.without_masks:
                    entry.mask.fill_(True)
        elif loaded.without_masks:
            self._adopt_zeros(loaded, logger)
        if loaded.weights:
            fresh = [entry.name for entry in self.parameters if entry.name not in loaded.weights]
            if fresh:
                logger.warning(
                    f'The checkpoint has nothing for {len(fresh)} parameters, such as {fresh[:3]}: they stay dense.'
                )
            return
        if any(layer.active < layer.size for layer in layer_densities(self.parameters)):
            return  # the model came with masks, or this is its second training
        if self.mode == 'fixed':
            logger.warning(
                "mode='fixed', but no checkpoint was loaded: the masks are drawn now and stay. To fine-tune a sparse "
                "model, name its checkpoint as `load_from` or in the backbone's `init_cfg`."
            )
        self._draw(runner)

    def _adopt_zeros(self, loaded: Loaded, logger: MMLogger) -> None:
        names = sorted(loaded.without_masks)
        if not self.adopt_zeros:
            raise UserError(
                f'mode={self.mode!r}, but the checkpoint is dense: it has weights without masks for {len(names)} of '
                f'{len(self.parameters)} parameters, such as {names[:3]}. If its zeros are the mask (an exported '
                "sparse model), set adopt_zeros=True; to train densely, set mode='dense'; for new masks, train without "
                'the checkpoint.'
            )
        adopted = [entry for entry in self.parameters if entry.name in loaded.without_masks]
        for entry in adopted:
            entry.mask.copy_(entry.weight.detach() != 0)
        layers = layer_densities(adopted)
        logger.info(f'Masks adopted from the zeros of a checkpoint without masks:\n{density_table(layers)}')
        if overall_density(layers) == 1:
            logger.warning('None of the adopted weights is zero: the checkpoint is dense, and so are these masks.')

    def _draw(self, runner: Runner) -> None:
        """New masks, by the initialisation."""
        frozen = [entry.name for entry in self.parameters if not entry.weight.requires_grad]
        if frozen:
            raise UserError(
                f'{len(frozen)} parameters, such as {frozen[:3]}, are frozen, so training could not '
                'compensate for zeros in them: name them in `exclude`, or freeze nothing'
            )
        seed = self._seed(runner)
        counts = self._counts(runner, seed)
        generator = make_generator(seed, _INITIAL_TAG)
        for layer, active in zip(self.layers, counts, strict=True):
            layer.draw(active, generator)
        empty = [layer.name for layer, active in zip(self.layers, counts, strict=True) if active == 0]
        if empty:
            runner.logger.warning(
                f'{self.initialisation} leaves no active weight in {empty}: consider `exclude`, a higher `density` or '
                '"erk".'
            )

    def _counts(self, runner: Runner, seed: int) -> list[int]:
        """Active weights of each layer, by the initialisation."""
        model = unwrap_model(runner.model)
        sizes = [math.prod(layer.shape) for layer in self.layers]
        total = active_total(sizes, self.density)
        if self.granularity == '2:4':
            return uniform(sizes, total)  # which the pattern overrides
        if self.granularity == 'unit':
            total = active_in_units(self.layers, model, self.density, self.target, self.exclude)
        if self.initialisation == 'erk':
            return erk([layer.shape for layer in self.layers], total)
        if self.initialisation == 'uniform':
            return uniform(sizes, total)
        flat = iter(snip_scores(model, self.parameters, runner.train_dataloader, seed, self.snip_batch_size))
        return snip([layer.score([next(flat) for _ in layer.parameters]) for layer in self.layers], total)

    def _update(self, runner: Runner, done: int) -> None:
        rate = cosine_prune_rate(done, runner.max_iters, self.prune_rate, self.prune_rate_end)
        device = self.parameters[0].mask.device
        generator = make_generator(self._seed(runner), _UPDATE_TAG, done, device=device)
        # What is frozen could only lose: a grown weight would stay zero.
        free = [layer for layer in self.layers if all(entry.weight.requires_grad for entry in layer.parameters)]
        grown = {layer.name: layer.update(rate, generator) for layer in free}
        broadcast_masks(self.parameters)
        values = make_generator(self._seed(runner), _GROWTH_TAG, done)  # on the CPU: equal on all ranks
        for layer in free:
            layer.start_grown(_averages(runner), values)
        self._enforce(runner)
        runner.message_hub.update_scalar('train/prune_rate', rate)
        runner.message_hub.update_scalar('train/grown_weights', sum(grown.values()))
        self._report(runner, f'Masks updated after iteration {done}, prune rate {rate:.4f}', grown)

    def _enforce(self, runner: Runner) -> None:
        """Zero everything that the masks, which have just changed, leave out."""
        apply_masks(self.parameters)
        for masker in self._maskers:
            masker.refresh()
        for average in _averages(runner):
            mask_average(average, self.parameters)

    def _report(self, runner: Runner, headline: str, grown: Mapping[str, int] | None = None) -> None:
        layers = layer_densities(self.parameters)
        density = overall_density(layers)
        # LoggerHook passes what starts with "train/" on to the log and to every backend of the visualiser.
        runner.message_hub.update_scalar('train/density', density)
        updates = (runner.iter + 1) // self.update_interval
        table = '' if grown is not None and updates % self.table_interval else f'\n{density_table(layers, grown)}'
        runner.logger.info(f'{headline}: density {density:.6f} of {len(layers)} parameters{table}')

    def _seed(self, runner: Runner) -> int:
        return self.seed if self.seed is not None else runner.seed

    def _refuse_masks(self, loaded: Loaded) -> None:
        if loaded.masks:
            raise UserError(
                f"mode='dense', but the checkpoint is sparse: it has masks for {len(loaded.masks)} parameters, such as "
                f"{sorted(loaded.masks)[:3]}. To keep its zeros, set mode='fixed'; to train all of its weights from "
                'here on, fold the masks in with tools/export_dense.py and load what that writes.'
            )


def _optimizers(optim_wrapper: Any) -> list[Optimizer]:
    """The optimizers of an ``OptimWrapper`` or of each in an ``OptimWrapperDict``."""
    wrappers = [optim_wrapper] if hasattr(optim_wrapper, 'optimizer') else list(optim_wrapper.values())
    return [wrapper.optimizer for wrapper in wrappers]


def _averages(runner: Runner) -> list[BaseAveragedModel]:
    """The averaged copies of the model that hooks such as ``EMAHook`` keep."""
    averages = [getattr(hook, 'ema_model', None) for hook in runner.hooks]
    return [average for average in averages if isinstance(average, BaseAveragedModel)]


def _refuse_inner_averages(model: nn.Module) -> None:
    inner = [name for name, module in model.named_modules() if isinstance(module, BaseAveragedModel)]
    if inner:
        raise UserError(
            f'{type(model).__name__} keeps averaged copies of its own parts ({", ".join(inner)}), which were made '
            'before the masks and pair their buffers by position: masks would shift the pairs. Use '
            "mode='dense' for such models."
        )
