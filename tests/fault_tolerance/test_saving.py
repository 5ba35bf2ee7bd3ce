"""What runs beside the training, and which failures are those of a write."""

import threading
from pathlib import Path

import pytest

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.saving import BackgroundWriter, explain_failed_write


@pytest.mark.parametrize('last', [True, False])
def test_writes_come_in_order_and_a_failure_is_told_once(last: bool) -> None:
    writer, done, begun = BackgroundWriter(), [], threading.Event()

    def first() -> None:
        begun.wait(60)
        done.append('first')

    def second() -> None:
        done.append('second')
        raise UserError('no room')

    writer.submit(first)
    writer.submit(second)
    if not last:
        writer.submit(lambda: done.append('third'))
    begun.set()
    with pytest.raises(UserError, match='no room'):
        writer.wait()
    assert done[:2] == ['first', 'second']
    writer.wait()
    writer.submit(lambda: done.append('later'))
    writer.wait()
    assert done == ['first', 'second', *([] if last else ['third']), 'later']


def test_the_first_process_alone_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: 1)
    writer, done = BackgroundWriter(), []
    writer.submit(lambda: done.append('second'))
    writer.wait()
    assert not done


@pytest.mark.parametrize(('error', 'reason'), [
    (OSError(28, 'No space left on device'), 'No space left on device'),
    (OSError('of the network'), 'of the network'),
    (RuntimeError('failed writing file data/3: file write failed'), 'failed writing file data/3: file write failed'),
    (RuntimeError('CUDA out of memory'), None),
    (ValueError('to write'), None),
])  # fmt: skip
@pytest.mark.parametrize('last', [None, 'iter_1.pth'])
def test_only_failed_writes_are_explained(error: Exception, reason: str | None, last: str | None) -> None:
    path = str(Path('run') / 'iter_2.pth')
    with pytest.raises(UserError if reason else type(error)) as caught, explain_failed_write(path, last):
        raise error
    good = "the last good one is 'iter_1.pth'" if last else 'there is none before it'
    assert (caught.value is error) is (reason is None)
    assert reason is None or str(caught.value).startswith(
        f"the checkpoint '{path}' cannot be written: {reason}; {good}."
    )
