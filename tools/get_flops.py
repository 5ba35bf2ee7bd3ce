"""Parameters and FLOPs of any recipe, by component: dense, active (not masked), and what a device really executes."""

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmpelk.analysis.complexity import Complexity, checkpoint_densities, count_complexity, uniform_densities
from mmpelk.analysis.inference import build_model
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import add_cfg_options, exit_on_user_error, parse_options, read_config
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.models.hidden_units import find_hidden_units, fit_hidden_units
from mmpelk.models.weights.checkpoint import state_dict_of
from mmpelk.ops.backends import PROCESSORS, REFERENCE_PROCESSOR, THIS_PROCESSOR
from mmpelk.sparsity import uniform_units


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument(
        '--shape', nargs=2, type=int, required=True, metavar=('H', 'W'), help='height and width of the image'
    )
    density = parser.add_mutually_exclusive_group()
    density.add_argument(
        '--density',
        type=float,
        default=1.0,
        help="share of active weights in the backbone's and a classifier's 2-D and 4-D parameters; 0.6 in the paper",
    )
    density.add_argument('--checkpoint', help="take the density of every layer from this checkpoint's masks or zeros")
    parser.add_argument(
        '--units',
        action='store_true',
        help='the density is that of whole hidden units, taken out (export_dense --shrink)',
    )
    parser.add_argument(
        '--processor',
        choices=[*PROCESSORS, 'this'],
        default=REFERENCE_PROCESSOR,
        help="class of processors whose choice of backends is counted; 'this' is that of this machine",
    )
    parser.add_argument('--json', metavar='FILE', help='write everything there, too')
    add_cfg_options(parser)
    return parse_options(parser)


def sparse_form(model: nn.Module, args: argparse.Namespace) -> tuple[dict[str, float], nn.Module]:
    """Densities of the model, and the model as it is stored: narrower, if its inactive hidden units are taken out."""
    stored = copy.deepcopy(model)
    blocks = find_hidden_units(stored)
    if args.checkpoint is not None:
        state = state_dict_of(read_checkpoint(args.checkpoint), args.checkpoint)
        for units in blocks:
            fit_hidden_units(units, state, f'{units.block_name}.'.lstrip('.'))
        densities = checkpoint_densities(stored, state)
    elif args.units:
        parts = [part for part in ('backbone', 'head') if part in dict(model.named_children())]
        counts = uniform_units(model, args.density, parts if 'backbone' in parts else None)
        for units in blocks:
            units.resize(counts.get(units.block_name, units.count))
        densities = {}
    else:
        return uniform_densities(model, args.density), model
    sizes = {name: parameter.numel() for name, parameter in stored.named_parameters()}
    for name, parameter in model.named_parameters():
        if sizes[name] != parameter.numel():
            densities[name] = densities.get(name, 1.0) * sizes[name] / parameter.numel()
    return densities, stored


def component_table(complexity: Complexity, executed: Mapping[tuple[str, str], int | None]) -> Table:
    columns = ['part', 'component', 'params', 'active', 'FLOPs', 'active', 'executed', '% of active', '% of part']
    title = 'Parameters (training form) and FLOPs (deployed form, one per multiply-add)'
    table = Table(columns, title=title, labels=2)
    for component in complexity.components:
        counts = (component.params, component.params_sparse, component.flops, component.flops_sparse)
        shares = (complexity.flops_sparse, complexity.part(component.part))
        table.add(
            component.part,
            component.name,
            *(_readable(count) for count in counts),
            _readable(executed[component.part, component.name]),
            *(f'{100 * component.flops_sparse / whole:.2f}' if whole else '' for whole in shares),
        )
    totals = (complexity.params, complexity.params_sparse, complexity.flops, complexity.flops_sparse)
    table.add('all', '', *(_readable(count) for count in (*totals, total(executed))), '100', '')
    return table


def total(executed: Mapping[tuple[str, str], int | None]) -> int | None:
    """Sum over the components; ``None`` if one of them is unknown."""
    counts = [count for count in executed.values() if count is not None]
    return sum(counts) if len(counts) == len(executed) else None


def operator_table(report: dict[str, Any]) -> Table:
    large = report['large_kernels']
    title = 'Large kernels: operations that each backend executes, at any density'
    table = Table(['backend', 'large kernels', '% of dense form', 'all'], title=title)
    table.add("the paper's dense form", _readable(large['dense_form']), '100.0', _readable(report['flops']))
    chosen = large['chosen_on_cpu']
    rows = [
        *large['executed'].items(),
        (f'chosen on {chosen["processor"]}: {", ".join(chosen["backends"])}', chosen['executed']),
    ]
    for name, count in rows:
        if count is None:
            table.add(name, 'unknown', '', '')
        else:
            share = f'{100 * count / large["dense_form"]:.1f}'
            table.add(name, _readable(count), share, _readable(report['flops'] - large['dense_form'] + count))
    return table


def print_report(
    complexity: Complexity, executed: Mapping[tuple[str, str], int | None], report: dict[str, Any]
) -> None:
    component_table(complexity, executed).print()
    print(
        f'active: not masked, as papers count; executed: on a CPU with {complexity.processor}, which multiplies zeros '
        'like any other weight'
    )
    published = _readable(complexity.params_as_published)
    print(f'parameters, active, without small kernels and embeddings, with auxiliary heads: {published}')
    for left_out in complexity.left_out:
        counts = [f'{_readable(left_out.params)} parameters'] if left_out.params else []
        counts += [f'{_readable(left_out.flops)} operations'] if left_out.flops else []
        print(f'not counted: {left_out.name}, {" and ".join(counts)}: {left_out.reason}')
    if complexity.calls:
        operator_table(report).print()


def _readable(count: float | None) -> str:
    if count is None:
        return 'unknown'
    for factor, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if count >= factor:
            return f'{count / factor:.2f} {unit}'
    return f'{count:.0f}'


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        model = build_model(read_config(args.config, args.cfg_options))
        densities, stored = sparse_form(model, args)
        processor = THIS_PROCESSOR if args.processor == 'this' else args.processor
        complexity = count_complexity(model, tuple(args.shape), densities, processor)
        executed = count_complexity(stored, tuple(args.shape), processor=processor).executed_by_component()
        report = (
            dict(config=args.config, shape=args.shape, density=None if args.checkpoint else args.density)
            | complexity.to_dict()
            | dict(flops_executed=total(executed))
        )
        print_report(complexity, executed, report)
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
