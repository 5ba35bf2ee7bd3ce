"""Batches that would ruin the weights are left out, and a training that has diverged is stopped."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mmpelk.errors import DataError
from mmpelk.registry import HOOKS

from .agreement import Agreement

__all__ = ['DivergenceHook']

_HALVINGS = 32  # of a loss scale, after which it is too small for float16 whatever it was


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Skip steps whose loss or gradient is not finite on any process, and stop after several in a row.

    Nothing waits for the device. The loss is looked at while the backward pass runs; by the time that the optimizer
    would step, all processes know whether all losses were finite, and leave the step out together. Gradients are looked
    at on the device: what is not finite is replaced by zeros there and known one step later, so that such a step
    changes the weights by what momentum and weight decay do alone. (On a CPU, where everything is known at once, it is
    left out, too.) Data-parallel processes share their gradients, so that they see the same.

    In mixed precision the gradient scaler skips steps while it looks for its scale. Those are no errors, and gradients
    are left to it; losses are looked at all the same.

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
        self._files: list[str] = []
        self._guards: list[_Guard] = []

    def before_train(self, runner: Runner) -> None:
        """Stand before the optimizer."""
        wrapper = runner.optim_wrapper
        wrappers = [wrapper] if isinstance(wrapper, OptimWrapper) else [*wrapper.values()]
        self._guards = [_Guard(one) for one in wrappers]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember the batch, by its files."""
        self._files = list(_files(data_batch))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count what was left out."""
        # All of the list: each guard hands over what it has found.
        found = [reason for reason in [guard.found() for guard in self._guards] if reason]
        if not found:
            if any(guard.looked for guard in self._guards):
                self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        runner.message_hub.update_scalar('train/skipped_steps', self.skipped)
        runner.logger.warning(
            f'Iteration {runner.iter + 1}: {found[0]}, the step is left out ({self._in_a_row} in a row, {self.skipped} '
            f'in all). Its files here: {", ".join(self._files) or "unknown"}'
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
        """Leave the optimizer alone."""
        for guard in self._guards:
            guard.close()


class _Guard:
    """Stands between the losses, the gradients and one optimizer."""

    def __init__(self, wrapper: OptimWrapper) -> None:
        self.wrapper = wrapper
        self.looked = False  # whether a step was due in this iteration
        self._losses, self._gradients = Agreement(), _Later()
        self._scaled = hasattr(wrapper, 'loss_scaler')
        self._reason = ''
        self._backward, self._step = wrapper.backward, wrapper.step
        # On the instance: mmengine and the toolboxes have wrappers of many classes.
        wrapper.backward, wrapper.step = self._look_and_go_back, self._step_if_finite
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

    def _look_and_go_back(self, loss: Tensor, **kwargs: Any) -> None:
        bad = ~torch.isfinite(loss.detach()).all()
        # With accumulated gradients, one bad loss spoils the step.
        self._bad = bad if self._bad is None else self._bad | bad
        self.looked = False
        if self.wrapper.should_sync():  # the step is due after this one
            self._losses.ask(self._bad)
            self._bad = None
        self._backward(loss, **kwargs)

    def _step_if_finite(self, **kwargs: Any) -> None:
        self.looked = True
        if self._losses.answer():
            self._reason = 'a loss that is not finite'
            return
        if not self._scaled and not self._gradients_are_finite():
            return
        self._unscaled += self._scaled
        self._step(**kwargs)
        if self._unscaled > _HALVINGS:
            self._reason = 'gradients that are not finite at any loss scale'

    def _has_stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._unscaled = 0

    def _gradients_are_finite(self) -> bool:
        if self._gradients.arrived():
            self._reason = 'a gradient that was not finite, one step before'
        gradients = [
            parameter.grad
            for group in self.wrapper.optimizer.param_groups
            for parameter in group['params']
            if parameter.grad is not None
        ]
        if not gradients:
            return True
        # torch's own sums over many tensors at once; its public names for them clip as well. Zero times anything finite
        # is zero, and their sum tells.
        norms = torch._foreach_norm(gradients, 1)
        bad = ~torch.isfinite(torch.stack([norm.to(gradients[0].device, torch.float64) for norm in norms]).sum())
        if bad.device.type == 'cpu':
            if bad:
                self._reason = 'a gradient that is not finite'
            return not bad
        for gradient in gradients:
            gradient.masked_fill_(bad, 0.0)
        self._gradients.send(bad)
        return True


class _Later:
    """A flag of the device that is read one step after it was set; every process has the same."""

    def __init__(self) -> None:
        self._host: Tensor | None = None
        self._event: Any = None

    def send(self, flag: Tensor) -> None:
        self._host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def arrived(self) -> bool:
        if self._host is None:
            return False
        self._event.synchronize()
        return bool(self._host)


def _files(batch: Any) -> Iterator[str]:
    """Paths of the images of a batch, in the formats of the toolboxes."""
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    for sample in samples or ():
        path = getattr(sample, 'img_path', None) or getattr(sample, 'metainfo', {}).get('img_path')
        if path:
            yield str(path)
