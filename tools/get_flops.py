"""Parameters and FLOPs of any recipe, dense and sparse, by component, beside what the operator really executes."""

import argparse
import json
from pathlib import Path
from typing import Any

from mmengine.config import DictAction
from mmengine.runner import CheckpointLoader
from torch import nn

from mmpelk.analysis.complexity import Complexity, checkpoint_densities, count_complexity, uniform_densities
from mmpelk.analysis.inference import build_model
from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error, parse_options, read_config


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
        help="share of live weights in the backbone's and a classifier's 2-D and 4-D parameters; 0.6 in the paper",
    )
    density.add_argument('--checkpoint', help="take the density of every layer from this checkpoint's masks or zeros")
    parser.add_argument('--json', metavar='FILE', help='write everything there, too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config')
    return parse_options(parser)


def densities(model: nn.Module, args: argparse.Namespace) -> dict[str, float]:
    if args.checkpoint is None:
        return uniform_densities(model, args.density)
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, map_location='cpu')
    state_dict = checkpoint.get('state_dict', checkpoint)
    return checkpoint_densities(model, {name.removeprefix('module.'): value for name, value in state_dict.items()})


def component_table(complexity: Complexity) -> Table:
    columns = ['part', 'component', 'params', 'sparse', 'FLOPs', 'sparse', '% of all', '% of part']
    title = 'Parameters (training form) and FLOPs (deployed form, one per multiply-add)'
    table = Table(columns, title=title, labels=2)
    for component in complexity.components:
        counts = (component.params, component.params_sparse, component.flops, component.flops_sparse)
        shares = (complexity.flops_sparse, complexity.part(component.part))
        table.add(
            component.part,
            component.name,
            *(_readable(count) for count in counts),
            *(f'{100 * component.flops_sparse / whole:.2f}' if whole else '' for whole in shares),
        )
    totals = (complexity.params, complexity.params_sparse, complexity.flops, complexity.flops_sparse)
    table.add('all', '', *(_readable(count) for count in totals), '100', '')
    return table


def operator_table(report: dict[str, Any]) -> Table:
    large = report['large_kernels']
    title = 'Large kernels: operations that each backend executes, whatever the density'
    table = Table(['backend', 'large kernels', '% of dense form', 'all'], title=title)
    table.add("the paper's dense form", _readable(large['dense_form']), '100.0', _readable(report['flops']))
    chosen = large['chosen_on_cpu']
    rows = [*large['executed'].items(), (f'chosen on a CPU: {", ".join(chosen["backends"])}', chosen['executed'])]
    for name, count in rows:
        if count is None:
            table.add(name, 'unknown', '', '')
        else:
            share = f'{100 * count / large["dense_form"]:.1f}'
            table.add(name, _readable(count), share, _readable(report['flops'] - large['dense_form'] + count))
    return table


def print_report(complexity: Complexity, report: dict[str, Any]) -> None:
    component_table(complexity).print()
    published = _readable(complexity.params_as_published)
    print(f'parameters, sparse, without small kernels and embeddings, with auxiliary heads: {published}')
    for left_out in complexity.left_out:
        counts = [f'{_readable(left_out.params)} parameters'] if left_out.params else []
        counts += [f'{_readable(left_out.flops)} operations'] if left_out.flops else []
        print(f'not counted: {left_out.name}, {" and ".join(counts)}: {left_out.reason}')
    if complexity.calls:
        operator_table(report).print()


def _readable(count: float) -> str:
    for factor, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if count >= factor:
            return f'{count / factor:.2f} {unit}'
    return f'{count:.0f}'


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        model = build_model(read_config(args.config, args.cfg_options))
        complexity = count_complexity(model, tuple(args.shape), densities(model, args))
        report = (
            dict(config=args.config, shape=args.shape, density=None if args.checkpoint else args.density)
            | complexity.to_dict()
        )
        print_report(complexity, report)
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
