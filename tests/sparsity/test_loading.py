"""Checkpoints with and without masks meet runs with and without."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_state_dict
from torch import nn

from mmpelk.sparsity import GRANULARITIES, attach_masks, fold_masks
from mmpelk.sparsity.loading import LoadTracker
from tests.sparsity.tiny import TinyModel, Watch, build_runner, dead_values, draw_masks, load_masks, masked


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A sparse one, a dense one, and the sparse one with its masks folded in, after four iterations each."""
    folder = tmp_path_factory.mktemp('checkpoints')
    build_runner(folder / 'sparse', {'update_interval': 2}, max_iters=4).train()
    build_runner(folder / 'dense', max_iters=4).train()
    paths = {name: folder / name / 'iter_4.pth' for name in ('sparse', 'dense')}
    paths['folded'] = folder / 'folded.pth'
    state = torch.load(paths['sparse'], weights_only=False)['state_dict']
    torch.save({'state_dict': fold_masks(state)}, paths['folded'])
    return paths


def start(make_runner, sparsity, path, how, **settings):
    """A fine-tuning run from a checkpoint, by one of the ways that mmengine has."""
    if how == 'load_from':
        return make_runner(sparsity, f'tuned-{how}', load_from=str(path), **settings)
    init = {'type': 'Pretrained', 'checkpoint': str(path), 'prefix': 'backbone.'}
    return make_runner(sparsity, f'tuned-{how}', model=TinyModel(backbone_init=init), **settings)


def log_of(runner) -> str:
    return next(Path(runner.log_dir).glob('*.log')).read_text()


HOW = pytest.mark.parametrize('how', ['load_from', 'init_cfg'])


@HOW
@pytest.mark.parametrize('old_torch', [False, True])
def test_fixed_masks_come_from_the_checkpoint_and_stay(make_runner, checkpoints, how, old_torch, monkeypatch):
    def look(runner):
        assert all(not values.any() for values in dead_values(runner))

    if old_torch:  # versions before 2.5 lack the public name
        monkeypatch.delattr(nn.Module, 'register_load_state_dict_pre_hook', raising=False)
    hooks = ({'type': 'EMAHook'}, Watch(look))
    runner = start(make_runner, {'mode': 'fixed', 'update_interval': 2}, checkpoints['sparse'], how, hooks=hooks)
    runner.train()
    expected = load_masks(checkpoints['sparse'])
    found = {f'{entry.name}_mask': entry.mask for entry in masked(runner)}
    assert found.keys() == expected.keys()
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())


@HOW
def test_a_checkpoint_of_the_other_kind_is_an_explained_error(make_runner, checkpoints, how):
    for mode in ('fixed', 'dynamic'):
        with pytest.raises(ValueError, match=r"checkpoint is dense.*3 of 3.*adopt_zeros=True.*mode='dense'"):
            start(make_runner, {'mode': mode}, checkpoints['dense'], how).train()
    with pytest.raises(ValueError, match=r"checkpoint is sparse.*3 param.*mode='fixed'.*tools/export_dense.py"):
        start(make_runner, {'mode': 'dense'}, checkpoints['sparse'], how).train()


@HOW
@pytest.mark.parametrize('name', ['dense', 'folded'])
def test_a_checkpoint_without_masks_trains_densely(make_runner, checkpoints, how, name):
    runner = start(make_runner, {'mode': 'dense'}, checkpoints[name], how, max_iters=2)
    runner.train()
    assert not any(key.endswith('_mask') for key in runner.model.state_dict())


@HOW
def test_zeros_are_adopted_when_asked_and_the_densities_logged(make_runner, checkpoints, how):
    runner = start(make_runner, {'mode': 'fixed', 'adopt_zeros': True}, checkpoints['folded'], how)
    runner.train()
    expected = load_masks(checkpoints['sparse'])
    state = torch.load(checkpoints['sparse'], weights_only=False)['state_dict']
    for entry in masked(runner):
        # A weight that was just grown is still zero in the checkpoint: it is lost, as the documentation says.
        assert torch.equal(entry.mask, expected[f'{entry.name}_mask'] & (state[entry.name] != 0))
    log = log_of(runner)
    table = log[log.index('Masks adopted from the zeros') :]
    for entry in masked(runner):
        row = next(line for line in table.splitlines() if line.startswith(entry.name))
        assert row.split()[-2:] == [str(int(entry.mask.sum())), f'{entry.mask.float().mean():.4f}']


def test_zeros_are_adopted_where_a_checkpoint_of_masks_has_none(make_runner, checkpoints, tmp_path):
    state = torch.load(checkpoints['folded'], weights_only=False)['state_dict']
    masks = load_masks(checkpoints['sparse'])
    del masks['backbone.linear.weight_mask']
    stem = state['backbone.stem.weight'].flatten()
    stem[masks['backbone.stem.weight_mask'].flatten().nonzero()[0]] = 0  # active, as a weight that has just been grown
    torch.save({'state_dict': state | masks}, tmp_path / 'partial.pth')
    settings = {'mode': 'fixed', 'adopt_zeros': True}
    runner = start(make_runner, settings, tmp_path / 'partial.pth', 'load_from', max_iters=1)
    runner.train()
    linear = runner.model.backbone.linear
    assert torch.equal(linear.weight_mask, state['backbone.linear.weight'] != 0)
    assert not linear.weight_mask.all()
    assert all(torch.equal(runner.model.get_buffer(name), mask) for name, mask in masks.items()), 'of the others, masks'


def test_parts_of_masks_give_a_warning(make_runner, checkpoints, tmp_path):
    runner = start(make_runner, {'mode': 'fixed', 'adopt_zeros': True}, checkpoints['dense'], 'load_from')
    runner.train()
    assert 'the checkpoint is dense, and so are these masks' in log_of(runner)
    assert all(entry.mask.all() for entry in masked(runner)), 'none is drawn'

    state = torch.load(checkpoints['sparse'], weights_only=False)['state_dict']
    partial = {key: value for key, value in state.items() if 'linear' not in key}
    torch.save({'state_dict': partial}, tmp_path / 'partial.pth')
    runner = start(make_runner, {'mode': 'fixed'}, tmp_path / 'partial.pth', 'load_from', max_iters=2)
    runner.train()
    assert runner.model.backbone.linear.weight_mask.all()
    assert not runner.model.backbone.stem.weight_mask.all()
    assert 'nothing for 1 parameters' in log_of(runner)

    state.pop('backbone.linear.weight_mask')
    torch.save({'state_dict': state}, tmp_path / 'partial.pth')
    runner = start(make_runner, {'mode': 'fixed'}, tmp_path / 'partial.pth', 'load_from', max_iters=1)
    runner.train()
    assert (
        "1 parameters, such as ['backbone.linear.weight'], have no masks in the checkpoint: they are dense"
        in log_of(runner)
    )
    assert runner.model.backbone.linear.weight_mask.all()
    with pytest.raises(ValueError, match='weights without masks for 1 of 3 parameters'):
        start(make_runner, {'mode': 'dynamic'}, tmp_path / 'partial.pth', 'load_from', max_iters=1).train()


def test_a_later_checkpoint_overrides_an_earlier_one(make_runner, checkpoints, tmp_path):
    """Masks through ``init_cfg``, then a dense ``load_from``: the weights in use are dense."""
    init = {'type': 'Pretrained', 'checkpoint': str(checkpoints['sparse']), 'prefix': 'backbone.'}
    model = TinyModel(backbone_init=init)
    runner = make_runner({'mode': 'fixed'}, 'both', model=model, load_from=str(checkpoints['dense']))
    with pytest.raises(ValueError, match='checkpoint is dense'):
        runner.train()
    state = torch.load(checkpoints['sparse'], weights_only=False)['state_dict']
    del state['backbone.linear.weight_mask']
    torch.save({'state_dict': state}, tmp_path / 'partial.pth')
    model = TinyModel(backbone_init=init)
    make_runner({'mode': 'fixed'}, 'partial', model=model, load_from=str(tmp_path / 'partial.pth'), max_iters=1).train()
    assert model.backbone.linear.weight_mask.all()
    assert not model.backbone.stem.weight_mask.all()


@pytest.mark.parametrize(
    ('mode', 'name'), [('fixed', 'sparse'), ('dense', 'sparse'), ('fixed', 'folded'), (None, 'sparse')]
)
def test_evaluation_takes_either_checkpoint_in_any_mode(make_runner, checkpoints, mode, name, capsys):
    # Stands for a test loop: what matters is what the model computes after loading.
    runner = make_runner(None if mode is None else {'mode': mode}, 'test', load_from=str(checkpoints[name]))
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_test')
    model = runner.model.eval()
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    outputs = model(images, None)[0]
    reference = TinyModel().eval()
    reference.load_state_dict(torch.load(checkpoints['folded'], weights_only=False)['state_dict'])
    assert torch.equal(outputs, reference(images, None)[0])
    # Without the hook, mmengine reports the masks and goes on: the inactive weights are zero in the checkpoint.
    assert ('weight_mask' in capsys.readouterr().out) == (mode is None and name == 'sparse')


def test_a_backbone_may_load_strictly(make_runner, checkpoints):
    """Some backbones load their pre-trained weights themselves, and insist on every key."""
    model = TinyModel()
    state = torch.load(checkpoints['folded'], weights_only=False)['state_dict']
    model.init_weights = lambda: model.load_state_dict(state, strict=True)
    make_runner({'mode': 'fixed', 'adopt_zeros': True}, 'strict', model=model, max_iters=1).train()
    assert not model.backbone.linear.weight_mask.all()


def test_training_twice_keeps_the_masks(make_runner):
    """Those of a layer that is dense as well."""
    runner = make_runner({'mode': 'fixed', 'initialisation': 'erk'}, max_iters=2)
    runner.train()
    assert {bool(entry.mask.all()) for entry in masked(runner)} == {True, False}
    before = [entry.mask.clone() for entry in masked(runner)]
    again = make_runner(
        {'mode': 'fixed', 'initialisation': 'erk', 'seed': 99}, 'again', model=runner.model, max_iters=2
    )
    again.train()
    assert all(torch.equal(old, entry.mask) for old, entry in zip(before, masked(again), strict=True))


def test_a_model_with_averages_of_its_own_is_refused(make_runner):
    model = TinyModel()
    model.teacher = ExponentialMovingAverage(model.backbone)
    with pytest.raises(ValueError, match='averaged copies of its own parts'):
        make_runner({}, model=model).train()


class TestWhatIsRecorded:
    """By the tracker alone, of a layer that owns a masked weight and another layer with one."""

    @pytest.fixture
    def network(self):
        network = nn.MultiheadAttention(8, 2)
        return network, draw_masks(network, None)

    def test_masks_of_a_layer_within_a_layer(self, network):
        model, parameters = network
        other = nn.MultiheadAttention(8, 2)
        draw_masks(other, None)
        state = other.state_dict() | {'in_proj_bias_mask': torch.ones(24, dtype=torch.bool)}  # which has no place here
        tracker = LoadTracker(parameters)
        model.load_state_dict(state)  # strict
        loaded = tracker.close()
        names = {'in_proj_weight', 'out_proj.weight'}
        assert (loaded.weights, loaded.masks, loaded.misfits, loaded.without_masks) == (names, names, set(), set())
        assert all(torch.equal(entry.mask, state[f'{entry.name}_mask']) for entry in parameters)

    def test_the_latest_load_of_the_model_itself_counts(self, network):
        model, parameters = network
        own = {entry.name: entry.mask.clone() for entry in parameters}
        whole = copy.deepcopy(model.state_dict())
        entry = parameters[0]
        by_unit = whole | {'in_proj_weight_mask': torch.ones(24, 1, dtype=torch.bool)}
        folded = fold_masks(whole)
        tracker = LoadTracker(parameters)
        for state, without_masks in (
            (whole | {'in_proj_weight_mask': own['in_proj_weight'].float()}, {'in_proj_weight'}),  # of another sort
            (folded, set(own)),
            (by_unit, set()),
            (whole, set()),
        ):
            model.load_state_dict(state)
            loaded = tracker.loaded
            assert (loaded.weights, loaded.without_masks, loaded.misfits) == (set(own), without_masks, set())
            assert entry.mask.all() == (state is by_unit)
            assert torch.equal(parameters[1].mask, own['out_proj.weight'])
        copy.deepcopy(model).load_state_dict(folded)
        assert not tracker.loaded.without_masks, 'a copy is another model'
        loaded = tracker.close()
        model.load_state_dict(whole | {'out_proj.weight': folded['out_proj.weight']})
        assert loaded.masks == set(own)
        assert not any(module._load_state_dict_pre_hooks for module in model.modules())

    def test_masks_of_another_granularity_are_forgotten_with_the_next_load(self):
        block = TinyModel(bottleneck=True).backbone.bottleneck
        (layer,) = GRANULARITIES['unit'](block, None, ())
        attach_masks(layer.parameters)
        state, name = block.state_dict(), 'pointwise_conv1.weight'
        tracker = LoadTracker(layer.parameters)
        block.load_state_dict(state | {f'{name}_mask': torch.ones(40, 8, dtype=torch.bool)})
        assert tracker.loaded.misfits == {name}
        block.load_state_dict(state)
        assert (tracker.loaded.misfits, tracker.loaded.without_masks) == (set(), set())

    def test_weights_of_another_shape_are_not_loaded(self, network):
        model, parameters = network
        tracker = LoadTracker(parameters)
        state = {'in_proj_weight': torch.ones(24, 9), 'out_proj.weight': torch.ones(8, 8)}
        load_state_dict(model, state)  # mmengine's, which goes on
        assert tracker.close().weights == {'out_proj.weight'}
