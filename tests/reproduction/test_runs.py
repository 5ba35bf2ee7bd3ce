"""What is read from the work folder of a training: resumed, started anew, killed."""

from pathlib import Path

import pytest

from reproduction.runs import read_run
from tests.training_logs import epoch, write_start

METRIC = 'accuracy/top1'
BEGUN = [*epoch(1, 80.0), *epoch(2)]


def test_finished_run(tmp_path: Path) -> None:
    write_start(tmp_path, [*epoch(1, 80.5), *epoch(2, 80.0)])
    run = read_run(tmp_path, METRIC)
    assert (run.status, run.final, run.progress, run.planned, run.unit) == ('finished', 80.0, 2, 2, 'epoch')
    assert (run.machine, run.processes, run.date) == ('2 x NVIDIA H100', 2, '2026-01-02')
    assert run.checkpoint(2) == tmp_path / 'epoch_2.pth'
    run = read_run(tmp_path / 'nothing', METRIC)
    assert (run.status, run.final) == ('missing', None)


@pytest.mark.parametrize(
    ('starts', 'tested', 'status', 'progress'),
    [
        ([BEGUN], {1: 80.0}, 'unfinished', 2),
        ([BEGUN, [*epoch(2, 80.1), *epoch(3, 80.2)]], {1: 80.0, 2: 80.1, 3: 80.2}, 'finished', 3),
        # Started anew, it does not inherit the end.
        ([[*epoch(1, 70.0), *epoch(2, 71.0), *epoch(3, 72.0)], epoch(1, 80.0)], {1: 80.0}, 'unfinished', 1),
        ([[*epoch(1, 70.0), *epoch(2, 71.0)], epoch(2)], {1: 70.0}, 'unfinished', 2),  # nor the epoch that it repeats
    ],
    ids=['begun', 'resumed', 'anew', 'repeated'],
)
def test_starts_are_one_run(
    starts: list[list[dict]], tested: dict[int, float], status: str, progress: int, tmp_path: Path
) -> None:
    for second, lines in enumerate(starts):
        write_start(tmp_path, lines, 'train_cfg = dict(max_epochs=3)', second)
    run = read_run(tmp_path, METRIC)
    assert (run.tested, run.status, run.progress) == (tested, status, progress)


def test_the_newest_start_says_what_is_planned(tmp_path: Path) -> None:
    for second, epochs in enumerate((2, 5)):
        write_start(tmp_path, epoch(1 + second, 80.0), f'train_cfg = dict(max_epochs={epochs})', second)
    run = read_run(tmp_path, METRIC)
    assert (run.planned, run.status, run.cfg['train_cfg']) == (5, 'unfinished', dict(max_epochs=5))


def test_killed_while_writing_a_line(tmp_path: Path) -> None:
    write_start(tmp_path, [*epoch(1, 80.0), *epoch(2)])
    log = next(tmp_path.glob('*/vis_data/scalars.json'))
    log.write_text(log.read_text() + '\n{"accuracy/top1": 80.')
    run = read_run(tmp_path, METRIC)
    assert (run.status, run.tested) == ('unfinished', {1: 80.0})
