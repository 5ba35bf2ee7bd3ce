"""What values mean: all readings of some values, names and answers, compared with a file in ``expected``."""

from collections.abc import Callable, Sequence
from textwrap import shorten

import pytest
from own_data import Answers
from own_data.meaning import Statistics, interpret
from own_data.names import ClassName

from mmpelk.errors import UserError

# Values of label maps, as a tool numbers classes, masks and grey levels; the last of a row is its border.
VALUES = ('0 1', '1 2', '0 255', '0 1 2', '0 2', '1 2 3', '0 1 2 255', '0 1 2 3', '0 5', '1 4 8', '0 2 4 8', '0 9 255')
NAMES = ('', 'a', 'a b', 'background b', 'a Void', 'a b c', 'other b bg', 'a=0 b=2', 'a=1')
ANSWERS = {
    'nothing said': Answers(),
    'none ignored': Answers(['none']),
    '0 ignored': Answers(['0']),
    '0 and 2 ignored': Answers(['0', '2']),
    'background 0': Answers(background='0'),
    'background 255': Answers(background='255'),
}


def named(text: str) -> list[ClassName]:
    parts = [each.partition('=') for each in text.split()]
    return [ClassName(name, int(key) if key else None) for name, _, key in parts]


def beginning(text: str, length: int) -> str:
    """Whole words alone, which the spelling check reads."""
    return shorten(text, length, placeholder='')


def read(counts: dict[int, int], names: str, answers: Answers) -> str:
    """The value of each class, and what is said of it."""
    try:
        found = interpret(Statistics(counts, counts), False, False, named(names), answers)
    except UserError as error:
        return f'! {beginning(str(error), 60)}'
    shown = {str(key): found.classes[index] for key, index in sorted(found.mapping.items())}
    order = '' if list(dict.fromkeys(shown.values())) == found.classes else f' of {" ".join(found.classes)}'
    said = [f'{kind[0]}: {beginning(text, 60)}' for kind, text in found.said]
    return f'{" ".join(f"{key}={name}" for key, name in shown.items())}{order} | {" | ".join(said)}'


@pytest.mark.parametrize('names', NAMES)
def test_every_reading(names: str, compare: Callable[[str], None]) -> None:
    """What several answers give is written once."""
    lines = []
    for values in VALUES:
        counts = {int(value): 100 + 10 * place for place, value in enumerate(values.split())}
        outcomes: dict[str, list[str]] = {}
        for answer, answers in ANSWERS.items():
            outcomes.setdefault(read(counts, names, answers), []).append(answer)
        lines += [f'{values} | {", ".join(asked)}: {outcome}' for outcome, asked in outcomes.items()]
    compare('\n'.join(lines))


# Pixels of values, and the share that lies inside, of some or of all.
SOFT: dict[str, tuple[dict[int, int], Sequence[int]]] = {
    'sharp': ({0: 500, 100: 300, 200: 200}, ()),
    'two thin values': ({0: 500, 90: 10, 110: 10, 200: 400}, (90, 110)),
    'three thin values': ({0: 500, 90: 10, 110: 10, 160: 10, 200: 400}, (90, 110, 160)),
    'as near as a contour': ({0: 500, 40: 10, 41: 10, 159: 10, 160: 10, 200: 400}, (40, 41, 159, 160)),
    'one value and contours': ({0: 500, 50: 10, 60: 10, 70: 10}, (50, 60, 70)),
    'two fifths are thin': ({0: 300, 90: 134, 110: 133, 160: 133, 200: 300}, (90, 110, 160)),
    'more are thin': ({0: 300, 90: 135, 110: 133, 160: 133, 200: 299}, (90, 110, 160)),
    'a small class': ({0: 990, 90: 1, 110: 1, 160: 1, 200: 400, 255: 5, 20: 4}, (90, 110, 160)),
    'a smaller class': ({0: 990, 90: 1, 110: 1, 160: 1, 200: 400, 255: 4, 20: 4}, (90, 110, 160)),
}


@pytest.mark.parametrize(('counts', 'thin'), SOFT.values(), ids=SOFT)
@pytest.mark.parametrize('kind', ['values', 'colours'])
def test_contours(counts: dict[int, int], thin: Sequence[int], kind: str, compare: Callable[[str], None]) -> None:
    """Values between those of the classes, of smoothed maps and of JPEGs, and shares of what is in no class."""
    coloured = kind == 'colours'
    keys = {value: value << 16 | 7 if coloured else value for value in counts}
    lines = []
    for lossy, answers, names in (
        (False, Answers(), ()),
        (False, Answers(soft_edges=True), ()),
        (False, Answers(), ('a', 'b')),
        (True, Answers(), ()),
    ):
        inner = {keys[value]: 4 * count // 100 if value in thin else count // 2 for value, count in counts.items()}
        statistics = Statistics({keys[value]: count for value, count in counts.items()}, inner)
        listed = [ClassName(name, keys[value], coloured) for name, value in zip(names, (0, max(counts)), strict=False)]
        try:
            found = interpret(statistics, coloured, lossy, listed, answers)
        except UserError as error:
            lines.append(f'! {error}')
        else:
            lines += [
                str(found.mapping),
                '; '.join(map(' '.join, found.rows)),
                *(f'{kind}: {beginning(text, 160)}' for kind, text in found.said),
            ]
    compare('\n'.join(lines))


@pytest.mark.parametrize(('inner', 'blurred'), [(4, True), (5, False)])
def test_what_has_a_twentieth_inside_is_no_contour(inner: int, blurred: bool) -> None:
    counts = {0: 5000, 80: 100, 120: 100, 130: 100, 200: 4000}
    found = interpret(
        Statistics(counts, {key: 2000 if key in (0, 200) else inner for key in counts}), False, False, [], Answers()
    )
    assert (len(found.classes) == 2) is blurred
