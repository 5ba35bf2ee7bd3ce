"""Kernels whose weights are elsewhere until their module is called: sharded by FSDP2, or kept on another device."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmpelk.models import PeLK, PeripheralConv2d
from mmpelk.models.pelk import PeLKStage

fsdp = pytest.importorskip('torch.distributed.fsdp')
if not hasattr(fsdp, 'fully_shard'):
    pytest.skip('torch before 2.6 has no public fully_shard', allow_module_level=True)

FORMS = ['trained', 'deployed']


def network(form: str, mixer: str = 'peripheral') -> PeLK:
    torch.manual_seed(0)
    model = PeLK(
        dict(depths=(2, 1), channels=(16, 24), kernel_sizes=(13, 11)),
        mixer=mixer,
        positional_embedding=None if mixer == 'stripe' else 'in_bounds',
        layer_scale_init_value=1.0,
    )
    if form == 'deployed':
        model.eval().switch_to_deploy()
    return model


@pytest.mark.parametrize('part', [PeripheralConv2d | nn.Conv2d, PeLKStage], ids=['kernels', 'stages'])
@pytest.mark.parametrize('mixer', ['peripheral', 'dense', 'stripe'])
@pytest.mark.parametrize('form', FORMS)
def test_parts_sharded_by_themselves(form: str, mixer: str, part: type, one_process: None) -> None:
    model = network(form, mixer)
    sharded = copy.deepcopy(model)
    mesh = dist.device_mesh.init_device_mesh('cpu', (1,))
    for module in [module for module in sharded.modules() if isinstance(module, part)]:
        fsdp.fully_shard(module, mesh=mesh)
    fsdp.fully_shard(sharded, mesh=mesh)
    x = torch.rand(2, 3, 64, 64)
    outputs = [network(x)[0] for network in (model, sharded)]
    torch.testing.assert_close(outputs[1], outputs[0])
    for out in outputs:
        out.square().sum().backward()
    want = {name: value.grad for name, value in model.named_parameters()}
    for name, value in sharded.named_parameters():
        assert (value.grad is None) == (want[name] is None), name
        if value.grad is not None:
            torch.testing.assert_close(value.grad.full_tensor(), want[name])
    with torch.no_grad():
        torch.testing.assert_close(sharded.eval()(x)[0], model.eval()(x)[0])


@pytest.mark.parametrize('form', FORMS)
def test_offloaded_by_accelerate(form: str) -> None:
    accelerate = pytest.importorskip('accelerate')
    model, x = network(form).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = model(x)[0]
        offloaded = accelerate.cpu_offload(model, execution_device=torch.device('cpu'))
        assert {value.device.type for value in model.stages[0][0].mixer.large.parameters()} == {'meta'}
        torch.testing.assert_close(offloaded(x)[0], want)
