"""Skip steps that would ruin the weights, and stop a training that has diverged."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from .agreement import Agreement
from .errors import DataError

_HALVINGS = 32  # of a loss scale, after which it is too small for float16 whatever it was


class DivergenceHook(Hook):
    """Skip steps whose loss or gradient is not finite on any process, and stop after several in a row.

    A skipped step changes nothing: no weight, no state of the optimizer, no running statistics of batch norms,
    which may have seen the bad batch, and no average of weights (mmengine's ``EMAHook``). The schedule goes on.

    Nothing waits for the device. The loss is checked while the backward pass runs; by the time that the optimizer
    would step, all processes know whether all losses were finite, and leave the step out together. Gradients are
    checked on the device: there the step is undone, from a copy of what it changes, which takes memory that the
    activations have freed; the log reports it one step later. (On a CPU everything is known at once.) Data-parallel
    processes share their gradients, so that all find the same.

    In mixed precision the gradient scaler skips steps while it looks for its scale. Those are no errors, and gradients
    are left to it; losses are still checked.

    Args:
        patience: Steps to leave out in a row before training stops.
    """

    # Counts before anything is saved.
    priority = 'HIGH'

    def __init__(self, patience: int = 10) -> None:
        if patience < 1:
            raise ValueError(f'patience must be at least 1, but is {patience}')
        self.patience = patience
        self.skipped = 0
        self._in_a_row = 0
        self._left_out = False
        self._files: list[str] = []
        self._guards: list[_Guard] = []
        self._averages: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Check losses and gradients before the optimizers step."""
        wrapper = runner.optim_wrapper
        # mmengine's OptimWrapperDict is an OptimWrapper, too.
        wrappers = [wrapper] if hasattr(wrapper, 'optimizer') else [*wrapper.values()]
        self._guards = [_Guard(one, runner.model) for one in wrappers]
        for hook in runner.hooks:
            average: Any = getattr(hook, 'ema_model', None)
            if hasattr(average, 'update_parameters'):
                self._averages.append(average)
                average.update_parameters = self._unless_skipped(average.update_parameters)

    def _unless_skipped(self, update: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda model: None if self._left_out else update(model)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember the batch, by its files."""
        self._files = list(_files(data_batch))
        for guard in self._guards:
            guard.keep_statistics()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count the skipped steps."""
        # All of the list: each guard hands over what it has found.
        found = [reason for reason in [guard.found() for guard in self._guards] if reason]
        self._left_out = any(guard.left_out for guard in self._guards)
        if not found:
            if any(guard.looked for guard in self._guards):
                self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        runner.message_hub.update_scalar('train/skipped_steps', self.skipped)
        runner.logger.warning(
            f'Iteration {runner.iter + 1}: {found[0]}, the step was skipped ({self._in_a_row} in a row, {self.skipped} '
            f'in all). The batch of this process: {", ".join(self._files) or "unknown"}'
        )
        if self._in_a_row >= self.patience:
            last = runner.message_hub.runtime_info.get('last_ckpt')
            raise DataError(
                f'training has diverged: {self._in_a_row} steps in a row had {found[0]}, the last at iteration '
                f'{runner.iter + 1} with {", ".join(self._files) or "a batch of unknown files"}. '
                + (f"The last good checkpoint is '{last}' (--resume). " if last else 'No checkpoint was written. ')
                + 'Look at these files; try a lower learning rate (optim_wrapper.optimizer.lr), a longer warm-up, '
                'optim_wrapper.clip_grad.max_norm=1.0 or, in mixed precision, optim_wrapper.type=OptimWrapper'
            )

    def after_train(self, runner: Runner) -> None:
        """Restore the optimizer wrappers."""
        for guard in self._guards:
            guard.close()
        for average in self._averages:
            del average.update_parameters
        self._averages = []


class _Guard:
    """Checks losses and gradients before one optimizer steps."""

    def __init__(self, wrapper: OptimWrapper, network: nn.Module) -> None:
        self.wrapper = wrapper
        self.looked = False  # whether a step was due in this iteration
        self.left_out = False  # whether it is known that it was left out
        self.late = any(p.is_cuda for group in wrapper.optimizer.param_groups for p in group['params'])
        self._statistics = _Statistics(network)
        self._losses, self._gradients = Agreement(), _DelayedFlag()
        self._scaled = hasattr(wrapper, 'loss_scaler')
        self._reason = ''
        self._backward, self._step = wrapper.backward, wrapper.step
        # On the instance: mmengine and the toolboxes have wrappers of many classes.
        wrapper.backward, wrapper.step = self._check_loss_and_backward, self._step_if_finite
        self._bad: Tensor | None = None
        # A gradient scaler that finds no scale lets the optimizer never step.
        self._unscaled = 0
        self._handle = wrapper.optimizer.register_step_post_hook(self._has_stepped)

    def close(self) -> None:
        self._handle.remove()
        del self.wrapper.backward, self.wrapper.step

    def found(self) -> str:
        """What was wrong since the last call, or nothing."""
        reason, self._reason = self._reason, ''
        return reason

    def keep_statistics(self) -> None:
        """Keep the running statistics, before the first batch of a step."""
        if not self._statistics.kept:
            self._statistics.keep()

    def _check_loss_and_backward(self, loss: Tensor, **kwargs: Any) -> None:
        bad = ~torch.isfinite(loss.detach()).all()
        # With accumulated gradients, one bad loss spoils the step.
        self._bad = bad if self._bad is None else self._bad | bad
        self.looked = self.left_out = False
        if self.wrapper.should_sync():  # the step is due after this one
            self._losses.ask(self._bad)
            self._bad = None
        self._backward(loss, **kwargs)

    def _step_if_finite(self, **kwargs: Any) -> None:
        self.looked = True
        self._step_or_skip(kwargs)
        self._statistics.kept.clear()

    def _step_or_skip(self, kwargs: dict[str, Any]) -> None:
        if self._losses.answer():
            self._skip('a loss that is not finite')
        elif self._scaled:
            self._unscaled += 1
            self._step(**kwargs)
            if self._unscaled > _HALVINGS:
                self._reason = 'gradients that are not finite at any loss scale'
        elif (bad := self._find_bad_gradient()) is None:
            self._step(**kwargs)
        elif self.late:
            self._step_and_undo(bad, kwargs)
        elif bad:
            self._skip('a gradient that is not finite')
        else:
            self._step(**kwargs)

    def _skip(self, reason: str) -> None:
        self._reason, self.left_out = reason, True
        self._statistics.put_back()

    @torch.no_grad()
    def _step_and_undo(self, bad: Tensor, kwargs: dict[str, Any]) -> None:
        """Step as if nothing were wrong, and undo it on the device if something is."""
        parameters = self._parameters()
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.masked_fill_(bad, 0.0)  # so that all that follows is finite
        changed = parameters + self._state(parameters)
        # torch's own arithmetic on many tensors at once has no public names.
        before = torch._foreach_mul(changed, 1.0)
        self._step(**kwargs)
        known = {id(value) for value in changed}
        begun = [value for value in self._state(parameters) if id(value) not in known]  # as zeros, by the first step
        torch._foreach_mul_(changed + begun, (~bad).float())
        torch._foreach_mul_(before, bad.float())
        torch._foreach_add_(changed, before)
        self._statistics.put_back(bad)
        self._gradients.send(bad)

    def _state(self, parameters: list[Tensor]) -> list[Tensor]:
        """What the optimizer keeps on the parameters' devices."""
        return [
            value
            for parameter in parameters
            for value in self.wrapper.optimizer.state.get(parameter, {}).values()
            if isinstance(value, Tensor) and value.device == parameter.device
        ]

    def _count_back(self) -> None:
        """Take back the steps that optimizers count on the host."""
        for parameter in self._parameters():
            state = self.wrapper.optimizer.state.get(parameter, {})
            count = state.get('step')
            if count is not None and not (isinstance(count, Tensor) and count.device == parameter.device):
                state['step'] = count - 1

    def _parameters(self) -> list[Tensor]:
        groups = self.wrapper.optimizer.param_groups
        return [parameter for group in groups for parameter in group['params'] if parameter.grad is not None]

    def _has_stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._unscaled = 0

    def _find_bad_gradient(self) -> Tensor | None:
        """Whether a gradient is not finite, on the device; None if there are none."""
        if self._gradients.arrived():
            self._reason = 'a gradient that was not finite, one step before'
            self._count_back()
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        if not gradients:
            return None
        if self.late:
            # torch's own norms of many tensors at once, a few launches; its public names for them clip as well.
            sums = [*torch._foreach_norm(gradients, 1)]
        else:
            # On a CPU twice as fast. What is not finite stays so in a sum; half precision would overflow.
            sums = [gradient.sum(dtype=torch.promote_types(gradient.dtype, torch.float32)) for gradient in gradients]
        return ~torch.isfinite(torch.stack([value.to(sums[0].device, torch.float64) for value in sums]).sum())


class _Statistics:
    """The running statistics of a network's batch norms, and a copy of them.

    Those of one type are copied as one tensor: a device is asked a few times, not once for each of hundreds.

    Attributes:
        kept: The copy; empty where nothing is kept.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = [module for module in network.modules() if getattr(module, 'running_mean', None) is not None]
        self.kept: list[Tensor] = []

    def _groups(self) -> list[list[Tensor]]:
        groups: dict[Any, list[Tensor]] = {}
        for value in (value for norm in self._norms for value in norm.buffers()):
            groups.setdefault((value.dtype, value.device), []).append(value)
        return list(groups.values())

    def keep(self) -> None:
        self.kept = [_joined(group) for group in self._groups()]

    def put_back(self, where: Tensor | None = None) -> None:
        """Undo what happened since; on a condition that is on the device, if one is given."""
        for before, group in zip(self.kept, self._groups() if self.kept else [], strict=True):
            found = before if where is None else torch.where(where, before, _joined(group))
            parts = found.split([value.numel() for value in group])
            # torch's own copies of many tensors at once have no public names.
            torch._foreach_copy_(group, [part.view_as(value) for part, value in zip(parts, group, strict=True)])


def _joined(values: list[Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values])


class _DelayedFlag:
    """A flag of the device that is read one step after it was set; every process has the same."""

    def __init__(self) -> None:
        self._host: Tensor | None = None
        self._event: Any = None

    def send(self, flag: Tensor) -> None:
        if not flag.is_cuda:
            self._host = flag
            return
        self._host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def arrived(self) -> bool:
        if self._host is None:
            return False
        if self._event is not None:
            self._event.synchronize()
        flag, self._host = self._host, None
        return bool(flag)


def _files(batch: Any) -> Iterator[str]:
    """Paths of the images of a batch, in the formats of the toolboxes."""
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    for sample in samples or ():
        path = getattr(sample, 'img_path', None) or getattr(sample, 'metainfo', {}).get('img_path')
        if path:
            yield str(path)
