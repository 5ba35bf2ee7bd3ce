"""A training on two processes that is killed and resumed, a hundred times: nothing but the last interval may be lost.

SIGKILL comes at moments that are drawn: at any time after a resume, or while a checkpoint is being written; to both
processes, or to one, whose loss the other has to notice. After each kill every checkpoint has to be whole, and the next
start, which is `--resume` and nothing else, must lose no more than one interval. At the end weights, averages,
optimizer, masks, random states and logged losses are compared, bit for bit, to those of a run that nobody interrupted.

python -m tests.fault_tolerance.torture --kills 100 --seed 0 --amp
"""

import argparse
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmpelk.fault_tolerance.safe_loading import check_integrity, load_data
from tests.commands import find_free_port
from tests.conftest import draw_ade20k
from tests.fault_tolerance.recipes import NO_VALIDATION, write_recipe
from tests.fault_tolerance.training import LOST, Running, difference, preload, start

INTERVAL = 2  # iterations between two checkpoints
MOST = 2 * INTERVAL  # iterations that a run does at most before it is killed
TIMEOUT = 900.0  # seconds in which the process that was left alone has to end
VICTIMS = ((0, 1), (0,), (1,))


@dataclass
class Kill:
    """What one kill met.

    Attributes:
        reached: Iteration that the run had logged.
        writing: Whether a checkpoint was half written.
        unnamed: Whether the newest one was whole, but not yet named as the last.
        saved: Iteration of the newest checkpoint that it left.
    """

    reached: int
    writing: bool
    unnamed: bool
    saved: int


class Torture:
    """Runs of one recipe in a folder.

    Args:
        folder: To work in.
        kills: How many.
        seed: Of the moments and of the training.
        amp: Train in mixed precision, with a gradient scaler.
    """

    def __init__(self, folder: Path, kills: int, seed: int, amp: bool = False) -> None:
        self.folder, self.kills = folder, kills
        self.draw = random.Random(seed)
        self.iterations = 3 * kills + 4 * INTERVAL
        self.recipe = write_recipe(
            'seg',
            draw_ade20k(folder / 'data'),
            folder / 'recipe.py',
            randomness=dict(seed=seed),
            train_cfg__max_iters=self.iterations,
            default_hooks__checkpoint__interval=INTERVAL,
            default_hooks__checkpoint__save_best=None,
            **NO_VALIDATION,
            **({'optim_wrapper.type': 'CPUAmpOptimWrapper'} if amp else {}),
            param_scheduler=[dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=2, end=self.iterations)],
        )
        self._starts, self._dealt = 0, [*VICTIMS]
        self.draw.shuffle(self._dealt)

    def start(self, name: str, *options: str) -> Running:
        """A run; what it prints is in a folder of its own."""
        self._starts += 1
        folder = self.folder / 'printed' / str(self._starts)
        folder.mkdir(parents=True)
        return start(folder, [self.recipe, '--work-dir', self.folder / name, *options], 2, port=find_free_port())

    def finish(self, running: Running) -> None:
        codes = running.wait(TIMEOUT + 2 * self.iterations)
        assert codes == [0, 0], f'{codes}:\n{running.printed()[-3000:]}'

    def kill(self, running: Running) -> Kill:
        """Kill a run at a drawn moment."""
        work, begun = self.folder / 'killed', time.monotonic()
        running.wait_for(lambda: resumed_from(running) is not None)
        first, slowness = resumed_from(running) or 0, time.monotonic() - begun
        if not first:  # a resume takes a checkpoint
            first = INTERVAL
            running.wait_for((work / f'iter_{first}.pth').exists)
        victims = self._dealt[self._starts % len(VICTIMS)]
        target = min(first + self.draw.randint(0, MOST - 1), self.iterations - INTERVAL)
        if self.draw.random() < 0.5:  # while a checkpoint is written
            target = max(first // INTERVAL + 1, target // INTERVAL) * INTERVAL
            aside, named = work / f'.iter_{target}.pth.tmp', work / f'iter_{target}.pth'
            running.wait_for(lambda: reached(running) >= target - 1)
            running.wait_for(lambda: aside.exists() or named.exists(), 0.0002)
            time.sleep(self.draw.random() * 0.004)
        else:  # from the start of the first iteration on
            running.wait_for(lambda: max(first, reached(running)) >= target)
            time.sleep(self.draw.random() * slowness / 4)
        running.kill(signal.SIGKILL, victims)
        codes = running.wait(TIMEOUT)
        for rank, code in enumerate(codes):
            printed = running.logs[rank].read_text(errors='replace')
            assert code == (-signal.SIGKILL if rank in victims else 1), f'{codes}:\n{printed[-3000:]}'
            assert rank in victims or (LOST in printed and 'Traceback' not in printed), printed[-3000:]
        writing = bool(list(work.glob('.*.tmp')))
        saved, named = self.newest(), work / 'last_checkpoint'
        unnamed = not named.exists() or Path(named.read_text()).name != f'iter_{saved}.pth'
        return Kill(max(first, reached(running)), writing, unnamed, saved)

    def newest(self) -> int:
        """Iteration of the newest checkpoint; all of them, and what `last_checkpoint` names, have to be whole."""
        work, found = self.folder / 'killed', [0]
        for path in work.glob('iter_*.pth'):
            check_integrity(path)
            found.append(load_data(path, 'cpu')['meta']['iter'])
        pointer = work / 'last_checkpoint'
        assert not pointer.exists() or Path(pointer.read_text()).is_file()
        return max(found)


def _printed(running: Running) -> str:
    log = running.logs[0]
    return log.read_text(errors='replace') if log.exists() else ''


def reached(running: Running) -> int:
    """The last iteration that the first process has logged."""
    found = re.findall(r'Iter\(train\) \[ *(\d+)/', _printed(running))
    return int(found[-1]) if found else 0


def resumed_from(running: Running) -> int | None:
    """The iteration that a run goes on from, once it has said so; 0 where it begins."""
    printed = _printed(running)
    if 'training starts at the beginning' in printed:
        return 0
    found = re.search(r'resumed epoch: \d+, iter: (\d+)', printed)
    return int(found[1]) if found else None


def torture(folder: Path, kills: int, seed: int, say: Callable[[str], Any] = print, amp: bool = False) -> str:
    """Kill and resume, and compare.

    Returns:
        A line with the figures.

    Raises:
        AssertionError: If more than an interval is lost, a checkpoint is torn, or the ends differ.
    """
    preload('seg')
    runs = Torture(folder, kills, seed, amp)
    begun = time.monotonic()
    runs.finish(runs.start('whole'))
    whole = time.monotonic() - begun
    say(f'{runs.iterations} iterations without interruption: {whole:.0f} s')
    resumes = writing = unnamed = lost = most = 0
    last: Kill | None = None
    for number in range(1, kills + 1):
        running = runs.start('killed', '--resume')
        kill = runs.kill(running)
        resumes += _check(running, last)
        most = max(most, _lost(kill))
        lost, writing, unnamed, last = lost + _lost(kill), writing + kill.writing, unnamed + kill.unnamed, kill
        when = ' while writing' * kill.writing + ' while syncing' * kill.unnamed
        seconds = time.monotonic() - begun
        say(f'kill {number}: at iteration {kill.reached}{when}, {kill.saved} is saved ({seconds:.0f} s)')
    running = runs.start('killed', '--resume')
    runs.finish(running)
    resumes += _check(running, last)
    assert resumes == kills
    name = f'iter_{runs.iterations}.pth'
    first, second = (torch.load(folder / run / name, weights_only=False) for run in ('whole', 'killed'))
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'message_hub', 'run_state'} <= first.keys()
    assert ('loss_scaler' in first['optimizer']) == amp
    assert not (differ := difference(first, second)), differ
    return (
        f'{kills} kills of {runs.iterations} iterations on two processes (seed {seed}), {writing} of them in a write '
        f'and {unnamed} before the newest checkpoint was synced and named as the last: {resumes} resumes, '
        f'{lost / kills:.1f} iterations lost on average, {most} at most, of an interval of {INTERVAL}; the last '
        'checkpoint equals that of the uninterrupted run bit for bit'
    )


def _lost(kill: Kill) -> int:
    lost = kill.reached - kill.saved
    assert lost <= INTERVAL, f'{lost} iterations are lost'
    return lost


def _check(running: Running, last: Kill | None) -> bool:
    """Whether a run has resumed, from the newest checkpoint that the kill before it left."""
    found = resumed_from(running)
    assert found == (last.saved if last else 0), f'resumed from {found}, not from {last}'
    return bool(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=100, help='%(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of the moments and of the training; %(default)s')
    parser.add_argument('--amp', action='store_true', help='in bfloat16, with a gradient scaler')
    args = parser.parse_args()
    if args.kills < 1:
        parser.error('--kills takes a number from 1 on')
    with tempfile.TemporaryDirectory() as folder:
        print(torture(Path(folder), args.kills, args.seed, lambda line: print(line, flush=True), args.amp))


if __name__ == '__main__':
    main()
