"""Training runs: everything inactive is zero after every step, and the run is otherwise the one that it would be."""

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper

from mmpelk.sparsity import active_total, cosine_prune_rate
from mmpelk.sparsity import granularity as granularities
from tests.sparsity.tiny import TinyData, TinyModel, Watch, dead_values, is_of_granularity, masked

DYNAMIC = {'update_interval': 3, 'prune_rate': 0.5}
GRANULARITIES = ('weight', 'unit', '2:4')
# With fixed masks nothing depends on the granularity.
MODES = pytest.mark.parametrize(
    ('mode', 'granularity'), [('fixed', 'unit'), *(('dynamic', granularity) for granularity in GRANULARITIES)]
)

CLIP = {'max_norm': 0.1}
RUNS = {
    'plain': {},
    'accumulation-clipping': {'wrapper': {'accumulative_counts': 2, 'clip_grad': CLIP}},
    'with-cp': {'model': {'with_cp': True}},
    'activation-checkpointing': {'cfg': {'activation_checkpointing': ['backbone.depthwise', 'backbone.linear']}},
    'amp-accumulation-clipping': {
        'wrapper': {'type': 'AmpOptimWrapper', 'dtype': 'bfloat16', 'accumulative_counts': 2, 'clip_grad': CLIP}
    },
    'sgd': {'wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}}},
    'ema': {'hooks': ({'type': 'EMAHook'},)},
    'ema-buffers-accumulation': {
        'hooks': ({'type': 'EMAHook', 'update_buffers': True, 'momentum': 0.3, 'priority': 49},),
        'wrapper': {'accumulative_counts': 2},
    },
    'ema-late': {'hooks': ({'type': 'EMAHook', 'begin_iter': 4, 'momentum': 0.3},)},
    'ema-registered-before-the-masks': {'hooks': ({'type': 'EMAHook', 'momentum': 0.3, 'priority': 'VERY_HIGH'},)},
    'stochastic-weight-average': {'hooks': ({'type': 'EMAHook', 'ema_type': 'StochasticWeightAverage'},)},
}


@pytest.fixture
def amp_on_cpu(monkeypatch):
    # AmpOptimWrapper refuses to be built without a GPU, though autocast to bfloat16 works on a CPU.
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)


# Moments and averages are of weights and of units; the other modes have no code for them.
FEW = ('plain', 'amp-accumulation-clipping', 'ema-buffers-accumulation')


@pytest.mark.usefixtures('amp_on_cpu')
@pytest.mark.parametrize(
    ('mode', 'granularity', 'run'),
    [
        *(('dynamic', granularity, run) for granularity in ('weight', 'unit') for run in RUNS),
        *((mode, granularity, run) for mode, granularity in (('fixed', 'unit'), ('dynamic', '2:4')) for run in FEW),
    ],
)
def test_dead_weights_moments_and_averages_are_zero_after_every_step(make_runner, run, mode, granularity):
    settings = dict(RUNS[run])
    history, counts = [], []

    def look(runner):
        assert all(not values.any() for values in dead_values(runner))
        history.append(torch.cat([entry.mask.flatten() for entry in masked(runner)]))
        counts.append([int(entry.mask.sum()) for entry in masked(runner)])
        assert is_of_granularity(granularity, runner.model)

    model = TinyModel(bottleneck=True, **settings.pop('model', {}))
    initial = model.backbone.bottleneck.pointwise_conv1.weight.clone()
    hooks = (*settings.pop('hooks', ()), Watch(look))
    sparsity = {'mode': mode, 'granularity': granularity, **DYNAMIC}
    runner = make_runner(sparsity, model=model, hooks=hooks, max_iters=9, **settings)
    runner.train()
    assert len(history) == 9
    assert all(count == counts[0] for count in counts), 'each layer keeps its count'
    changed = [i + 2 for i, (old, new) in enumerate(pairwise(history)) if not old.equal(new)]
    assert changed == ([3, 6] if mode == 'dynamic' else [])  # not in the last iteration
    layer = model.backbone.bottleneck.pointwise_conv1
    active = layer.weight_mask.expand_as(initial)
    assert (layer.weight[active] != initial[active]).all(), 'the active weights are trained'
    assert not layer.weight[~active].any()


@pytest.mark.parametrize(('initialisation', 'granularity'), [('snip', 'weight'), ('snip', 'unit'), ('erk', 'weight')])
def test_a_density_of_one_is_the_dense_run_bit_for_bit(make_runner, initialisation, granularity):
    """So the batch for SNIP moves neither the order of the data nor any random number, though both are drawn from."""
    runs = []
    whole = {'density': 1.0, 'initialisation': initialisation, 'granularity': granularity}
    for folder, sparsity in {'dense': None, 'sparse': whole}.items():
        torch.manual_seed(7)
        runner = make_runner(sparsity, folder, model=TinyModel(bottleneck=True))
        random.seed(0)
        np.random.seed(0)
        runner.train()
        draws = (random.random(), np.random.rand(), torch.rand(()).item())
        weights = {key: value for key, value in runner.model.state_dict().items() if not key.endswith('_mask')}
        runs.append((draws, weights))
    (dense_draws, dense), (sparse_draws, sparse) = runs
    assert dense_draws == sparse_draws
    assert dense.keys() == sparse.keys()
    for key in dense:
        assert torch.equal(dense[key], sparse[key]), key


@pytest.mark.parametrize(
    'hooks', [(), ({'type': 'EMAHook', 'update_buffers': True, 'momentum': 0.3},)], ids=['plain', 'ema-buffers']
)
@MODES
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(make_runner, mode, granularity, hooks):
    # mmengine saves no generator states: dropout and augmentation would differ after a resume, dense or sparse.
    settings = {'max_iters': 12, 'data': TinyData(noise=0.0), 'hooks': hooks}
    sparsity = {'mode': mode, 'granularity': granularity, **DYNAMIC}
    torch.manual_seed(7)
    whole = make_runner(sparsity, 'whole', model=TinyModel(dropout=0.0, bottleneck=True), **settings)
    whole.train()
    model = TinyModel(dropout=0.0, bottleneck=True)
    settings |= {'load_from': str(Path(whole.work_dir) / 'iter_4.pth'), 'resume': True}
    resumed = make_runner(sparsity, 'resumed', model=model, **settings)
    resumed.train()
    expected, found = (
        torch.load(Path(runner.work_dir) / 'iter_12.pth', weights_only=False) for runner in (whole, resumed)
    )
    for part in ('state_dict', 'ema_state_dict') if hooks else ('state_dict',):
        assert expected[part].keys() == found[part].keys()
        for key in expected[part]:
            assert torch.equal(expected[part][key], found[part][key]), (part, key)
    for index, state in expected['optimizer']['state'].items():
        for key, value in state.items():
            assert torch.equal(value, found['optimizer']['state'][index][key]), (index, key)
    for tag in ('train/density', *(('train/prune_rate', 'train/grown_weights') if mode == 'dynamic' else ())):
        assert whole.message_hub.get_scalar(tag).current() == resumed.message_hub.get_scalar(tag).current()
    changed = any(
        not torch.equal(expected['state_dict'][key], value)
        for key, value in torch.load(Path(whole.work_dir) / 'iter_4.pth', weights_only=False)['state_dict'].items()
        if key.endswith('_mask')
    )
    assert changed == (mode == 'dynamic'), 'masks were updated after the resume'


def test_snip_shares_are_those_of_the_gradient_computed_directly(make_runner):
    data = TinyData(length=4, noise=0.0)  # one batch is the whole set, whatever its order
    model = TinyModel(dropout=0.0)
    weights = [model.backbone.stem.weight, model.backbone.depthwise.weight, model.backbone.linear.weight]
    batch = torch.utils.data.default_collate([data[i] for i in range(4)])
    running_mean = model.backbone.norm.running_mean.clone()
    gradients = torch.autograd.grad(model.train()(**batch, mode='loss')['loss'], weights)
    model.backbone.norm.running_mean.copy_(running_mean)
    scores = [(weight * gradient).abs().flatten() for weight, gradient in zip(weights, gradients, strict=True)]
    total = active_total([score.numel() for score in scores], 0.6)
    layer = torch.cat([torch.full_like(score, index) for index, score in enumerate(scores)])
    kept = layer[torch.cat(scores).argsort(descending=True)[:total]]
    runner = make_runner({'mode': 'fixed'}, model=model, data=data, max_iters=1)
    runner.train()
    assert [int(entry.mask.sum()) for entry in masked(runner)] == kept.long().bincount(minlength=3).tolist()


def test_masks_depend_on_the_seed(make_runner):
    def masks(folder, seed, hook_seed=None):
        runner = make_runner({'seed': hook_seed, 'initialisation': 'uniform'}, folder, seed=seed, max_iters=1)
        runner.train()
        return torch.cat([entry.mask.flatten() for entry in masked(runner)])

    first = masks('a', 1)
    assert torch.equal(first, masks('b', 1))
    assert not torch.equal(first, masks('c', 2))
    assert torch.equal(first, masks('d', 2, hook_seed=1))
    assert torch.equal(masks('e', 0), masks('f', 2, hook_seed=0))


def test_log_and_visualiser_get_the_densities(make_runner):
    runner = make_runner({**DYNAMIC, 'prune_rate_end': 0.4}, max_iters=6)
    runner.train()
    rate = cosine_prune_rate(3, 6, 0.5, 0.4)
    folder = Path(runner.log_dir)
    log = next(folder.glob('*.log')).read_text()
    assert "Sparse training, mode 'dynamic': density" in log
    assert f'Masks updated after iteration 3, prune rate {rate:.4f}' in log
    assert log.count('backbone.depthwise.weight  8x1x5x5') == 2
    scalars = [json.loads(line) for line in (folder / 'vis_data' / 'scalars.json').read_text().splitlines()]
    assert [line['step'] for line in scalars] == [1, 2, 3, 4, 5, 6]
    density = active_total([544], 0.6) / 544
    assert all(line['density'] == density for line in scalars)
    assert scalars[-1]['prune_rate'] == rate
    grown = sum(round(rate * int(entry.mask.sum())) for entry in masked(runner))
    assert scalars[-1]['grown_weights'] == grown


def test_frozen_weights_are_not_replaced(make_runner, tmp_path):
    make_runner({'mode': 'fixed'}, 'first', max_iters=4).train()
    model = TinyModel()
    model.backbone.stem.requires_grad_(False)
    runner = make_runner(
        {'update_interval': 2}, 'second', model=model, max_iters=4, load_from=str(tmp_path / 'first/iter_4.pth')
    )
    before = torch.load(tmp_path / 'first/iter_4.pth', weights_only=False)['state_dict']
    runner.train()
    assert torch.equal(model.backbone.stem.weight_mask, before['backbone.stem.weight_mask'])
    assert not torch.equal(model.backbone.linear.weight_mask, before['backbone.linear.weight_mask'])


def test_weights_that_get_no_new_masks(make_runner):
    model = TinyModel()
    model.backbone.linear.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'backbone.linear.weight'\], are frozen"):
        make_runner({}, model=model).train()
    make_runner({'exclude': ['linear']}, 'excluded', model=model, max_iters=1).train()
    model = TinyModel()
    model.backbone.unused = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no gradient, such as \['backbone.unused.weight'\]"):
        make_runner({}, model=model).train()


def test_a_layer_without_active_weights_is_named(make_runner):
    model = TinyModel()
    model.backbone.gamma.data.zero_()  # every score is zero: the earlier layers win
    runner = make_runner({'mode': 'fixed'}, model=model, max_iters=1)
    runner.train()
    counts = {entry.name: int(entry.mask.sum()) for entry in masked(runner)}
    assert [name for name, count in counts.items() if not count] == ['backbone.linear.weight']
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert "snip leaves no active weight in ['backbone.linear.weight']" in log
    assert "mode='fixed', but no checkpoint was loaded: the masks are drawn now" in log


def test_what_grows_has_its_first_values_in_every_average(make_runner):
    """From zero an average would need its whole horizon to reach them."""
    model, masks, checked = TinyModel(bottleneck=True), [], []

    def look(runner):
        layer = model.backbone.bottleneck.pointwise_conv1
        masks.append(layer.bias_mask.clone())
        assert all(not values.any() for values in dead_values(runner))
        grown = masks[-1] & ~masks[0]
        for hook in runner.hooks:
            if len(masks) == 2 and hasattr(hook, 'ema_model'):
                average = hook.ema_model.module.backbone.bottleneck.pointwise_conv1
                torch.testing.assert_close(average.weight[grown], layer.weight[grown])
                checked.append(hook)

    hooks = (*({'type': 'EMAHook', 'momentum': momentum} for momentum in (1e-4, 1e-3)), Watch(look))
    make_runner({'granularity': 'unit', 'update_interval': 2}, model=model, hooks=hooks, max_iters=3).train()
    assert (masks[1] & ~masks[0]).any()
    assert len(checked) == len(set(checked)) == 2


def test_wrong_arguments_are_explained(make_runner):
    for argument, message in (
        ({'mode': 'sparse'}, 'mode must be one of'),
        ({'initialisation': 'random'}, "'snip', 'erk', 'uniform'"),
        ({'granularity': 'channel'}, "'weight', 'unit', '2:4'"),
        *(({'density': density}, 'share of active weights') for density in (0, 40)),
        *(
            (rates, 'prune_rate_end <= prune_rate')
            for rates in ({'prune_rate': 0.001}, {'prune_rate': 1.1}, {'prune_rate_end': -0.1})
        ),
        *(({interval: 0}, 'at least 1') for interval in ('update_interval', 'table_interval')),
        ({'exclude': 'stem'}, 'a list of strings'),
    ):
        with pytest.raises(ValueError, match=message):
            make_runner(argument)


def test_every_update_has_random_numbers_of_its_own(make_runner, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        granularities,
        'prune_and_grow',
        lambda weight, mask, rate, generator: seeds.append(generator.initial_seed()) or 0,
    )
    make_runner({'update_interval': 2}, max_iters=8).train()
    assert len(set(seeds)) == len(seeds) / 3 == 3, 'one of each update, for all three parameters'
    grown = []
    monkeypatch.setattr(
        granularities.UnitLayer, 'start_grown', lambda layer, averages, source: grown.append(source.initial_seed())
    )
    units = TinyModel(bottleneck=True)
    make_runner({'granularity': 'unit', 'update_interval': 2}, 'units', model=units, max_iters=8).train()
    assert len(set(grown) - set(seeds)) == len(grown) == 3, 'and others for what grows'


@pytest.mark.parametrize(('interval', 'tables'), [(1, 5), (2, 3), (9, 1)])
def test_table_is_logged_at_every_so_many_updates(make_runner, interval, tables):
    runner = make_runner({'update_interval': 1, 'table_interval': interval}, max_iters=5)
    runner.train()
    for parameter in runner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    runner.optim_wrapper.optimizer.step()
    assert all(entry.weight[~entry.mask].all() for entry in masked(runner)), 'nothing is masked after the training'
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert log.count('Masks updated') == 4
    assert log.count('backbone.depthwise.weight  8x1x5x5') == tables  # the first is that of the start


@pytest.mark.parametrize(('size', 'samples'), [(None, 4), (6, 6)])
def test_snip_takes_the_given_number_of_samples(make_runner, size, samples):
    class Counting(TinyData):
        taken = 0

        def __getitem__(self, index):
            Counting.taken += 1
            return super().__getitem__(index)

    make_runner({'mode': 'fixed', 'snip_batch_size': size}, data=Counting(), max_iters=1).train()
    assert Counting.taken == samples + 4  # four train
