"""What results files hold of trainings: curves, means and gains over seeds."""

import pytest

from benchmarks import inflation, sparsity_accuracy, sparsity_speed
from reproduction.variants import VariantRun


def run(name: str, seed: int, *values: float, step: int = 35) -> VariantRun:
    return VariantRun(name, seed, tuple(((index + 1) * step, value) for index, value in enumerate(values)), {})


def test_curves_of_inflated_networks_follow_those_that_they_began_as() -> None:
    firsts = {0: run('half', 0, 50.0, 60.0), 1: run('half', 1, 51.0, 78.2)}
    joined = inflation.curves([run('x', 1, 70.0, 90.0), run('x', 0, 78.0, 79.0)], firsts, 70)
    assert joined == {
        '1': [(35, 51.0), (70, 78.2), (105, 70.0), (140, 90.0)],
        '0': [(35, 50.0), (70, 60.0), (105, 78.0), (140, 79.0)],
    }
    assert inflation.curves([run('x', 3, 1.0)]) == {'3': [(35, 1.0)]}
    summary = inflation.summarise({**joined, '2': [(35, 70.0), (140, 71.0)]})
    assert summary['final'] == dict(mean=80.0, deviation=pytest.approx(9.539, abs=1e-3), values=[90.0, 79.0, 71.0])
    assert summary['found'] == [140, 140, None]
    whole = inflation.summarise({'1': [(140, 80.0)], '0': [(140, 70.0)], '2': [(140, 70.0)]})
    rows = inflation.make_table({'7 x 7': whole, 'x': summary}, 140).rows
    assert [list(row[2:]) for row in rows] == [['-', '140, never, never'], ['+6.7 ± 4.9', '140, 140, never']]


def test_variants_of_the_inflation_are_one_schedule() -> None:
    """Half of it twice, and the kernels' own rate after the inflation."""
    for iterations, rate in ((700, 1), (350, 10)):
        cfg = inflation.variant('large', iterations, 70, rate)
        assert cfg.model.backbone.kernel_sizes == (31, 29)
        assert (cfg.param_scheduler[-1].end, cfg.train_cfg.max_iters) == (iterations, iterations)
        assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin
        assert cfg.optim_wrapper.paramwise_cfg.custom_keys['mixer.large'].lr_mult == rate
        assert cfg.default_hooks.checkpoint.interval == iterations
        assert (cfg.train_dataloader.batch_size, cfg.train_cfg.val_interval) == (8, 70)
    assert inflation.variant('small', 1, 1).model.backbone.kernel_sizes == (7, 7)


def test_gains_are_over_the_small_network_by_seed() -> None:
    counts = {name: dict(active=index, executed=10 * index) for index, name in enumerate(('dense', 'small'))}
    runs = [run('dense', 0, 1.0, 90.0), run('small', 0, 2.0, 80.0), run('dense', 1, 3.0, 94.0), run('small', 1, 88.0)]
    summary = sparsity_accuracy.summarise(runs, counts)
    assert summary['dense'] == dict(
        active=0, executed=0, mean=92.0, deviation=pytest.approx(8**0.5), values=[90.0, 94.0],
        gain=dict(mean=8.0, deviation=pytest.approx(8**0.5)),
    )  # fmt: skip
    assert summary['small']['gain'] == dict(mean=0.0, deviation=0.0)
    assert [list(row) for row in sparsity_accuracy.make_table(dict(demo=summary)).rows] == [
        ['demo', 'dense', '0.0 k', '0.0 M', '92.00 ± 2.83', '+8.00 ± 2.83'],
        ['demo', 'small', '0.0 k', '0.0 M', '84.00 ± 5.66', '-'],
    ]


@pytest.mark.slow
def test_what_sparse_variants_have_and_execute() -> None:
    """Zeros among the weights are executed; a small network has and executes what a shrunk one does."""
    counts = sparsity_accuracy.TASKS['digits'].counts()
    assert counts['unit'] == counts['small']
    assert counts['weight']['executed'] == counts['dense']['executed'] > counts['small']['executed']
    for name in ('weight', 'small'):
        assert 0.6 < counts[name]['active'] / counts['dense']['active'] < 0.7, 'norms and biases stay'
    hooks = {name: cfg.custom_hooks for name, cfg in sparsity_accuracy.TASKS['digits'].variants().items()}
    assert hooks['dense'] == hooks['small'] == []
    assert {hook.get('granularity', 'weight') for name in ('weight', 'unit') for hook in hooks[name]} == {
        'weight',
        'unit',
    }
    assert [hooks[name][0]['update_interval'] for name in ('weight', 'unit')] == [16, 16]  # of 252 iterations


def test_speeds_are_of_the_faster_layout() -> None:
    def network(first: float, last: float) -> dict[str, dict[str, float | None]]:
        peak = 2**20 * first
        return {
            'channels first': dict(ms=first, peak=peak if first < last else None),
            'channels last': dict(ms=last, peak=None if first < last else peak),
        }

    networks = dict(
        zip(sparsity_speed.RECIPES, (network(40, 60), network(90, 50), network(7, 8), network(9, 8)), strict=True)
    )
    (row,) = sparsity_speed.make_table([dict(batch=4, size=224, modes=dict(inference=networks))]).rows
    assert list(row) == ['4 of 224²', 'inference', '40', '50', '7', '8', '1.25', '40', '90']
