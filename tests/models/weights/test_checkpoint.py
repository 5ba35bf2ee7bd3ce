"""Weights of a backbone, for every way to name them in ``init_cfg`` and to wrap them in the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.models import PeLK
from mmpelk.models.weights.checkpoint import check_pretrained, pretrained_cfgs, state_dict_of, write_safetensors
from mmpelk.sparsity import attach_masks, find_parameters
from tests.commands import without_instances

SMALL: dict[str, Any] = dict(depths=(1, 2), channels=(8, 12), kernel_sizes=(13, 7))
PREFIX = 'backbone.'

KINDS = ['Pretrained', 'mmengine.Pretrained', PretrainedInit]
SPELLINGS: list[Callable[[dict[str, Any]], Any]] = [
    dict,
    ConfigDict,
    lambda cfg: [cfg],
    lambda cfg: [dict(type='TruncNormal', layer='Linear', std=0.02), cfg],
    lambda cfg: (ConfigDict(cfg),),
]


@pytest.fixture
def trained() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: torch.rand(value.shape) if value.dim() else value for key, value in PeLK(**SMALL).state_dict().items()}


def write(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def load(init_cfg: Any) -> dict[str, Tensor]:
    model = PeLK(**SMALL, init_cfg=init_cfg)
    model.init_weights()
    return model.state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize('kind', KINDS, ids=str)
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_spellings_of_init_cfg(kind: Any, spelling: Callable, trained: dict[str, Tensor], tmp_path: Path) -> None:
    right = write(tmp_path / 'right.pth', dict(state_dict=prefixed(trained, PREFIX)))
    found = load(spelling(dict(type=kind, checkpoint=right, prefix=PREFIX)))
    assert all(torch.equal(found[key], value) for key, value in trained.items())
    wrong = write(tmp_path / 'wrong.pth', dict(state_dict=prefixed(nn.Conv2d(3, 8, 3).state_dict(), PREFIX)))
    with pytest.raises(UserError, match=r'misses downsample_layers\.0\.0\.weight'):
        load(spelling(dict(type=kind, checkpoint=wrong, prefix=PREFIX)))
    absent = spelling(dict(type=kind, checkpoint=str(tmp_path / 'absent.pth'), prefix=PREFIX))
    model = PeLK(**SMALL, init_cfg=absent)
    given = model.init_cfg
    with pytest.raises(FileNotFoundError, match='do not exist'):
        model.init_weights()
    assert model.init_cfg is given


def test_weights_that_do_not_fit_name_the_prefix_and_the_shapes(trained: dict[str, Tensor], tmp_path: Path) -> None:
    right = write(tmp_path / 'right.pth', dict(state_dict=prefixed(trained, PREFIX)))
    other = write(tmp_path / 'other.pth', PeLK(**SMALL | dict(kernel_sizes=(15, 7))).state_dict())
    for path, prefix, message in (
        (right, 'encoder.', r"no key of .* begins with 'encoder.'"),
        (other, '', r'stages.0.positional_embedding \(3, 15, 15\) instead of \(3, 13, 13\)'),
    ):
        with pytest.raises(ValueError, match=message):
            load(dict(type='Pretrained', checkpoint=path, prefix=prefix))


def test_every_tensor_has_to_be_there_and_of_its_shape(trained: dict[str, Tensor], tmp_path: Path) -> None:
    """But for the norms of the stages' outputs, which may miss."""
    assert {key.split('.')[-2] for key in trained} >= {'norm', 'large_norm', 'small_norm', 'norm1'}
    model = PeLK(**SMALL)
    for key, value in trained.items():
        lacking = write(tmp_path / 'lacking.pth', {name: other for name, other in trained.items() if name != key})
        if key.startswith('norm'):
            assert key not in check_pretrained(model, lacking)
        else:
            with pytest.raises(UserError, match=f'misses {key}. Take'):
                check_pretrained(model, lacking)
        other = write(tmp_path / 'other.pth', trained | {key: value.view(1, *value.shape)})  # as many numbers
        with pytest.raises(UserError):
            check_pretrained(model, other)


def test_other_initialisations_are_no_weights() -> None:
    for cfg in (None, [], dict(type='TruncNormal', layer='Linear'), [dict(type='Kaiming', layer='Conv2d')]):
        assert pretrained_cfgs(cfg) == []


def test_initialisation_beside_weights(trained: dict[str, Tensor], tmp_path: Path) -> None:
    """What the file lacks, an output norm, keeps the initialisation that the list names."""
    kept = {key: value for key, value in trained.items() if not key.startswith('norm')}
    path = write(tmp_path / 'weights.pth', kept)
    found = load([dict(type='Constant', layer='LayerNorm', val=0.5), dict(type='Pretrained', checkpoint=path)])
    assert all(torch.equal(found[key], value) for key, value in kept.items())
    assert (found['norm1.weight'] == 0.5).all()


WRAPPINGS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    'bare': (lambda state: state, ''),
    'state_dict': (lambda state: dict(state_dict=state, meta={}), ''),
    'model': (lambda state: dict(model=state, epoch=3), ''),
    'model in state_dict': (lambda state: dict(state_dict=dict(model=state)), ''),
    'prefix without its dot': (lambda state: prefixed(state, PREFIX), PREFIX.rstrip('.')),
    'module': (lambda state: prefixed(state, 'module.'), ''),
    'module in state_dict': (lambda state: dict(state_dict=prefixed(state, 'module.')), ''),
    'module in model': (lambda state: dict(model=prefixed(state, 'module.')), ''),
    'module before backbone': (lambda state: dict(state_dict=prefixed(state, f'module.{PREFIX}')), PREFIX),
    'backbone beside a head': (
        lambda state: dict(state_dict=prefixed(state, PREFIX) | {'head.fc.weight': torch.rand(2, 2)}),
        PREFIX,
    ),
}


@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_wrappings_of_a_file(wrapping: str, trained: dict[str, Tensor], tmp_path: Path) -> None:
    wrap, prefix = WRAPPINGS[wrapping]
    path = write(tmp_path / 'weights.pth', wrap(trained))
    found = load(dict(type='Pretrained', checkpoint=path, prefix=prefix))
    assert all(torch.equal(found[key], value) for key, value in trained.items())


def test_paths_from_the_home_folder_and_weights_without_masks(
    trained: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / 'weights.pth', trained)
    monkeypatch.setenv('HOME', str(tmp_path))
    model = PeLK(**SMALL)
    attach_masks(find_parameters(model, None))
    assert check_pretrained(model, '~/weights.pth').keys() == trained.keys()


def test_shrunk_weights_of_an_address(trained: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    block = 'stages.0.0.pointwise_conv'
    for name in (f'{block}1.weight', f'{block}1.bias'):
        trained[name] = trained[name][:5]
    trained[f'{block}2.weight'] = trained[f'{block}2.weight'][:, :5]
    asked: list[str] = []
    monkeypatch.setattr('mmpelk.models.weights.checkpoint.read_checkpoint', lambda path: asked.append(path) or trained)
    found = load(dict(type='Pretrained', checkpoint='https://example.org/weights.pth'))
    assert all(torch.equal(found[key], value) for key, value in trained.items())
    assert asked == ['https://example.org/weights.pth']


def test_safetensors_of_tied_and_transposed_tensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip('safetensors')
    tensor, path = torch.rand(2, 3), tmp_path / 'weights.safetensors'
    state = dict(a=tensor, b=tensor, c=tensor.t())
    write_safetensors(state, path, dict(licence='mit'))
    found = state_dict_of(read_checkpoint(path))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    with safetensors.safe_open(path, 'pt') as file:
        assert file.metadata() == dict(format='pt', licence='mit')


def test_the_log_of_initialisation_says_what_was_loaded(trained: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / 'weights.pth', trained)
    with without_instances():
        MMLogger.get_instance('initialisation', log_file=str(tmp_path / 'log'))
        load(dict(type='Pretrained', checkpoint=path))
    log = (tmp_path / 'log').read_text()
    assert f'loaded from {path}' in log
    assert 'the same before and after' not in log


def test_a_module_called_module_keeps_its_name() -> None:
    """The prefix is cut off only where all names have it."""
    state = {'module.weight': torch.rand(2), 'head.weight': torch.rand(2)}
    assert set(state_dict_of(state)) == set(state)


@pytest.mark.parametrize('content', [{}, dict(state_dict={}), dict(meta=1), [torch.ones(2)], None], ids=str)
def test_no_weights(content: Any) -> None:
    with pytest.raises(UserError, match=r"'file\.pth' holds no weights"):
        state_dict_of(content, 'file.pth')


@pytest.mark.parametrize('init_cfg', ['weights.pth', ['weights.pth'], [None], 123], ids=str)
def test_init_cfg_that_is_none(init_cfg: Any) -> None:
    with pytest.raises(TypeError, match=r"init_cfg is a dict, .* dict\(type='Pretrained', checkpoint=\.\.\.\)"):
        PeLK(**SMALL, init_cfg=init_cfg)
