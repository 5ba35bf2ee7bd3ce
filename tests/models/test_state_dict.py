"""Checkpoints of the first release: every mixer keeps its tensors' names and shapes, and computes the same from them.

``NUMBERS`` and ``TENSORS`` were printed by the code from before the mixers had a common base class (torch 2.11, CPU,
float64). Parameters and image follow a closed formula, see :func:`_wave`, so that no file is needed. A literal that has
to change means that checkpoints no longer load, or that they compute something else.
"""

from zlib import crc32

import pytest
import torch
from torch import Tensor

from mmpelk.models import PeLK

ARCH = dict(depths=(1, 2), channels=(8, 16), kernel_sizes=(13, 7), center_size=5)

# Mixer, embedding, deployed: a weighted sum of each of the two output maps.
NUMBERS = {
    ('peripheral', 'in_bounds', False): (-6.618124208404919, 15.587900778175573),
    ('peripheral', 'in_bounds', True): (5.570322846463384, 16.429303734924417),
    ('peripheral', 'constant', False): (-13.065846531873532, 17.420433966134883),
    ('peripheral', 'constant', True): (10.99129860657715, 16.26015189610429),
    ('peripheral', None, False): (20.050417860179245, 15.29099591878912),
    ('peripheral', None, True): (10.99129860657715, 16.26015189610429),
    ('dense', 'in_bounds', False): (-23.432422596732003, 16.36522996542775),
    ('dense', 'in_bounds', True): (-29.628977354038312, 16.51468531457894),
    ('stripe', None, False): (-24.042944639286098, 16.484893195887157),
    ('stripe', None, True): (-46.444086637269606, 19.68001051273995),
    ('conv7', None, False): (-1.4491310072743113, 16.129429700391224),
    ('conv7', None, True): (-1.4491310072743113, 16.129429700391224),
}


def _norm(name: str) -> str:
    """A batch norm's tensors, as :data:`TENSORS` writes them."""
    vectors = ' '.join(f'{name}.{part}[3]' for part in ('weight', 'bias', 'running_mean', 'running_var'))
    return f'{vectors} {name}.num_batches_tracked[]'


# Tensors of the first block's mixer, in the order in which a resumed optimizer expects the parameters.
_SMALL = f'small.weight[3,1,5,5] {_norm("small_norm")}'
TENSORS = {
    ('peripheral', False): f'large.weight[3,1,9,9] {_norm("large_norm")} {_SMALL}',
    ('peripheral', True): 'large.weight[3,1,9,9] large.bias[3]',
    ('dense', False): f'large.weight[3,1,13,13] {_norm("large_norm")} {_SMALL}',
    ('dense', True): 'large.weight[3,1,13,13] large.bias[3]',
    ('stripe', False): 'large.0.weight[3,1,13,5] large.1.weight[3,1,5,13] '
    f'{_norm("large_norm.0")} {_norm("large_norm.1")} {_SMALL}',
    ('stripe', True): 'large.0.weight[3,1,13,5] large.0.bias[3] large.1.weight[3,1,5,13]',
    ('conv7', False): 'large.weight[3,1,7,7] large.bias[3]',
    ('conv7', True): 'large.weight[3,1,7,7] large.bias[3]',
}
_BLOCK = (
    'gamma',
    'norm.weight',
    'norm.bias',
    *(f'pointwise_conv{i}.{part}' for i in (1, 2) for part in ('weight', 'bias')),
)
AROUND_THE_MIXERS = {
    *(f'downsample_layers.{i}.{j}.{part}' for i in (0, 1) for j in (0, 1) for part in ('weight', 'bias')),
    *(f'stages.{block}.{name}' for block in ('0.0', '1.0', '1.1') for name in _BLOCK),
    *(f'norm{i}.{part}' for i in (0, 1) for part in ('weight', 'bias')),
}


def _wave(name: str, shape: tuple[int, ...]) -> Tensor:
    """The cosine of an element's index, in tenths of a radian from a phase that the name gives."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.cos(crc32(name.encode()) % 1000 + 0.1 * index).view(shape)


@pytest.mark.parametrize(('mixer', 'embedding', 'deploy'), NUMBERS)
def test_names_shapes_and_numbers(mixer: str, embedding: str | None, deploy: bool) -> None:
    model = PeLK(
        ARCH,
        mixer=mixer,
        positional_embedding=embedding,
        deploy=deploy,
        out_indices=(0, 1),
        gap_before_final_norm=False,
        norm_cfg=dict(type='BN'),
    )
    state = model.double().eval().state_dict()

    prefix = 'stages.0.0.mixer.'
    found = [f'{name.removeprefix(prefix)}{list(v.shape)}' for name, v in state.items() if name.startswith(prefix)]
    table = ['embedding_table[3,14,14]'] if embedding == 'in_bounds' and deploy else []
    assert [entry.replace(' ', '') for entry in found] == table + TENSORS[mixer, deploy].split()
    around = {name for name in state if '.mixer.' not in name}
    shared = {f'stages.{i}.positional_embedding' for i in (0, 1)} if embedding and not deploy else set()
    assert around == AROUND_THE_MIXERS | shared

    for name, value in state.items():
        if value.is_floating_point():
            value.copy_(_wave(name, tuple(value.shape)) + (1.5 if name.endswith('running_var') else 0))
    with torch.no_grad():
        outs = model(_wave('image', (2, 3, 44, 36)))
    numbers = tuple((out * _wave('output', tuple(out.shape))).sum().item() for out in outs)
    assert numbers == pytest.approx(NUMBERS[mixer, embedding, deploy], rel=1e-9)
