"""A step that is left out changes nothing, whether its loss or its gradient is bad, known at once or one step later.

What a GPU does later, of which only the copy to the host needs one, is run on the CPU; mixed precision as far as a CPU
has it.
"""

import contextlib
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from mmpelk.errors import DataError
from mmpelk.fault_tolerance.divergence import DivergenceHook
from tests.fault_tolerance.training import CPUAmpOptimWrapper


class CountsOnTheHost(torch.optim.SGD):
    """Keeps the number of its steps as an integer, as optimizers of other libraries do."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group['params']:
                self.state[parameter]['step'] = self.state[parameter].get('step', 0) + 1


OPTIMIZERS = {
    # In groups, as with rates that decay.
    'AdamW': lambda parameters: torch.optim.AdamW(
        [dict(params=[each]) for each in parameters], lr=0.1, weight_decay=0.5
    ),
    'SGD': lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.5),
    'counts on the host': lambda parameters: CountsOnTheHost(parameters, lr=0.1),
}
needs_scaler = pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'), reason='gradient scalers of a CPU came with torch 2.3'
)


class Training:
    """Steps of a small network with the hook, as mmengine takes them; with ``amp`` in bfloat16, with a scaler."""

    def __init__(
        self, optimizer: str, late: bool = False, patience: int = 10, accumulate: int = 1, amp: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        options = dict(optimizer=OPTIMIZERS[optimizer](self.network.parameters()), accumulative_counts=accumulate)
        scaled = dict(dtype='bfloat16', loss_scale='dynamic')
        self.wrapper: Any = CPUAmpOptimWrapper(**options, **scaled) if amp else OptimWrapper(**options)
        average = EMAHook()
        average.ema_model = ExponentialMovingAverage(self.network, momentum=0.5)
        self.average = average.ema_model
        self.hook = DivergenceHook(patience)
        self.runner: Any = SimpleNamespace(
            model=self.network,
            optim_wrapper=self.wrapper,
            hooks=[self.hook, average],
            message_hub=MessageHub.get_instance('divergence'),
            logger=MMLogger.get_instance('divergence'),
            iter=0,
        )
        self.context = torch.autocast('cpu', torch.bfloat16) if amp else contextlib.nullcontext()
        self.hook.before_train(self.runner)
        for guard in self.hook._guards:
            guard.late = late

    def step(self, what: str = 'good') -> None:
        generator = torch.Generator().manual_seed(self.runner.iter)
        paths = [f'{self.runner.iter}.jpg', 'of the metainfo.jpg']
        batch = dict(
            data_samples=[SimpleNamespace(img_path=paths[0]), SimpleNamespace(metainfo=dict(img_path=paths[1]))]
        )
        self.hook.before_train_iter(self.runner, self.runner.iter, batch)
        x = torch.randn(5, 3, generator=generator) * (float('nan') if what == 'bad loss' else 1.0)
        factor = float(what.rpartition(' of ')[2]) if ' of ' in what else float('nan')
        with self.context:
            y = self.network(x).float()
        if what.startswith('bad gradient'):
            y.register_hook(lambda gradient: torch.full_like(gradient, factor))
        loss = y.square().mean() + (factor if what.startswith('bad loss of') else 0.0)
        self.wrapper.update_params(loss)
        self.hook.after_train_iter(self.runner, self.runner.iter, {})
        self.average.update_parameters(self.network)
        self.runner.iter += 1

    def state(self) -> dict[str, Any]:
        return deepcopy(
            dict(
                network=self.network.state_dict(),
                optimizer=self.wrapper.optimizer.state_dict()['state'],
                average=self.average.state_dict(),
                scale=self.wrapper.loss_scaler.state_dict() if hasattr(self.wrapper, 'loss_scaler') else {},
            )
        )


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD'])
@pytest.mark.parametrize(('what', 'late', 'amp'), [
    ('bad loss', False, False),
    *((f'bad gradient{number}', late, False) for number in ('', ' of inf', ' of -inf') for late in (False, True)),
    pytest.param('bad loss', False, True, marks=needs_scaler),
])  # fmt: skip
def test_nothing_changes(optimizer: str, what: str, late: bool, amp: bool) -> None:
    training = Training(optimizer, late, amp=amp)
    for _ in range(2):
        training.step()
    before = training.state()
    training.step(what)
    after = training.state()
    assert all(same(before[part], after[part]) for part in before if part != 'average' or not late)
    assert all(torch.isfinite(value).all() for value in after['average'].values())
    training.step()
    assert training.hook.skipped == 1
    assert training.runner.message_hub.get_scalar('train/skipped_steps').current() == 1
    assert not any(same(after[part], training.state()[part]) for part in ('network', 'average'))


@pytest.mark.parametrize('late', [False, True])
def test_nothing_changes_where_one_parameter_is_trained(late: bool) -> None:
    training = Training('SGD', late)
    for parameter in [*training.network.parameters()][:-1]:
        parameter.requires_grad_(False)
    before = training.state()['network']
    training.step('bad gradient')
    assert same(before, training.state()['network'])
    training.step()
    assert training.hook.skipped == 1
    changed = {name for name, value in training.state()['network'].items() if not torch.equal(value, before[name])}
    assert {name for name in changed if not name.startswith('1.')} == {'2.bias'}


@pytest.mark.parametrize('late', [False, True])
def test_nothing_changes_by_the_first_step(late: bool) -> None:
    training, other = Training('AdamW', late), Training('AdamW', late)
    before = training.state()['network']
    training.step('bad gradient')
    assert same(before, training.state()['network'])
    kept = training.state()['optimizer']
    assert not any(value.any() for state in kept.values() for value in state.values())
    training.runner.iter = 0
    training.step()
    other.step()
    assert all(same(training.state()[part], other.state()[part]) for part in ('network', 'optimizer'))


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD'])
def test_good_steps_are_those_without_the_hook(optimizer: str) -> None:
    first, second = Training(optimizer, late=True), Training(optimizer)
    second.hook.after_train(second.runner)
    for _ in range(3):
        first.step()
        second.step()
    assert same(first.state(), second.state())
    assert not {'backward', 'step', 'update_parameters'} & {*vars(second.wrapper), *vars(second.average)}
    for call in (second.hook.before_train, second.hook.after_train):  # of a second training
        call(second.runner)


def test_steps_that_are_counted_on_the_host_are_taken_back() -> None:
    training = Training('counts on the host', late=True)
    for what in ('good', 'bad gradient', 'good', 'good'):
        training.step(what)
    assert {state['step'] for state in training.state()['optimizer'].values()} == {3}


@pytest.mark.parametrize('what', ['bad loss', 'bad loss of nan', 'bad loss of inf', 'bad loss of -inf'])
def test_one_bad_batch_of_two_spoils_their_step(what: str) -> None:
    training = Training('SGD', accumulate=2)
    before = training.state()['network']
    training.step(what)
    training.step()
    assert same(before, training.state()['network'])
    assert training.hook.skipped == 1


def with_two_optimizers(patience: int = 10) -> tuple[Training, dict[str, Any]]:
    training = Training('SGD', patience=patience)
    training.hook.after_train(training.runner)
    parts = {name: OptimWrapper(OPTIMIZERS['SGD'](training.network[int(name)].parameters())) for name in '02'}
    training.runner.optim_wrapper = OptimWrapperDict(**parts)
    training.hook.before_train(training.runner)
    return training, parts


@pytest.mark.parametrize('used', ['0', '2'])
def test_steps_in_a_row_are_those_of_the_optimizer_that_steps(used: str) -> None:
    """The other waits for its turn, as in a training of two networks against each other."""
    training, parts = with_two_optimizers(patience=2)
    for what in (float('nan'), 1.0, float('nan'), 1.0, float('nan')):
        training.hook.before_train_iter(training.runner, 0, {})
        parts[used].update_params(training.network(torch.ones(5, 3)).square().mean() * what)
        training.hook.after_train_iter(training.runner, 0, {})
    assert training.hook.skipped == 3


def test_a_bad_loss_of_one_of_several_optimizers() -> None:
    """Each leaves out its own step; the hook counts one, and averages nothing."""
    training, parts = with_two_optimizers()
    training.average.update_parameters(training.network)
    before, average = training.state()['network'], training.state()['average']
    training.hook.before_train_iter(training.runner, 0, {})
    for name, factor in (('0', 1.0), ('2', float('nan'))):
        parts[name].update_params(training.network(torch.ones(5, 3)).square().mean() * factor)
    training.hook.after_train_iter(training.runner, 0, {})
    changed = {name for name, value in training.state()['network'].items() if not torch.equal(value, before[name])}
    assert changed == {'0.weight', '0.bias'}, 'nor do the statistics'
    assert training.hook.skipped == 1
    training.average.update_parameters(training.network)
    assert same(average, training.state()['average'])


def test_what_was_skipped_is_logged_with_its_iteration_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    training, said = Training('SGD'), []
    monkeypatch.setattr(training.runner.logger, 'warning', said.append)
    for what in ('good', 'bad loss'):
        training.step(what)
    (line,) = said
    assert line.startswith('Iteration 2: a loss that is not finite, the step was skipped (1 in a row, 1 in all)')
    assert line.endswith('1.jpg, of the metainfo.jpg')


@pytest.mark.parametrize(('dtype', 'large'), [(torch.float16, 6e4), (torch.float32, 1e37), (torch.float64, 1e300)])
def test_large_gradients_are_finite(dtype: torch.dtype, large: float) -> None:
    """Though their sum is none in half precision, nor those of double precision in single."""
    training = Training('SGD')
    training.network.to(dtype)
    for parameter in training.network.parameters():
        parameter.grad = torch.full_like(parameter, large)
    before = training.network[0].bias.clone()
    training.wrapper.step()
    assert not torch.equal(before, training.network[0].bias)
    guard, gradient = training.hook._guards[0], training.network[0].bias.grad
    assert not guard.found()
    for number in (float('inf'), -float('inf'), float('nan')):  # a single one
        gradient[1] = number
        training.wrapper.step()
        assert guard.found() == 'a gradient that is not finite'


def test_only_several_in_a_row_end_the_training() -> None:
    with pytest.raises(ValueError, match='patience must be at least 1, but is 0'):
        DivergenceHook(0)
    training = Training('SGD', patience=2)
    for _ in range(4):
        training.step('bad loss')
        training.step()
    assert training.hook.skipped == 4
    training = Training('SGD', late=True, patience=3)
    for _ in range(3):
        training.step('bad gradient')
    # The third is known one step later.
    training.runner.message_hub.update_info('last_ckpt', 'good.pth')
    with pytest.raises(
        DataError, match='3 steps in a row had a gradient that was not finite, one step before'
    ) as caught:
        training.step('bad gradient')
    assert 'the last at iteration 4 with 3.jpg, of the metainfo.jpg.' in str(caught.value)
    assert "The last good checkpoint is 'good.pth'" in str(caught.value)
    training = Training('SGD', patience=2, accumulate=2)
    for what in ('bad loss', 'good', 'bad loss'):
        training.step(what)
    with pytest.raises(DataError, match='2 steps in a row had a loss'):
        training.step()


@needs_scaler
def test_the_scaler_looks_for_its_scale_as_long_as_there_may_be_one() -> None:
    training = Training('AdamW', patience=3, amp=True)
    scale = training.wrapper.loss_scaler.get_scale()
    for _ in range(5):  # more than the patience
        training.step('bad gradient')
    assert training.wrapper.loss_scaler.get_scale() == scale / 2**5
    assert training.hook.skipped == 0
    before = training.state()['network']
    training.step()
    assert not same(before, training.state()['network'])
    for _ in range(32 + 2):  # halvings, and one step less than the patience
        training.step('bad gradient')
    with pytest.raises(DataError, match='not finite at any loss scale'):
        training.step('bad gradient')
