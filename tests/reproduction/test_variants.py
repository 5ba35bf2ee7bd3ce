"""Variants over seeds: what is read, what is trained, what follows a failure; a script stands in for the training."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from reproduction import variants
from reproduction.variants import VariantRun, mean_and_deviation, train_variants, trained_on

pytestmark = pytest.mark.slow

# In place of tools/train.py: says what it reads, and leaves behind what a training does.
TRAIN = """
import json, os, sys
from pathlib import Path
config, work = Path(sys.argv[1]), Path(sys.argv[3])
with open('trained', 'a') as file:
    file.write(config.parent.name + '\\n')
settings = {}
exec(config.read_text(), settings)
assert os.environ['OMP_NUM_THREADS'] == '1' and os.environ['CUDA_VISIBLE_DEVICES'] == ''
assert settings['randomness'] == dict(seed=int(config.parent.name[-1]))
if settings['fails']:
    sys.exit('error: no luck')
data = work / '20260102_030401' / 'vis_data'
data.mkdir(parents=True)
(data / 'config.py').write_text('train_cfg = dict(max_iters=20)')
lines = [dict(iter=5, step=5), dict(mIoU=40.0, step=10), dict(iter=15, step=15), dict(mIoU=50.5, step=20)]
(data / 'scalars.json').write_text('\\n'.join(map(json.dumps, lines)))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, and the script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'train.py').write_text(TRAIN)
    monkeypatch.setattr(variants, '_TRAIN', tmp_path / 'train.py')
    monkeypatch.setattr(variants, 'environment_info', lambda device: dict(device=f'a {device}', threads=8, date='02'))
    return tmp_path


def train(seeds: list[int], fails: str = '', at_a_time: int = 1, **settings: Any) -> list[VariantRun]:
    configs = {name: Config(dict(settings, fails=name == fails)) for name in ('dense', 'one, two')}
    return train_variants(configs, seeds, Path('work'), at_a_time, 'mIoU')


def trained() -> list[str]:
    return Path('trained').read_text(encoding='utf-8').split()


def test_finished_trainings_are_read_and_not_repeated() -> None:
    runs = train([0, 1], at_a_time=2)
    assert [(run.name, run.seed) for run in runs] == [(name, seed) for name in ('dense', 'one, two') for seed in (0, 1)]
    assert {run.curve for run in runs} == {((10, 40.0), (20, 50.5))}
    assert {run.final for run in runs} == {50.5}
    assert runs[0].machine == dict(device='a cpu', threads=1, date='02')
    assert sorted(trained()) == ['dense_0', 'dense_1', 'one_two_0', 'one_two_1']
    assert train([0, 1]) == runs
    assert len(trained()) == 4
    # Other settings train anew, and only once.
    assert train([0], lr=1.0) == train([0], lr=1.0)
    assert trained()[4:] == ['dense_0', 'one_two_0']


def test_failure_names_the_log_and_stops_the_rest() -> None:
    with pytest.raises(
        ValueError, match=r"training of 'one, two' with seed 0 failed: error: no luck; all of it: work/one_two_0/con"
    ):
        train([*range(9)], fails='one, two')
    assert trained() == ['dense_0', 'one_two_0']
    # The same call again trains what failed, and not what was finished.
    train([0])
    assert trained()[2:] == ['one_two_0']


def test_data_that_are_not_there_and_machines_that_differ(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'nowhere' of train_dataloader\.dataset does not exist"):
        train([0], train_dataloader=dict(dataset=dict(data_root='nowhere')))
    assert not (folder / 'trained').exists()
    machines = [dict(device='a', threads=1, date='02'), dict(device='b', threads=1, date='01')]
    runs = [VariantRun('x', seed, (), machine) for seed, machine in enumerate(machines)]
    assert trained_on(runs) == dict(device='a or b', threads=1, date='01')
    assert trained_on(runs[:1]) == machines[0]
    assert mean_and_deviation([3.0]) == (3.0, 0.0)
