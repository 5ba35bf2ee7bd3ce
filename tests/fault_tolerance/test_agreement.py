"""A question to all processes; two of them ask in ``tests/fault_tolerance``."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmpelk.fault_tolerance import agreement
from mmpelk.fault_tolerance.agreement import Agreement, raise_on_all
from mmpelk.fault_tolerance.errors import UserError


@pytest.mark.parametrize('flag', [True, torch.tensor(True), torch.tensor([[2.0]])], ids=str)
def test_a_question_is_answered_once(flag: bool | torch.Tensor) -> None:
    agreement = Agreement()
    assert not agreement.answer(), 'none was asked'
    agreement.ask(flag)
    assert agreement.answer()
    assert not agreement.answer(), 'nor a second one'
    agreement.ask(False)
    assert not agreement.answer()


@pytest.mark.parametrize('here', [True, False])
@pytest.mark.parametrize('there', [True, False])
def test_one_process_of_two_is_enough(here: bool, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other has said is known when the wait is over."""

    def all_reduce(flag: torch.Tensor, how: Any, async_op: bool) -> Any:
        other = torch.full_like(flag, float(there))
        return SimpleNamespace(wait=lambda: flag.copy_({reduce.MAX: torch.maximum}[how](flag, other)))

    reduce = torch.distributed.ReduceOp
    monkeypatch.setattr(agreement, 'is_distributed', lambda: True)
    monkeypatch.setattr(agreement, 'get_comm_device', lambda: torch.device('cpu'))
    monkeypatch.setattr(torch.distributed, 'all_reduce', all_reduce)
    asked = Agreement()
    asked.ask(here)
    assert asked.answer() is (here or there)


@pytest.mark.parametrize('fault', ['', 'no room'])
def test_an_error_of_the_first_process_is_raised_on_the_others(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, 'is_main_process', lambda: False)
    monkeypatch.setattr(agreement, 'broadcast_object_list', lambda said: said.__setitem__(0, fault))
    if fault:
        with pytest.raises(UserError, match='no room'), raise_on_all():
            pass
    else:
        with raise_on_all():
            pass
