"""Arguments of the hook whose effect only a run shows."""

from pathlib import Path

import pytest

from mmpelk.sparsity import cosine_prune_rate, granularity
from tests.sparsity.tiny import TinyData


def test_prune_rate_ends_where_it_is_told(make_runner):
    runner = make_runner({'update_interval': 3, 'prune_rate': 0.5, 'prune_rate_end': 0.4}, max_iters=6)
    runner.train()
    assert runner.message_hub.get_scalar('train/prune_rate').current() == cosine_prune_rate(3, 6, 0.5, 0.4)


def test_every_update_has_random_numbers_of_its_own(make_runner, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        granularity, 'prune_and_grow', lambda weight, mask, rate, generator: seeds.append(generator.initial_seed()) or 0
    )
    make_runner({'update_interval': 2}, max_iters=8).train()
    assert len(set(seeds)) == len(seeds) / 3 == 3, 'one of each update, for all three parameters'


@pytest.mark.parametrize(('interval', 'tables'), [(1, 5), (2, 3), (9, 1)])
def test_table_is_logged_at_every_so_many_updates(make_runner, interval, tables):
    runner = make_runner({'update_interval': 1, 'table_interval': interval}, max_iters=5)
    runner.train()
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert log.count('Masks updated') == 4
    assert log.count('backbone.depthwise.weight  8x1x5x5') == tables  # the first is that of the start


@pytest.mark.parametrize(('size', 'samples'), [(None, 4), (6, 6)])
def test_snip_takes_as_many_samples_as_it_is_told(make_runner, size, samples):
    class Counting(TinyData):
        taken = 0

        def __getitem__(self, index):
            Counting.taken += 1
            return super().__getitem__(index)

    make_runner({'mode': 'fixed', 'snip_batch_size': size}, data=Counting(), max_iters=1).train()
    assert Counting.taken == samples + 4  # four train
