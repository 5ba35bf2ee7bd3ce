"""Published checkpoints: masks folded in or kept, EMA or last weights, with or without the optimizer."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmpelk.models import PeLK
from mmpelk.models.weights.facts import facts_of
from mmpelk.sparsity import find_parameters, fold_masks, mask_keys
from mmpelk.sparsity.publish import add_hash, publish_checkpoint, save_safetensors
from tests.commands import call
from tests.paths import TOOLS
from tests.sparsity.tiny import TinyModel, build_runner, draw_masks

SCHEDULE = {'param_scheduler': {'type': 'LinearLR', 'by_epoch': False}}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Checkpoint of a sparse run with EMA, and the run's last weights."""
    hooks = ({'type': 'EMAHook', 'momentum': 0.3},)
    runner = build_runner(tmp_path_factory.mktemp('run'), {'update_interval': 2}, hooks=hooks, max_iters=4, **SCHEDULE)
    runner.train()
    return Path(runner.work_dir) / 'iter_4.pth', runner.model.state_dict()


@pytest.fixture
def export(trained, tmp_path):
    """``tools/export_dense.py`` on that checkpoint: a function of the tool's arguments."""
    return lambda *words, code=0: call(TOOLS / 'export_dense.py', trained[0], *words, cwd=tmp_path, code=code)


@pytest.mark.parametrize('weights', ['ema', 'last', None])
def test_pth_loads_strictly_into_a_model_without_masks(trained, export, tmp_path, weights):
    export('model.pth', *([] if weights is None else ['--weights', weights]))
    checkpoint, last = torch.load(trained[0], weights_only=False), trained[1]
    exported = torch.load(tmp_path / 'model.pth', weights_only=True)  # plain data, no pickled code
    assert exported.keys() == {'meta', 'state_dict'}
    TinyModel().load_state_dict(exported['state_dict'])
    expected = fold_masks(last if weights == 'last' else checkpoint['state_dict'])
    assert expected.keys() == exported['state_dict'].keys()
    assert all(torch.equal(value, exported['state_dict'][key]) for key, value in expected.items())
    assert not torch.equal(last['head.weight'], checkpoint['state_dict']['head.weight']), 'EMA differs from last'
    active = sum(int(last[f'{entry.name}_mask'].sum()) for entry in find_parameters(TinyModel()))
    assert exported['meta']['sparsity'] == {'density': active / 544, 'masks': False}
    assert exported['meta']['iter'] == 4


def test_kept_masks_start_a_sparse_fine_tuning(trained, export, make_runner, tmp_path):
    export('model.pth', '--keep-masks')
    runner = make_runner({'mode': 'fixed'}, 'tuned', load_from=str(tmp_path / 'model.pth'), max_iters=1)
    runner.train()
    for entry in find_parameters(runner.model):
        assert torch.equal(entry.mask, trained[1][f'{entry.name}_mask'])


def test_kept_optimizer_resumes(export, make_runner, tmp_path):
    export('model.pth', '--keep-optimizer', '--weights', 'last')
    exported = torch.load(tmp_path / 'model.pth', weights_only=False)
    assert {'optimizer', 'param_schedulers', 'message_hub'} <= exported.keys()
    runner = make_runner(None, 'resumed', load_from=str(tmp_path / 'model.pth'), resume=True, max_iters=6, **SCHEDULE)
    runner.train()
    assert runner.iter == 6


def test_safetensors_holds_the_same_tensors(export, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    export('model.pth', 'sub/model.safetensors')
    expected = torch.load(tmp_path / 'model.pth', weights_only=True)['state_dict']
    found = safetensors.load_file(tmp_path / 'sub' / 'model.safetensors')
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    with pytest.importorskip('safetensors').safe_open(tmp_path / 'sub' / 'model.safetensors', 'pt') as file:
        assert float(file.metadata()['density']) == pytest.approx(0.6, abs=1e-3)


def test_hash_is_added_to_the_name(export, tmp_path):
    export('model.pth', '--hash')
    (written,) = tmp_path.glob('model-????????.pth')
    assert not mask_keys(torch.load(written, weights_only=True)['state_dict'])


def test_mistakes_are_explained(trained, export):
    for arguments, message in (
        (['model.bin'], 'must end in .pth or .safetensors'),
        (['{source}'], 'is the checkpoint itself'),
        (['{source.parent}/../{source.parent.name}/{source.name}'], 'is the checkpoint itself'),
        (['model.pth', '--shrink', '--keep-optimizer', '--weights', 'last'], 'leave them out'),
        (['model.pth', '--keep-optimizer'], "weights='last'"),
        (['model.safetensors', '--keep-optimizer', '--weights', 'last'], 'export the optimizer state as .pth'),
    ):
        assert message in export(*(word.format(source=trained[0]) for word in arguments), code=1)


def test_averaged_weights_that_are_not_there_are_an_error():
    with pytest.raises(ValueError, match='trained without EMAHook'):
        publish_checkpoint({'state_dict': TinyModel().state_dict()}, 'ema')


def test_what_is_said_of_a_published_network(tmp_path):
    safetensors = pytest.importorskip('safetensors')
    network = nn.ModuleDict(dict(backbone=PeLK(depths=(1,), channels=(8,), kernel_sizes=(9,))))
    for sparse in (False, True):
        if sparse:
            draw_masks(network)
        checkpoint = dict(meta=dict(dataset_meta=dict(classes=['a'])), state_dict=network.state_dict())
        for keep_masks in (False, True):
            published = publish_checkpoint(checkpoint, keep_masks=keep_masks)
            assert published['meta']['sparsity']['masks'] == (sparse and keep_masks)
            state = published['state_dict']
            assert bool(mask_keys(state)) == (sparse and keep_masks)
            folded = fold_masks(checkpoint['state_dict'])
            assert all(torch.equal(state[key], value) for key, value in folded.items()), 'inactive weights are zero'
            assert facts_of(published['state_dict']) == facts_of(checkpoint['state_dict']) != {}
    save_safetensors(published, tmp_path / 'a.b.safetensors')
    with safetensors.safe_open(tmp_path / 'a.b.safetensors', 'pt') as file:
        assert json.loads(file.metadata()['dataset_meta']) == dict(classes=['a'])
    digest = hashlib.sha256((tmp_path / 'a.b.safetensors').read_bytes()).hexdigest()
    assert add_hash(tmp_path / 'a.b.safetensors') == tmp_path / f'a.b-{digest[:8]}.safetensors'
    assert [path.name for path in tmp_path.iterdir()] == [f'a.b-{digest[:8]}.safetensors']
