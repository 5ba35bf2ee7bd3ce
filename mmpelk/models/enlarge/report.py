"""What was enlarged and what was left, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from mmpelk.ops.executed import backend_on_cpu, executed_operations


@dataclass(frozen=True)
class Change:
    """A convolution whose kernel was enlarged, or made smaller.

    Attributes:
        name: Name of the module.
        channels: Number of its channels.
        before: Rows and columns of its kernel before.
        after: Side of its kernel now.
        parameters: How many of its weight's before and now; none for a further name of a module that is listed.
        maps: Heights and widths of the maps that it was called for, if an image's size was given.
        backend: The forced backend; ``None`` chooses.
        sharing_grid: Ring widths of its kernel now.
    """

    name: str
    channels: int
    before: tuple[int, int]
    after: int
    parameters: tuple[int, int]
    maps: tuple[tuple[int, int], ...]
    backend: str | None
    sharing_grid: tuple[int, ...]

    @property
    def flops(self) -> tuple[int, int]:
        """Multiply-adds for one image of the dense kernels, before and now, not what a backend really computes."""
        positions = self.channels * sum(map(prod, self.maps))
        return positions * prod(self.before), positions * self.after**2

    @property
    def executed(self) -> int | None:
        """Operations for one image that a CPU of the reference class really executes; ``None`` where it hides them."""
        calls = []
        for size in self.maps:
            shape = (1, self.channels, *size)
            calls.append((self.backend or backend_on_cpu(shape, self.sharing_grid), shape, self.sharing_grid))
        return executed_operations(calls)


@dataclass(frozen=True)
class Enlargement:
    """What :func:`enlarge` or :func:`shrink` has done; printed as a table.

    The table has FLOPs if the size of an image was given: multiply-adds of the dense kernels before and now, and the
    operations that a CPU of the class ``mmpelk.ops.backends.REFERENCE_PROCESSOR`` executes for those now.

    Attributes:
        changes: The convolutions that were changed.
        left: Names of depthwise convolutions that were not, and why.
    """

    changes: list[Change] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [['convolution', 'channels', 'kernel', 'parameters']]
        with_flops = any(change.maps for change in self.changes)
        if with_flops:
            rows[0] += ['maps', 'FLOPs', 'executed']
        for change in self.changes:
            kernel = f'{change.before[0]} x {change.before[1]} -> {change.after} x {change.after}'
            rows.append([change.name, str(change.channels), kernel, _arrow(change.parameters)])
            if with_flops:
                maps = ', '.join(f'{height} x {width}' for height, width in change.maps)
                executed = change.executed
                rows[-1] += [maps, _arrow(change.flops), '' if executed is None else f'{executed:,}']
        total = tuple(sum(change.parameters[when] for change in self.changes) for when in (0, 1))
        rows.append(['all', '', '', _arrow(total)])
        if with_flops:
            flops = tuple(sum(change.flops[when] for change in self.changes) for when in (0, 1))
            counts = [change.executed for change in self.changes]
            rows[-1] += ['', _arrow(flops), '' if None in counts else f'{sum(filter(None, counts)):,}']
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f'{name} is left as it is: {reason}' for name, reason in self.left.items()]
        return '\n'.join(lines)


def _arrow(counts: Sequence[int]) -> str:
    return ' -> '.join(f'{count:,}' for count in counts)
