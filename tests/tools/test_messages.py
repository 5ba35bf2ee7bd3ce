"""What a user reads after a mistake: one sentence, exit code 1, no traceback, with and without a launcher.

The checks themselves are tested in ``tests/engine``.
"""

from pathlib import Path

import pytest

from tests.commands import call, run
from tests.paths import CONFIGS, TOOLS

RECIPE = CONFIGS / 'seg' / 'upernet_pelk_t_ade20k.py'


@pytest.mark.slow
def test_missing_weights_under_the_launcher(tmp_path: Path) -> None:
    printed = run(TOOLS / 'dist_train.sh', RECIPE, 2, cwd=tmp_path, code=1)
    assert "the pretrained weights 'checkpoints/pelk_t_in1k.pth' do not exist" in printed
    assert 'Traceback' not in printed
    assert printed.count('do not exist') == 1, 'rank 0 alone speaks'
    # The sentence, two lines of torchrun's log, and which process stopped first.
    assert len(printed.splitlines()) <= 4


def test_unknown_module(tiny_config: Path) -> None:
    options = ['--cfg-options', 'model.backbone.type=mmpelk.PeLKK']
    printed = call(TOOLS / 'train.py', tiny_config, *options, cwd=tiny_config.parent, code=1)
    last = printed.splitlines()[-1]
    assert last.startswith('error: ')
    assert 'mmpelk.PeLKK is not in the' in last
    assert 'Traceback' not in printed


@pytest.mark.slow
def test_launcher_without_arguments_prints_its_usage(tmp_path: Path) -> None:
    assert 'dist_train.sh CONFIG N' in run(TOOLS / 'dist_train.sh', cwd=tmp_path, code=2)
