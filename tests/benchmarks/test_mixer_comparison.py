"""The comparison of mixers: that its variants differ in what they say, and that its stored results are theirs."""

import json
import math
from types import ModuleType
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from reproduction.variants import VariantRun
from tests.commands import load_tool
from tests.configs.resolved import flatten
from tests.paths import CONFIGS, ROOT

pytestmark = pytest.mark.scope('mmseg')

RECIPE = CONFIGS / 'demo' / 'upernet_pelk_nano_synthetic.py'

MIXER_OPTIONS = {'mixer', 'positional_embedding'}  # of the backbone; the centre and the widths are its architecture's


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    return load_tool(ROOT / 'benchmarks' / 'mixer_comparison.py')


@pytest.fixture(scope='module')
def widths(tool: ModuleType) -> dict[str, tuple[int, ...]]:
    return tool.plan()


@pytest.fixture(scope='module')
def stored() -> dict[str, Any]:
    return json.loads((ROOT / 'benchmarks/results/mixer_comparison.json').read_text())


@pytest.mark.slow
def test_matched_variants_have_the_bases_parameters(tool: ModuleType, widths: dict[str, tuple[int, ...]]) -> None:
    parameters = {name: tool.count_parameters(tool.VARIANTS[name], widths[name]) for name in tool.VARIANTS}
    base = parameters[tool.BASE]
    matched = {name: count / base - 1 for name, count in parameters.items() if name not in tool.EXTRA}
    assert max(map(abs, matched.values())) < 0.01, matched
    assert len(matched) == 6
    assert all(widths[name] == widths[tool.BASE] for name in tool.EXTRA)
    assert parameters['dense, same widths'] > 1.1 * base, 'what the matching is for'


@pytest.mark.slow
def test_variants_build_and_differ_in_mixer_and_widths_alone(
    tool: ModuleType, widths: dict[str, tuple[int, ...]]
) -> None:
    base = flatten(tool.variant(tool.BASE, widths[tool.BASE], 400).to_dict(), '')
    allowed = {f'.model.backbone.{key}' for key in MIXER_OPTIONS} | {
        *('.model.backbone.channels', '.model.backbone.center_size', '.model.decode_head.in_channels')
    }
    seen = set()
    for name in tool.VARIANTS:
        cfg = tool.variant(name, widths[name], 400)
        flat = flatten(cfg.to_dict(), '')
        different = {key for key in base.keys() | flat.keys() if base.get(key) != flat.get(key)}
        assert different <= allowed, name
        assert bool(different) == (name != tool.BASE)
        seen |= different
        model = MODELS.build(cfg.model)
        assert sum(parameter.numel() for parameter in model.parameters()) == tool.count_parameters(
            tool.VARIANTS[name], widths[name]
        )
        mixer = model.backbone.stages[0][0].mixer
        assert type(mixer).__name__.lower().startswith(tool.VARIANTS[name].get('mixer', 'peripheral')[:4]), name
    assert seen == allowed, 'what the base shares with all others does not stand here for nothing'


@pytest.mark.slow
def test_schedule_ends_with_the_training(tool: ModuleType, widths: dict[str, tuple[int, ...]]) -> None:
    cfg = tool.variant('dense', widths['dense'], 400)
    warm_up, decay = cfg.param_scheduler
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (400, 40)
    assert cfg.default_hooks.checkpoint.interval == 400
    assert (warm_up.begin, warm_up.end, decay.begin, decay.end) == (0, 30, 30, 400)
    # The decay is the demo's, over another number of iterations.
    demo = Config.fromfile(RECIPE).param_scheduler
    assert (warm_up, decay) == (demo[0], dict(demo[1], end=400))


@pytest.mark.slow
def test_summary(tool: ModuleType, widths: dict[str, tuple[int, ...]]) -> None:
    curves = {0: (10.0, 50.0), 1: (20.0, 52.0), 2: (60.0, 57.0)}
    runs = [VariantRun('stripe', seed, ((40, first), (80, last)), {}) for seed, (first, last) in curves.items()]
    summary = tool.summarise('stripe', widths['stripe'], runs)
    assert (summary['iterations'], summary['mean_curve']) == ([40, 80], [30.0, 53.0])
    assert summary['curves'] == {'0': [10.0, 50.0], '1': [20.0, 52.0], '2': [60.0, 57.0]}
    # Deviations from the mean -3, -1 and 4 of three seeds, over two.
    final = dict(mean=53.0, deviation=pytest.approx(math.sqrt((9 + 1 + 16) / 2)), values=[50.0, 52.0, 57.0])
    assert summary['final'] == final
    # Likewise -11.5, -5.5 and 17 from 41.5.
    assert summary['over_curve'] == dict(mean=41.5, deviation=pytest.approx(math.sqrt(225.75)), values=[30, 36, 58.5])
    assert summary['matched']
    one = tool.summarise('stripe', widths['stripe'], runs[:1])
    assert (one['final']['mean'], one['final']['deviation']) == (50.0, 0.0)


@pytest.mark.slow
def test_stored_results_are_of_these_variants(
    tool: ModuleType, widths: dict[str, tuple[int, ...]], stored: dict[str, Any]
) -> None:
    """Everything in the file follows from the variants and the curves."""
    assert set(stored['schedules']) == {'400', '700'}
    assert stored['machine']['threads'] == 1, 'of a training, not of what reads it'
    assert {'device', 'torch', 'python', 'date'} <= stored['machine'].keys()
    for iterations, variants in stored['schedules'].items():
        assert list(variants) == list(tool.VARIANTS)
        steps = [int(iterations) // 10 * step for step in range(1, 11)]
        for name, result in variants.items():
            runs = [
                VariantRun(name, seed, tuple(zip(steps, result['curves'][str(seed)], strict=True)), {})
                for seed in stored['seeds']
            ]
            assert json.loads(json.dumps(tool.summarise(name, widths[name], runs))) == result
