"""The command that counts: what it prints and writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmpelk import get_config
from mmpelk.analysis.complexity import count_complexity
from mmpelk.analysis.inference import build_model
from mmpelk.models import PeLK
from mmpelk.models.hidden_units import find_hidden_units, shrink_hidden_units
from mmpelk.ops.backends import PROCESSORS, REFERENCE_PROCESSOR, THIS_PROCESSOR
from mmpelk.sparsity import GRANULARITIES, apply_masks, attach_masks, find_parameters, uniform_units
from mmpelk.sparsity.publish import publish_checkpoint
from tests.commands import call, load_tool
from tests.paths import ROOT, TOOLS

NANO = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / 'nano.py'
    path.write_text(f"model = dict(type='mmpelk.PeLK', arch={NANO!r}, norm_cfg=dict(type='BN'))\n")
    return path


@pytest.mark.parametrize('options', [['--density', 0.5], ['--checkpoint', 'nano.pth']], ids=lambda options: options[0])
def test_writes_what_it_counts(config: Path, tmp_path: Path, options: list[object]) -> None:
    torch.save(dict(state_dict=PeLK(NANO).state_dict()), tmp_path / 'nano.pth')
    printed = call(TOOLS / 'get_flops.py', config, '--shape', 64, 48, '--json', 'flops.json', *options, cwd=tmp_path)
    report = json.loads((tmp_path / 'flops.json').read_text())
    given = (str(config), [64, 48], 0.5 if '--density' in options else None)
    assert (report['config'], report['shape'], report['density']) == given
    assert 'large_kernels' in printed
    assert f'chosen on {REFERENCE_PROCESSOR}' in printed
    for key in ('params', 'params_sparse', 'flops', 'flops_sparse'):
        assert report[key] == sum(component[key] for component in report['components'])
    factor = 0.5 if '--density' in options else 1
    assert report['flops_sparse'] == pytest.approx(factor * report['flops'], abs=10)
    large = report['large_kernels']
    assert report['flops_executed'] == report['flops'] - large['dense_form'] + large['chosen_on_cpu']['executed']
    assert large['chosen_on_cpu']['processor'] == REFERENCE_PROCESSOR
    module = load_tool(TOOLS / 'get_flops.py')
    whole = [row[-1] for row in module.operator_table(report).rows]
    assert [whole[0], whole[-1]] == [module._readable(report[key]) for key in ('flops', 'flops_executed')]


@pytest.mark.parametrize('name', [*PROCESSORS, 'this'])
def test_counts_for_a_class_of_processors(name: str, tmp_path: Path) -> None:
    arch = NANO | dict(kernel_sizes=(51, 49, 47, 13))  # large enough that the classes differ
    (tmp_path / 'nano.py').write_text(f"model = dict(type='mmpelk.PeLK', arch={arch!r})\n")
    options = ['--shape', 224, 224, '--json', 'flops.json', '--processor', name]
    printed = call(TOOLS / 'get_flops.py', 'nano.py', *options, cwd=tmp_path)
    processor = THIS_PROCESSOR if name == 'this' else name
    assert f'chosen on {processor}: ' in printed
    report = json.loads((tmp_path / 'flops.json').read_text())
    chosen = report['large_kernels']['chosen_on_cpu']
    counts = {each: count_complexity(PeLK(arch), (224, 224), processor=each) for each in PROCESSORS}
    calls = counts[processor].calls
    assert (chosen['processor'], chosen['backends']) == (processor, sorted({large.backend for large in calls}))
    executed = {each: sum(count.executed_by_component().values()) for each, count in counts.items()}
    assert len(set(executed.values())) == len(PROCESSORS)
    assert report['flops_executed'] == executed[processor]


@pytest.mark.parametrize('source', ['--units', 'masks', 'shrunk'])
def test_dense_live_and_executed_counts_of_units(config: Path, tmp_path: Path, source: str) -> None:
    """Inactive units count as dense, are not active, and are executed as long as they are in the tensors."""
    model = PeLK(NANO)
    units = uniform_units(model, 0.6)
    layers = {layer.name: layer for layer in GRANULARITIES['unit'](model, None, ())}
    for name, layer in layers.items():
        attach_masks(layer.parameters)
        layer.draw(units[name] * layer.shape[1], torch.Generator().manual_seed(0))
        apply_masks(layer.parameters)
    checkpoint = dict(state_dict=model.state_dict())
    torch.save(publish_checkpoint(checkpoint, shrink=True) if source == 'shrunk' else checkpoint, tmp_path / 'nano.pth')
    options = ['--density', 0.6, '--units'] if source == '--units' else ['--checkpoint', 'nano.pth']
    call(TOOLS / 'get_flops.py', config, '--shape', 64, 64, '--json', 'flops.json', *options, cwd=tmp_path)
    report = json.loads((tmp_path / 'flops.json').read_text())
    inactive = [(layer.shape[0] - units[name]) * layer.shape[1] for name, layer in layers.items()]
    assert report['params'] == sum(parameter.numel() for parameter in model.parameters())
    assert report['params_sparse'] == pytest.approx(report['params'] - sum(inactive), abs=3)  # rounded by component
    whole = [entry.weight.numel() for entry in find_parameters(model, None)]
    assert report['params'] - report['params_sparse'] == pytest.approx(0.4 * sum(whole), rel=0.01)
    large = report['large_kernels']
    stored = report['flops'] if source == 'masks' else report['flops_sparse']
    assert report['flops_sparse'] < 0.8 * report['flops']
    assert report['flops_executed'] == pytest.approx(
        stored - large['dense_form'] + large['chosen_on_cpu']['executed'], abs=3
    )


def test_shares_are_of_the_whole_and_of_the_part() -> None:
    component = SimpleNamespace(
        part='backbone', name='stem', params=4000, params_sparse=3000, flops=8000, flops_sparse=50
    )
    whole = dict(params=5000, params_sparse=4000, flops=9000, flops_sparse=500)
    complexity = SimpleNamespace(components=[component], part={'backbone': 200}.get, **whole)
    rows = load_tool(TOOLS / 'get_flops.py').component_table(complexity, {('backbone', 'stem'): 7000}).rows
    counts = ['4.00 k', '3.00 k', '8.00 k', '50', '7.00 k']
    assert list(rows[0]) == ['backbone', 'stem', *counts, '10.00', '25.00']
    assert list(rows[1]) == ['all', '', '5.00 k', '4.00 k', '9.00 k', '500', '7.00 k', '100', '']


def test_what_is_unknown_and_what_each_backend_executes() -> None:
    tool = load_tool(TOOLS / 'get_flops.py')
    assert tool.total({('backbone', 'a'): 5, ('backbone', 'b'): None}) is None
    assert tool.total({('backbone', 'a'): 5, ('backbone', 'b'): 6}) == 11
    assert [tool._readable(count) for count in (None, 999, 1000, 2.5e6, 1e9)] == [
        *('unknown', '999', '1.00 k', '2.50 M', '1.00 G')
    ]
    chosen = dict(processor='AVX2', backends=['dft', 'fft'], executed=100)
    large = dict(dense_form=400, executed=dict(dense=400, dft=300, hidden=None), chosen_on_cpu=chosen)
    assert [list(row) for row in tool.operator_table(dict(flops=900, large_kernels=large)).rows] == [
        ["the paper's dense form", '400', '100.0', '900'],
        ['dense', '400', '100.0', '900'],
        ['dft', '300', '75.0', '800'],
        ['hidden', 'unknown', '', ''],
        ['chosen on AVX2: dft, fft', '100', '25.0', '600'],
    ]


def test_units_are_those_of_backbone_and_classifier() -> None:
    """Their number counts no weights of a neck, nor of a segmentor's head, and theirs stay."""
    head = nn.ModuleDict(dict(fc1=nn.Linear(8, 32), fc2=nn.Linear(32, 8)))
    args = SimpleNamespace(checkpoint=None, density=0.6, units=True)
    for name, counts in (('head', True), ('decode_head', False)):
        model = nn.ModuleDict({'backbone': PeLK(NANO), name: head})
        _, stored = load_tool(TOOLS / 'get_flops.py').sparse_form(model, args)
        found = {units.block_name: units.count for units in find_hidden_units(stored)}
        want = uniform_units(model, 0.6, ['backbone', *['head'] * counts]) | ({} if counts else {name: 32})
        assert found == want


def test_zeros_of_a_shrunk_checkpoint_are_not_active(tmp_path: Path) -> None:
    model, name = PeLK(NANO), 'stages.0.0.pointwise_conv1.weight'
    for units in find_hidden_units(model):
        units.second.get_parameter('weight').data[:, 5:] = 0
    state, _ = shrink_hidden_units(model.state_dict())
    state[name][1:] = 0
    torch.save(dict(state_dict=state), tmp_path / 'shrunk.pth')
    args = SimpleNamespace(checkpoint=str(tmp_path / 'shrunk.pth'))
    densities, _ = load_tool(TOOLS / 'get_flops.py').sparse_form(PeLK(NANO), args)
    assert densities[name] == pytest.approx(8 / (32 * 8)), 'one unit of five is left, of 32 in the network'


@pytest.mark.slow
@pytest.mark.scope('mmpretrain')
def test_page_has_the_counts_of_pelk_t() -> None:
    tool = load_tool(TOOLS / 'get_flops.py')
    model = build_model(get_config('cls/pelk_t_unit_in1k'))
    counts = {}
    for units in (False, True):
        densities, stored = tool.sparse_form(model, SimpleNamespace(checkpoint=None, density=0.6, units=units))
        active = count_complexity(model, (224, 224), densities)
        counts[units] = active, tool.total(count_complexity(stored, (224, 224)).executed_by_component())
    (weights, executed), (units, executed_units) = counts[False], counts[True]
    cells = [f'{count / 1e6:.2f} M' for count in (weights.params, weights.params_sparse)] + ['29 M']
    cells += [f'{count / 1e9:.2f} G' for count in (weights.flops, weights.flops_sparse)] + ['5.6 G']
    cells += [f'{count / 1e9:.2f} G' for count in (executed, executed_units)]
    page = (ROOT / 'docs' / 'complexity.md').read_text()
    assert f'| PeLK-T | {" | ".join(cells)} |' in page
    assert f'{units.flops_sparse / 1e9:.2f} G, ' in page
    assert units.params_sparse == pytest.approx(weights.params_sparse, rel=2e-4)
    assert executed_units < 1.05 * 5.6e9, "the paper's column"
