"""Checkpoints of units: taken for fixed masks of any granularity, shrunk, evaluated and trained on."""

from pathlib import Path

import pytest
import torch

from mmpelk.sparsity import fold_masks
from mmpelk.sparsity.publish import publish_checkpoint
from tests.commands import call
from tests.paths import TOOLS
from tests.sparsity.tiny import TinyModel, Watch, build_runner, dead_values, load_masks, masked

EXPORT = TOOLS / 'export_dense.py'


@pytest.fixture(scope='module')
def unit_checkpoint(tmp_path_factory) -> Path:
    """Of four iterations with units, and an average."""
    folder, hooks = tmp_path_factory.mktemp('units'), ({'type': 'EMAHook', 'momentum': 0.3},)
    sparsity = {'granularity': 'unit', 'update_interval': 2}
    build_runner(folder, sparsity, model=TinyModel(bottleneck=True), hooks=hooks, max_iters=4).train()
    return folder / 'iter_4.pth'


@pytest.mark.parametrize('how', ['load_from', 'init_cfg'])
@pytest.mark.parametrize('granularity', ['weight', 'unit'])
def test_fixed_masks_may_be_those_of_units(make_runner, unit_checkpoint, how, granularity):
    """The recipes of segmentation and detection name no granularity; where the file has no masks, weights are dense."""

    def look(runner):
        assert all(not values.any() for values in dead_values(runner))

    init = {'type': 'Pretrained', 'checkpoint': str(unit_checkpoint), 'prefix': 'backbone.'}
    source = {'load_from': str(unit_checkpoint)} if how == 'load_from' else {}
    model = TinyModel(backbone_init=None if source else init, bottleneck=True)
    hooks = ({'type': 'EMAHook', 'momentum': 0.3}, Watch(look))
    runner = make_runner({'mode': 'fixed', 'granularity': granularity}, 'tuned', model=model, hooks=hooks, **source)
    runner.train()
    expected = load_masks(unit_checkpoint)
    for entry in masked(runner):
        known = expected.get(f'{entry.name}_mask')
        assert entry.mask.all() if known is None else torch.equal(entry.mask, known.expand_as(entry.mask))
    assert len(masked(runner)) == (5 if granularity == 'weight' else 3)
    assert not model.backbone.bottleneck.pointwise_conv1.weight_mask.all()


def test_masks_of_another_granularity_are_an_explained_error(make_runner, tmp_path):
    make_runner({}, 'weights', model=TinyModel(bottleneck=True), max_iters=4).train()
    path = str(tmp_path / 'weights' / 'iter_4.pth')
    for sparsity, message in (
        ({'granularity': 'unit'}, "granularity='unit', but the checkpoint's masks are of another one: backbone.b"),
        ({'granularity': '2:4'}, "granularity='2:4', but the checkpoint's masks are of another one: more than two of"),
        ({'granularity': '2:4', 'mode': 'fixed'}, 'another one'),
    ):
        runner = make_runner(sparsity, 'tuned', model=TinyModel(bottleneck=True), load_from=path)
        with pytest.raises(ValueError, match=message):
            runner.train()


@pytest.mark.parametrize(
    ('sparsity', 'hooks'),
    [
        ({'mode': 'dense'}, ()),
        ({'mode': 'fixed'}, ({'type': 'EMAHook'},)),
        ({'mode': 'fixed', 'granularity': 'unit'}, ({'type': 'EMAHook'},)),
    ],
    ids=['dense', 'fixed', 'units'],
)
def test_a_shrunk_checkpoint_is_evaluated_in_any_mode(make_runner, unit_checkpoint, tmp_path, sparsity, hooks):
    checkpoint = torch.load(unit_checkpoint, weights_only=False)
    torch.save(publish_checkpoint(checkpoint, shrink=True), tmp_path / 'shrunk.pth')
    model = TinyModel(bottleneck=True)
    path = str(tmp_path / 'shrunk.pth')
    runner = make_runner(sparsity, 'test', model=model, hooks=hooks, load_from=path)
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_test')
    whole = TinyModel(bottleneck=True).eval()
    whole.load_state_dict(fold_masks(checkpoint['state_dict']))
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert model.backbone.bottleneck.pointwise_conv1.out_features < 40
    torch.testing.assert_close(model.eval()(images, None)[0], whole(images, None)[0], rtol=0, atol=1e-5)


def test_a_shrunk_checkpoint_is_trained_with_its_average(make_runner, unit_checkpoint, tmp_path):
    torch.save(
        publish_checkpoint(torch.load(unit_checkpoint, weights_only=False), shrink=True), tmp_path / 'shrunk.pth'
    )
    model = TinyModel(bottleneck=True)
    runner = make_runner({'mode': 'dense'}, 'tuned', model=model, hooks=({'type': 'EMAHook', 'momentum': 0.3},),
                         load_from=str(tmp_path / 'shrunk.pth'), max_iters=4)  # fmt: skip
    runner.train()
    before = torch.load(tmp_path / 'shrunk.pth', weights_only=False)['state_dict']
    tuned = torch.load(tmp_path / 'tuned' / 'iter_4.pth', weights_only=False)
    for part, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
        weight = tuned[part][f'{prefix}backbone.bottleneck.pointwise_conv1.weight']
        assert weight.shape == before['backbone.bottleneck.pointwise_conv1.weight'].shape
        assert not torch.equal(weight, before['backbone.bottleneck.pointwise_conv1.weight'])


@pytest.mark.parametrize('weights', ['ema', 'last'])
def test_a_shrunk_file_has_the_active_units_alone(unit_checkpoint, tmp_path, weights):
    printed = call(EXPORT, unit_checkpoint, 'small.pth', '--shrink', '--weights', weights, cwd=tmp_path)
    exported = torch.load(tmp_path / 'small.pth', weights_only=True)
    whole = publish_checkpoint(torch.load(unit_checkpoint, weights_only=False), weights)['state_dict']
    first, second = (f'backbone.bottleneck.pointwise_conv{i}' for i in (1, 2))
    active = whole[f'{second}.weight'].any(0)
    assert 1 < int(active.sum()) <= int(load_masks(unit_checkpoint)[f'{first}.bias_mask'].sum()) < 40
    assert exported['meta']['sparsity']['hidden_channels'] == {'backbone.bottleneck': int(active.sum())}
    assert f'{int(active.sum())} hidden units left in 1 blocks' in printed
    expected = whole | {
        f'{first}.weight': whole[f'{first}.weight'][active],
        f'{first}.bias': whole[f'{first}.bias'][active],
        f'{second}.weight': whole[f'{second}.weight'][:, active],
    }
    assert expected.keys() == exported['state_dict'].keys()
    assert all(torch.equal(value, exported['state_dict'][key]) for key, value in expected.items())


def test_what_cannot_be_shrunk_is_refused(tmp_path):
    for options, message in (
        ([], "granularity='unit', or export without shrinking"),
        (['--keep-masks'], 'leave them out'),
    ):
        torch.save({'state_dict': TinyModel(bottleneck=True).state_dict()}, tmp_path / 'dense.pth')
        assert message in call(EXPORT, 'dense.pth', 'out.pth', '--shrink', *options, cwd=tmp_path, code=1)
