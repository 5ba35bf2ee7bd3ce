"""Published checkpoints: masks folded in or kept, EMA or last weights, with or without the optimizer."""

from pathlib import Path

import pytest
import torch

from mmpelk.sparsity import find_parameters, fold_masks, mask_keys
from tests.commands import call
from tests.paths import TOOLS
from tests.sparsity.tiny import TinyModel


@pytest.fixture
def export(make_runner, tmp_path):
    """``tools/export_dense.py`` on a checkpoint of a sparse run with EMA: a function of the tool's arguments."""
    runner = make_runner({'update_interval': 2}, hooks=({'type': 'EMAHook', 'momentum': 0.3},), max_iters=4)
    runner.train()
    source = Path(runner.work_dir) / 'iter_4.pth'

    def run(*arguments: object) -> dict:
        call(TOOLS / 'export_dense.py', source, *arguments, cwd=tmp_path)
        return torch.load(source, weights_only=False)

    run.last = {key: value.clone() for key, value in runner.model.state_dict().items()}
    return run


@pytest.mark.parametrize('weights', ['ema', 'last', None])
def test_pth_loads_strictly_into_a_model_without_masks(export, tmp_path, weights):
    options = [] if weights is None else ['--weights', weights]
    checkpoint = export(tmp_path / 'model.pth', *options)
    exported = torch.load(tmp_path / 'model.pth', weights_only=True)  # plain data, no pickled code
    assert exported.keys() == {'meta', 'state_dict'}
    TinyModel().load_state_dict(exported['state_dict'])
    expected = fold_masks(export.last if weights == 'last' else checkpoint['state_dict'])
    assert expected.keys() == exported['state_dict'].keys()
    assert all(torch.equal(value, exported['state_dict'][key]) for key, value in expected.items())
    assert not torch.equal(export.last['head.weight'], checkpoint['state_dict']['head.weight']), 'EMA differs from last'
    live = sum(int(export.last[f'{entry.name}_mask'].sum()) for entry in find_parameters(TinyModel()))
    assert exported['meta']['sparsity'] == {'density': live / 544, 'masks': False}
    assert exported['meta']['iter'] == 4


def test_kept_masks_start_a_sparse_fine_tuning(export, make_runner, tmp_path):
    export(tmp_path / 'model.pth', '--keep-masks')
    runner = make_runner({'mode': 'fixed'}, 'tuned', load_from=str(tmp_path / 'model.pth'), max_iters=1)
    runner.train()
    for entry in find_parameters(runner.model):
        assert torch.equal(entry.mask, export.last[f'{entry.name}_mask'])


def test_kept_optimizer_resumes(export, make_runner, tmp_path):
    export(tmp_path / 'model.pth', '--keep-optimizer', '--weights', 'last')
    exported = torch.load(tmp_path / 'model.pth', weights_only=False)
    assert {'optimizer', 'message_hub'} <= exported.keys()
    runner = make_runner(None, 'resumed', load_from=str(tmp_path / 'model.pth'), resume=True, max_iters=6)
    runner.train()
    assert runner.iter == 6


def test_safetensors_holds_the_same_tensors(export, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    export(tmp_path / 'model.pth', tmp_path / 'sub' / 'model.safetensors')
    expected = torch.load(tmp_path / 'model.pth', weights_only=True)['state_dict']
    found = safetensors.load_file(tmp_path / 'sub' / 'model.safetensors')
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    with pytest.importorskip('safetensors').safe_open(tmp_path / 'sub' / 'model.safetensors', 'pt') as file:
        assert float(file.metadata()['density']) == pytest.approx(0.6, abs=1e-3)


def test_hash_is_added_to_the_name(export, tmp_path):
    export(tmp_path / 'model.pth', '--hash')
    (written,) = tmp_path.glob('model-????????.pth')
    assert not mask_keys(torch.load(written, weights_only=True)['state_dict'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['model.bin'], 'must end in .pth or .safetensors'),
        (['{source}'], 'is the checkpoint itself'),
        (['model.pth', '--keep-optimizer'], "weights='last'"),
        (['model.safetensors', '--keep-optimizer', '--weights', 'last'], 'export the optimizer state as .pth'),
    ],
    ids=['suffix', 'same-file', 'optimizer-of-other-weights', 'optimizer-in-safetensors'],
)
def test_mistakes_are_explained(export, tmp_path, arguments, message):
    source = tmp_path / 'run' / 'iter_4.pth'
    words = [word.format(source=source) for word in arguments]
    assert message in call(TOOLS / 'export_dense.py', source, *words, cwd=tmp_path, code=1)


def test_averaged_weights_that_are_not_there_are_an_error(make_runner, tmp_path):
    from mmpelk.sparsity.export import export_checkpoint

    make_runner({}, max_iters=4).train()
    checkpoint = torch.load(tmp_path / 'run' / 'iter_4.pth', weights_only=False)
    with pytest.raises(ValueError, match='trained without EMAHook'):
        export_checkpoint(checkpoint, 'ema')
