"""Weights of other kernels or another embedding mode, whose tensors have the same shapes, are refused."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import load_checkpoint, save_checkpoint
from safetensors.torch import save_file
from torch import nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import install_safe_loading, load_data
from mmpelk.models import PeLK
from mmpelk.models.weights.checkpoint import state_dict_of, write_safetensors
from mmpelk.models.weights.facts import facts_of, with_facts
from mmpelk.sparsity import fold_masks
from mmpelk.sparsity.publish import publish_checkpoint, save_pth, save_safetensors

pytest.importorskip('huggingface_hub', reason='pip install -e .[hub]')
PLAIN: dict[str, Any] = dict(depths=(1,), channels=(8,), kernel_sizes=(31,), positional_embedding=None)
EMBEDDED = PLAIN | dict(positional_embedding='in_bounds')
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    'kernel': (PLAIN, dict(kernel_sizes=(29,)), r'31 x 31 \(.*29 x 29'),
    'grid': (
        PLAIN,
        dict(sharing_grids=((5, 6, 2, 1, 1, 1, 1, 1, 2, 6, 5),)),
        r'grid 7, 4, .*grid 5, 6, .*sharing_grids',
    ),
    'embedding': (EMBEDDED, dict(positional_embedding='constant'), "'in_bounds', not .*'constant'"),
}


def whole(backbone: PeLK) -> nn.Module:
    return nn.ModuleDict({'backbone': backbone})


def by_torch(model: PeLK, make: Callable[..., PeLK], folder: Path) -> None:
    torch.save(model.state_dict(), folder / 'a.pth')
    make().load_state_dict(torch.load(folder / 'a.pth', weights_only=True), strict=False)


def by_mmengine(model: PeLK, make: Callable[..., PeLK], folder: Path) -> None:
    install_safe_loading()
    save_checkpoint(dict(state_dict=whole(model).state_dict()), str(folder / 'a.pth'))
    load_checkpoint(whole(make()), str(folder / 'a.pth'), strict=False)


def by_name(model: PeLK, make: Callable[..., PeLK], path: Path, prefix: str) -> None:
    make(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=prefix)).init_weights()


def by_init_cfg(model: PeLK, make: Callable[..., PeLK], folder: Path) -> None:
    torch.save(dict(model=nn.DataParallel(whole(model)).state_dict()), folder / 'a.pth')
    by_name(model, make, folder / 'a.pth', 'backbone.')


def by_safetensors(model: PeLK, make: Callable[..., PeLK], folder: Path) -> None:
    write_safetensors(model.state_dict(), folder / 'a.safetensors')
    by_name(model, make, folder / 'a.safetensors', '')


def by_publication(model: PeLK, make: Callable[..., PeLK], folder: Path) -> None:
    published = publish_checkpoint(dict(state_dict=whole(model).state_dict()))
    save_pth(published, folder / 'a.pth')
    save_safetensors(load_data(folder / 'a.pth'), folder / 'a.safetensors')
    by_name(model, make, folder / 'a.safetensors', 'backbone')


def by_hub(model: PeLK, make: Callable[..., PeLK], folder: Path) -> None:
    model.save_pretrained(folder)
    PeLK.from_pretrained(folder, **make.keywords)  # type: ignore[attr-defined]


def by_older_hub(model: PeLK, make: Callable[..., PeLK], folder: Path) -> None:
    model.save_pretrained(folder)
    save_file(dict(model.state_dict()), folder / 'model.safetensors')
    PeLK.from_pretrained(folder, **make.keywords)  # type: ignore[attr-defined]


WAYS = [by_torch, by_mmengine, by_init_cfg, by_safetensors, by_publication, by_hub, by_older_hub]


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('case', OTHERS)
def test_weights_of_another_network_are_refused(case: str, way: Callable[..., None], tmp_path: Path) -> None:
    arguments, change, message = OTHERS[case]
    model: Any = PeLK(**arguments)
    with pytest.raises(UserError, match=message):
        way(model, functools.partial(PeLK, **arguments | change), tmp_path)
    way(model, functools.partial(PeLK, **arguments), tmp_path)


def test_tensors_alone_load_as_they_are() -> None:
    arguments, change, _ = OTHERS['kernel']
    state = PeLK(**arguments).state_dict()
    PeLK(**arguments | change).load_state_dict(dict(state))
    assert 'sharing_grid' not in ' '.join(state)
    PeLK(**arguments | change).load_state_dict(
        with_facts({key: value for key, value in state.items() if '.large.' not in key}, facts_of(state)), strict=False
    )
    larger: Any = PeLK(**arguments | dict(kernel_sizes=(51,)))
    state.update({key: value for key, value in larger.state_dict().items() if key.endswith('.large.weight')})
    larger.load_state_dict(state)  # larger kernels beside the facts of the old ones
    assert facts_of(fold_masks(state)).keys() == {'stages.0.0.mixer.large'}


def test_a_deployed_network_of_any_mode_that_computes_the_same_loads() -> None:
    model = PeLK(**EMBEDDED | dict(positional_embedding='constant')).eval()
    model.switch_to_deploy()
    PeLK(**PLAIN, deploy=True).load_state_dict(model.state_dict())


@pytest.mark.parametrize('text', ['[]', '{"a": 3}', '{"stages.0.0.mixer.large": {"sharing_grid": {"x": [null]}}}'])
def test_facts_of_a_stranger(text: str, tmp_path: Path) -> None:
    model: Any = PeLK(**PLAIN)
    save_file(dict(model.state_dict()), tmp_path / 'a.safetensors', metadata=dict(state_dict_metadata=text))
    with pytest.raises(UserError, match=r'state_dict_metadata|sharing_grid'):
        model.load_state_dict(state_dict_of(load_data(tmp_path / 'a.safetensors')))


def test_facts_of_a_part_are_those_of_the_module_alone() -> None:
    part: Any = PeLK(**PLAIN).stages[0][0].mixer
    state = nn.ModuleDict(dict(part=part, part2=PeLK(**EMBEDDED))).state_dict()
    for prefix, module in (('part.', part), ('part.large.', part.large)):
        assert facts_of(state, prefix) == facts_of(module.state_dict()) != {}


def test_facts_stand_beside_what_torch_writes() -> None:
    """Its versions, which tell the kernels of other projects apart."""
    metadata = PeLK(**EMBEDDED).state_dict()._metadata  # type: ignore[attr-defined]
    assert metadata['stages.0.0.mixer.large'].keys() == {'version', 'sharing_grid'}
    assert metadata['stages.0'].keys() == {'version', 'embedding_mode'}
