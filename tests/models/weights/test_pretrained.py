"""``PeLK.from_pretrained``, ``save_pretrained`` and ``push_to_hub``."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.config import ConfigDict
from torch import nn
from torch.nn.utils import prune

from mmpelk.errors import UserError
from mmpelk.models import PeLK
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.models.weights.checkpoint import write_safetensors
from mmpelk.models.weights.facts import facts_of
from mmpelk.sparsity import apply_masks
from tests.sparsity.tiny import draw_masks

pytest.importorskip('huggingface_hub', reason='pip install -e .[hub]')
from mmpelk.models.weights.publication import state_of

SMALL: dict[str, Any] = dict(depths=(1, 2), channels=(8, 12), kernel_sizes=(13, 7))


def network(**arguments: Any) -> PeLK:
    """A small one with everything away from its initial value."""
    torch.manual_seed(0)
    model = PeLK(**SMALL | arguments)
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value, 0.1, 0.9)
    return model.eval()


def assert_comes_back(model: PeLK, folder: Path, **arguments: Any) -> PeLK:
    model.save_pretrained(folder)
    assert f"PeLK.from_pretrained('{folder.name}')" in (folder / 'README.md').read_text()
    other = PeLK.from_pretrained(folder, **arguments)
    assert not other.training
    want, got = model.state_dict(), other.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(value, got[key]) for key, value in want.items())
    image = torch.rand(1, model.downsample_layers[0][0].in_channels, 37, 50)
    for out, expected in zip(other(image), model(image), strict=True):
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
    return other


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        dict(in_channels=1, stem_patch_size=2, out_indices=(0, 1), gap_before_final_norm=False),
        dict(mixer='stripe', positional_embedding=None, conv_ratio=1),
        dict(mixer='conv7', positional_embedding=None, norm_cfg=dict(type='SyncBN'), layer_scale_init_value=0),
        dict(branch_norms=False, small_kernel_size=0, positional_embedding=None),
        dict(sharing_grids=((1, 2, 7, 2, 1), None), drop_path_rate=0.3, frozen_stages=1),
    ],
    ids=['default', 'features of grey images', 'stripes', 'conv7', 'one branch', 'grids'],
)
def test_trained_network_comes_back(arguments: dict[str, Any], tmp_path: Path) -> None:
    assert_comes_back(network(**arguments), tmp_path)


def test_arguments_from_a_config(tmp_path: Path) -> None:
    arch = ConfigDict(depths=[1, 1], channels=[8, 12], kernel_sizes=[13, 7])
    torch.manual_seed(0)
    assert_comes_back(PeLK(arch=arch, norm_cfg=ConfigDict(type='BN', eps=1e-3)).eval(), tmp_path / 'new' / 'folder')


CHANGES: dict[str, Callable[[PeLK], object]] = {
    'deployed': PeLK.switch_to_deploy,
    'sparse': lambda model: apply_masks(draw_masks(model, None)),
    'without a block': lambda model: model.stages[1].__delitem__(0),
    'without a block, deployed': lambda model: (model.stages[1].__delitem__(0), model.switch_to_deploy()),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('mixer', ['peripheral', 'stripe'])
def test_changed_network_comes_back(mixer: str, change: str, tmp_path: Path) -> None:
    model = network(mixer=mixer, positional_embedding='in_bounds' if mixer == 'peripheral' else None)
    CHANGES[change](model)
    assert_comes_back(model, tmp_path)


def test_shrunk_network_comes_back(tmp_path: Path) -> None:
    model = network()
    state = model.state_dict()
    for name in ('weight', 'bias'):
        key = f'stages.1.1.pointwise_conv1.{name}'
        state[key] = state[key][:5]
    state['stages.1.1.pointwise_conv2.weight'] = state['stages.1.1.pointwise_conv2.weight'][:, :5]
    model.load_state_dict(state)  # which makes the block as narrow
    assert assert_comes_back(model, tmp_path).arguments()['hidden_channels'] == [[32], [48, 5]]


def test_compiled_parts_come_back(tmp_path: Path) -> None:
    model = network()
    want = copy.deepcopy(model)
    for owner, name in ((model.stages[0][0], 'pointwise_conv1'), (model.stages[1][0].mixer, 'large')):
        setattr(owner, name, torch.compile(getattr(owner, name)))
    compiled: Any = torch.compile(model)
    (tmp_path / 'README.md').write_text('of its author')
    compiled.save_pretrained(tmp_path)
    assert (tmp_path / 'README.md').read_text() == 'of its author'
    state = want.state_dict()
    assert facts_of(state_of(model)) == facts_of(state)
    assert all(torch.equal(value, state[key]) for key, value in PeLK.from_pretrained(tmp_path).state_dict().items())


@pytest.mark.parametrize(
    'change',
    [
        fuse_conv_bn,
        lambda model: prune.l1_unstructured(model.stages[0][0].pointwise_conv1, 'weight', 0.5),
        lambda model: nn.utils.parametrizations.weight_norm(model.stages[0][0].mixer.small),
        lambda model: setattr(model.stages[0][0], 'pointwise_conv1', nn.Sequential(model.stages[0][0].pointwise_conv1)),
        lambda model: model.stages[0][0].add_module('adapter', nn.Linear(8, 8)),
    ],
    ids=['fused', 'pruned', 'reparametrised', 'wrapped', 'more'],
)
def test_changed_network_is_refused(change: Callable[[PeLK], Any], tmp_path: Path) -> None:
    model = network()
    change(model)
    with pytest.raises(UserError, match=r'another than its description builds: they differ in stages\.0\.0\.'):
        model.save_pretrained(tmp_path / 'model')
    assert not (tmp_path / 'model').exists()


def test_features_of_a_classifiers_backbone(tmp_path: Path) -> None:
    model = network()
    model.save_pretrained(tmp_path)
    features = PeLK.from_pretrained(tmp_path, out_indices=(0, 1), gap_before_final_norm=False)
    assert [tuple(out.shape) for out in features(torch.rand(1, 3, 64, 64))] == [(1, 8, 16, 16), (1, 12, 8, 8)]
    assert torch.equal(features.norm1.weight, model.norm1.weight)
    (first,) = PeLK.from_pretrained(tmp_path, out_indices=0)(torch.rand(1, 3, 64, 64))  # the norm of the last is left
    assert first.shape == (1, 8)


def test_folder_is_a_checkpoint_for_recipes_and_deployment(tmp_path: Path) -> None:
    model = network()
    model.save_pretrained(tmp_path)
    other = PeLK(**SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'model.safetensors')))
    other.init_weights()
    deployed = PeLK(**SMALL, deploy=True)
    deployed.load_state_dict(deploy_state_dict(PeLK(**SMALL), other.state_dict()))


def test_misfits_and_damage_are_refused(tmp_path: Path) -> None:
    network().save_pretrained(tmp_path / 'model')
    other = network(depths=(1, 3))

    def refuses(message: str, folder: str = 'model', **arguments: Any) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            PeLK.from_pretrained(tmp_path / folder, **arguments)
        assert folder in str(caught.value)

    refuses('misses stages.1.2.gamma', depths=(1, 3))
    refuses('no place for stages.1.1', depths=(1, 1))
    refuses('instead of', kernel_sizes=(15, 7))
    refuses('neither a folder', folder='nowhere')
    config = json.loads((tmp_path / 'model' / 'config.json').read_text())
    for changed, message in (
        (config | dict(type='ResNet'), "holds 'ResNet'"),
        (config | dict(window=7), r"does not know: \['window'\]"),
        (config | dict(init_cfg=dict(type='Pretrained', checkpoint='evil.pkl')), r"does not know: \['init_cfg'\]"),
        ({key: value for key, value in config.items() if key != 'type'}, 'holds None'),
        (config | dict(depths=[1, 3]), 'misses stages.1.2'),
        (config | dict(act_cfg=dict(type='os.system', command='touch pwned')), "wants 'os.system'"),
        ([], 'neither a folder'),
    ):
        (tmp_path / 'model' / 'config.json').write_text(json.dumps(changed))
        refuses(message)
    for text in ('{', '[' * 100_000):  # the second nested too deep to be read
        (tmp_path / 'model' / 'config.json').write_text(text)
        refuses('neither a folder')
    other.save_pretrained(tmp_path / 'model')
    weights = tmp_path / 'model' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    refuses('incomplete')
    weights.unlink()
    refuses('does not exist')


@pytest.mark.parametrize('key', ['stages.0.0.mixer.other_norm.weight', 'stages.0.0.norm2.bias', 'head.fc.weight'])
def test_weights_without_a_place_are_refused(key: str, tmp_path: Path) -> None:
    """All but norms of stages whose maps are not asked for."""
    model = network()
    model.save_pretrained(tmp_path)
    write_safetensors({**model.state_dict(), key: torch.ones(8)}, tmp_path / 'model.safetensors')
    with pytest.raises(UserError, match=f'no place for {key}'):
        PeLK.from_pretrained(tmp_path)


def test_repository_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'nobody/nothing' is neither"):
        PeLK.from_pretrained('nobody/nothing', local_files_only=True, cache_dir=tmp_path)


def test_push_sends_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def upload(folder_path: str, **options: Any) -> str:
        for file in Path(folder_path).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return f'https://example.org/{options["repo_id"]}: {options["commit_message"]}'

    api = mock.Mock(
        **{'return_value.upload_folder': upload, 'return_value.create_repo.return_value.repo_id': 'me/pelk'}
    )
    monkeypatch.setattr('mmpelk.models.weights.publication.HfApi', api)
    model = network()
    address = model.push_to_hub('pelk', private=True, token='hf_1', commit_message='Weights')
    assert address == 'https://example.org/me/pelk: Weights'
    api.assert_called_once_with(token='hf_1')
    # One that is there already takes a further commit.
    api.return_value.create_repo.assert_called_once_with('pelk', private=True, exist_ok=True)
    assert "PeLK.from_pretrained('me/pelk')" in (tmp_path / 'README.md').read_text()
    download = mock.Mock(return_value=str(tmp_path))
    monkeypatch.setattr('mmpelk.models.weights.publication.snapshot_download', download)
    options: dict[str, Any] = dict(
        revision='v1', cache_dir='there', token='hf_2', force_download=True, local_files_only=True
    )
    assert torch.equal(PeLK.from_pretrained('me/pelk', **options).norm1.weight, model.norm1.weight)
    download.assert_called_once_with('me/pelk', allow_patterns=['config.json', 'model.safetensors'], **options)


@pytest.mark.parametrize('kind', ['nms', 'Mixup', 'AnchorGenerator'])
def test_a_name_that_is_no_norm_is_not_imported(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network().save_pretrained(tmp_path)
    config = tmp_path / 'config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'norm_cfg': dict(type=kind)}))
    (tmp_path / f'{kind}.py').write_text("print('ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"wants '{kind}'"):
        PeLK.from_pretrained(tmp_path)
    assert 'ran' not in capsys.readouterr().out
