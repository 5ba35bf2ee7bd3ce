"""A question to all processes; two of them ask in ``tests/fault_tolerance``."""

import pytest
import torch

from mmpelk.fault_tolerance.agreement import Agreement


@pytest.mark.parametrize('flag', [True, torch.tensor(True), torch.tensor([[2.0]])], ids=str)
def test_a_question_is_answered_once(flag: bool | torch.Tensor) -> None:
    agreement = Agreement()
    assert not agreement.answer(), 'none was asked'
    agreement.ask(flag)
    assert agreement.answer()
    assert not agreement.answer(), 'nor a second one'
    agreement.ask(False)
    assert not agreement.answer()
