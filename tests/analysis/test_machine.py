"""The description of the machine says what the process was set to."""

from datetime import date
from types import SimpleNamespace

import pytest
import torch

from mmpelk.analysis.machine import environment_info


@pytest.mark.parametrize('matmul', [True, False])
def test_settings_of_the_process(matmul: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 77)
    monkeypatch.setattr(torch.backends.cuda, 'matmul', SimpleNamespace(allow_tf32=matmul))
    monkeypatch.setattr(torch.backends, 'cudnn', SimpleNamespace(allow_tf32=not matmul))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    found = environment_info('cuda')
    assert (found['device'], found['threads'], found['torch']) == ('a GPU', 77, torch.__version__)
    assert (found['tf32_matmul'], found['tf32_conv']) == (matmul, not matmul)
    assert date.fromisoformat(found['date']) <= date.today()
    processor = environment_info('cpu')['device']
    assert processor != 'a GPU'
    assert not processor.startswith('model name')
