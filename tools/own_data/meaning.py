"""What the values or colours of label maps mean: every reading that fits, and a question where more than one does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmpelk.errors import UserError

from .dataset import UnknownLayoutError, make_palette
from .names import ClassName, Colour, pack, show_key, unpack

IGNORED = 255  # MMSegmentation's "no class"
_MOST_CLASSES = 255
_MOST_COLOURS = 200_000
_NEAR = 40  # how far a blurred value may be from its class's, in any channel
_SMALLEST = 0.003  # share of the pixels that a class has at least where contours are blurred
_OWN = ('background', 'bg', '_background_', '__background__')  # what --background names
_BACKGROUNDS = (*_OWN, 'void', 'unlabeled', 'unlabelled', 'other')


@dataclass(frozen=True)
class Answers:
    """What the user says about the label maps.

    Attributes:
        ignore: Values, colours or names that are not trained on; ``['none']``: not even 255; ``None``: not said.
        background: The value or colour of the background, a class of its own in front of the named ones.
        soft_edges: Values between those of the classes are blurred contours.
    """

    ignore: Sequence[str] | None = None
    background: str | None = None
    soft_edges: bool = False


@dataclass
class Statistics:
    """What the label maps hold: pixels of each value or packed colour, and how many have neighbours of their value."""

    counts: dict[int, int] = field(default_factory=dict)
    inner: dict[int, int] = field(default_factory=dict)

    def add(self, other: 'Statistics') -> None:
        """Add another map's."""
        for mine, others in ((self.counts, other.counts), (self.inner, other.inner)):
            for key, count in others.items():
                mine[key] = mine.get(key, 0) + count


@dataclass
class Meaning:
    """What the label maps mean.

    Attributes:
        classes: Names, in the order of their indices.
        palette: Colours to paint them in.
        mapping: From values or packed colours to indices; what is not in it is ignored.
        coloured: The keys are colours.
        rows: Of the report: value, class, index, share of all pixels.
        said: Notes: kind and text.
    """

    classes: list[str]
    palette: list[Colour]
    mapping: dict[int, int]
    coloured: bool
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Reading:
    """One way to understand the values: class names with what means them, in the order of the classes."""

    classes: tuple[tuple[str, int], ...]
    text: str
    option: str  # that confirms it
    certain: bool = True
    ignored: frozenset[int] = frozenset()  # that it says to be no class

    def present(self, keys: set[int]) -> int:
        return len({name for name, key in self.classes if key in keys})

    def absent(self, keys: set[int]) -> int:
        return len({name for name, _ in self.classes}) - self.present(keys)


def interpret(
    statistics: Statistics,
    coloured: bool,
    lossy: bool,
    names: Sequence[ClassName],
    answers: Answers,
    known: Callable[[list[int]], dict[str, Any] | None] = lambda values: None,
) -> Meaning:
    """Decide which value is which class, what is background, and what is ignored.

    Args:
        statistics: Of all label maps.
        coloured: Their keys are packed colours.
        lossy: They are JPEGs.
        names: The classes, as far as they are known.
        answers: What the user says.
        known: From the values to ``classes``, ``palette`` and ``keys`` of the public data set that the files come from.

    Raises:
        UserError: If no reading fits.
    """
    if len(statistics.counts) > _MOST_COLOURS:
        raise UserError(
            f'the label maps hold {len(statistics.counts)} colours, so they are photographs: give the folders of '
            'images and label maps with --images and --labels'
        )
    coloured_names = any(name.coloured for name in names)
    if coloured and not coloured_names and all(r == g == b for r, g, b in map(unpack, statistics.counts)):
        # Grey pictures of three channels are values.
        statistics = Statistics(
            *({k & 255: n for k, n in part.items()} for part in (statistics.counts, statistics.inner))
        )
        grey, coloured = True, False
    else:
        grey = False
    said: list[tuple[str, str]] = []
    listed = {name.name: unpack(name.key) for name in names if name.coloured and name.key is not None}
    if listed and not coloured:
        names = [ClassName(name) for name in listed]
        text = 'the list of classes names colours, the label maps hold indices: they are taken for places in the list'
        said.append(('question', f'{text} (--classes {next(iter(listed))}=0,...)'))
    nearest = _soften(statistics, coloured, lossy, names, answers, said)
    counts: dict[int, int] = {}
    for key, count in statistics.counts.items():
        if (centre := nearest.get(key, key)) is not None:
            counts[centre] = counts.get(centre, 0) + count
    ignored = _ignored(answers, names, coloured)
    keys = set(counts) - ignored
    reading = _choose(keys, coloured, names, answers, known, counts, said)
    classes = list(dict.fromkeys(name for name, _ in reading.classes))
    if len(classes) > _MOST_CLASSES:
        raise UserError(f'{len(classes)} classes: MMSegmentation knows 255 at most')
    index = {key: classes.index(name) for name, key in reading.classes if key not in ignored}
    mapping = {key: index[centre] for key in statistics.counts if (centre := nearest.get(key, key)) in index}
    _say_ignored(keys - set(index) - reading.ignored, coloured, answers, counts, said)
    total = sum(statistics.counts.values())
    rows = []
    for key in sorted(counts, key=lambda key: (index.get(key, IGNORED), key)):
        name, number = (classes[index[key]], str(index[key])) if key in index else ('not trained on', '')
        rows.append((show_key(key, coloured), name, number, f'{counts[key] / total:.2%}'))
    if blurred := total - sum(counts.values()):
        rows.append(('between them', 'not trained on', '', f'{blurred / total:.2%}'))
    if grey:
        mapping = {pack(key, key, key): value for key, value in mapping.items()}
    return Meaning(
        classes, _palette(classes, reading, coloured, listed, known, keys), mapping, coloured or grey, rows, said
    )


def _palette(
    classes: list[str],
    reading: _Reading,
    coloured: bool,
    listed: Mapping[str, Colour],
    known: Callable[[list[int]], dict[str, Any] | None],
    keys: set[int],
) -> list[Colour]:
    of_names = {name: unpack(key) for name, key in reading.classes} if coloured else dict(listed)
    if not of_names and (public := known(sorted(keys))) and list(public['classes']) == classes:
        of_names = dict(zip(classes, map(tuple, public['palette']), strict=True))
    return make_palette(len(classes), [of_names.get(name) for name in classes])


def _soften(
    statistics: Statistics,
    coloured: bool,
    lossy: bool,
    names: Sequence[ClassName],
    answers: Answers,
    said: list[tuple[str, str]],
) -> dict[int, int | None]:
    """The class's value of every blurred one, ``None`` where it is near none; empty where nothing is blurred."""
    counts, inner = statistics.counts, statistics.inner
    total = sum(counts.values())
    # Blurred values lie on contours alone: none of their pixels has neighbours of its own value.
    thin = {key for key, count in counts.items() if inner.get(key, 0) < 0.05 * count}
    thin -= {name.key for name in names}
    share = sum(counts[key] for key in thin) / total
    if not lossy and not answers.soft_edges and (len(thin) < 3 or len(counts) - len(thin) < 2 or share > 0.4):
        if len(counts) > 4 * _MOST_CLASSES:
            raise UserError(
                f'the label maps hold {len(counts)} colours: they are photographs, or were smoothed; export one colour '
                'a class as PNG, or give the right folders with --images and --labels'
            )
        return {}

    def distance(one: int, other: int) -> int:
        if not coloured:
            return abs(one - other)
        return max(abs(a - b) for a, b in zip(unpack(one), unpack(other), strict=True))

    centres = [name.key for name in names if name.key is not None]
    if not centres:
        for key in sorted(counts, key=lambda key: -counts[key]):
            if counts[key] < _SMALLEST * total or len(centres) >= _MOST_CLASSES:
                break
            if key not in thin and all(distance(key, centre) > (_NEAR if lossy else 0) for centre in centres):
                centres.append(key)
    if len(centres) < 2:
        raise UserError(
            'the label maps are JPEGs or were smoothed, and their values are too close to each other to be told apart: '
            'export them as PNG, without smoothing'
        )
    nearest: dict[int, int | None] = {}
    for key in counts:
        closest = min(centres, key=lambda centre: distance(key, centre))
        nearest[key] = closest if distance(key, closest) <= _NEAR else None
    if all(key == value for key, value in nearest.items()):
        return {}
    blurred = sum(counts[key] for key, value in nearest.items() if value is None) / total
    shown = ', '.join(show_key(centre, coloured) for centre in centres[:8])
    said.append((
        'decision' if answers.soft_edges else 'question',
        f'the label maps {"are JPEGs" if lossy else "were smoothed"}: {len(counts)} values, of which {len(centres)} '
        f'({shown}) are taken for the classes, values close to them for theirs, and {blurred:.1%} of the pixels, at '
        'contours, are not trained on; --soft-edges confirms it, but PNG without smoothing is better',
    ))  # fmt: skip
    return nearest


def _key(text: str, coloured: bool) -> int:
    try:
        return int(text[1:], 16) if coloured and text.startswith('#') else int(text)
    except ValueError as error:
        known = 'a colour #rrggbb' if coloured else 'a number'
        raise UserError(f"'{text}' is no value of the label maps: give {known}") from error


def _ignored(answers: Answers, names: Sequence[ClassName], coloured: bool) -> set[int]:
    of_names = {name.name: name.key for name in names if name.key is not None}
    if answers.ignore is None or list(answers.ignore) == ['none']:
        return set()
    return {of_names[text] if text in of_names else _key(text, coloured) for text in answers.ignore}


def _choose(
    keys: set[int],
    coloured: bool,
    names: Sequence[ClassName],
    answers: Answers,
    known: Callable[[list[int]], dict[str, Any] | None],
    counts: Mapping[int, int],
    said: list[tuple[str, str]],
) -> _Reading:
    if not keys - ({IGNORED} if not coloured else set()):
        raise UserError("every pixel of the label maps is 255, which means 'no class', or ignored")
    void = set() if coloured or answers.ignore == ['none'] else {IGNORED}
    if names and names[0].key is not None:
        if names[0].coloured != coloured:
            kinds = ('colours', 'values') if coloured else ('values', 'colours')
            raise UserError(f'the label maps hold {kinds[0]}, the list of classes names {kinds[1]}: correct the list')
        of_list = tuple((name.name, name.key) for name in names if name.key is not None)
        if answers.background is not None:
            key = _key(answers.background, coloured)
            taken = [name for name, value in of_list if value == key]
            if [name for name in taken if name.lower() not in _OWN]:
                raise UserError(f"--background {answers.background} is the class '{taken[0]}' in the list of classes")
            of_list = of_list if taken else (('background', key), *of_list)
        readings = [_Reading(of_list, 'as the list of classes says', '--classes')]
        if readings[0].present(keys) == 1 and 0 in keys and not coloured and 0 not in {key for _, key in of_list}:
            text = 'one class has a value: 0 is the background'
            readings.append(_Reading((('background', 0), *of_list), text, '--background 0'))
    elif coloured:
        readings = [_by_colour(keys, names, counts)]
    elif not names and answers.ignore is None and not answers.background and (public := known(sorted(keys))):
        found = tuple(zip(public['classes'], public['keys'], strict=True))
        text = f'the {len(found)} classes of {public["name"]}: {", ".join(list(public["classes"])[:3])}, ...'
        readings = [_Reading(found, f'{text}; --classes for others', '--classes', ignored=frozenset(keys))]
    elif names:
        readings = list(_named(keys, [name.name for name in names], answers, void, coloured))
    else:
        readings = list(_unnamed(keys, answers, void, coloured))
    least = min((reading.absent(keys) for reading in readings if reading.present(keys) > 1), default=0)
    fitting = [reading for reading in readings if reading.present(keys) > 1 and reading.absent(keys) == least]
    if not fitting:
        raise UserError(_refusal(keys, names, counts, coloured))
    first = fitting[0]
    others = [other for other in fitting[1:] if other.classes != first.classes]
    if others or not first.certain:
        more = ''.join(f'; or {other.text} ({other.option})' for other in others)
        said.append(('question', f'{first.text} ({first.option}){more}'))
    else:
        said.append(('decision', first.text))
    return first


def _refusal(keys: set[int], names: Sequence[ClassName], counts: Mapping[int, int], coloured: bool) -> str:
    if not names:
        return 'the label maps hold a single class: nothing can be told apart'
    beyond = [key for key in sorted(keys) if key >= len(names) and (coloured or key != IGNORED)]
    share = sum(counts[key] for key in beyond) / max(sum(counts.values()), 1)
    return (
        f'{len(names)} classes have names, but the label maps hold {_list(keys, coloured)}'
        + (f'; {_list(beyond, coloured)} beyond them are {share:.1%} of the pixels' if beyond else '')
        + ': say which is which with --classes NAME=VALUE,..., or which are no class with --ignore VALUE'
    )


def _by_colour(keys: set[int], names: Sequence[ClassName], counts: Mapping[int, int]) -> _Reading:
    if names:
        example = ','.join(f'{name.name}=#rrggbb' for name in names[:2])  # which colour is which, nobody can guess
        shown = sorted(keys, key=lambda key: -counts[key])[:12]
        raise UnknownLayoutError(
            f'the label maps are colour pictures with {len(keys)} colours ({_list(shown, True)}), and the names of the '
            f'classes do not say which is whose: --classes {example},..., or a file with a line name,R,G,B for each'
        )
    return _Reading(
        tuple((show_key(key, True), key) for key in sorted(keys)),
        f'each of the {len(keys)} colours is taken for a class, none is ignored; --classes NAME=#rrggbb,... names '
        'them, --ignore #rrggbb leaves one out',
        '--classes',
    )


def _named(keys: set[int], names: list[str], answers: Answers, void: set[int], coloured: bool) -> Iterator[_Reading]:
    """Names without values: in order of the values, from 0 or from 1, with or without a background beside them."""
    order, labelled = names, keys - void
    front: tuple[tuple[str, int], ...] = ()
    if answers.background is not None:
        # The list may name the background, too: it is one class.
        own = next((name for name in names if name.lower() in _OWN), 'background')
        order = names if own in names else [own, *names]
        names = [name for name in names if name != own]
        front = ((own, _key(answers.background, coloured)),)
        labelled -= {front[0][1]}
    count = len(names)
    if not names:
        return
    literal = tuple(zip(names, range(count), strict=True))
    from_one = tuple(zip(names, range(1, count + 1), strict=True))
    of_zero = f"value 0 is '{names[0]}', the first name"
    of_one = f"value 1 is '{names[0]}', the first name"
    ascending = sorted(labelled) if len(labelled) == count else sorted(keys - {key for _, key in front})
    in_order = tuple(zip(names, ascending, strict=False))
    if front:
        text = f'value {front[0][1]} is the background'

        def ordered(rest: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
            return tuple(sorted(front + rest, key=lambda pair: order.index(pair[0])))

        if len(ascending) == count:
            gaps = ascending[-1] - ascending[0] >= count
            yield _Reading(ordered(in_order), f'{text}, the other values have the names in their order', '--classes',
                           not gaps or count == 1)  # fmt: skip
        elif front[0][1] == 0 and labelled <= set(range(1, count + 1)):
            yield _Reading(ordered(from_one), f'{text}, {of_one}', '--background 0')
        return
    background_first = not any(name.lower() in _BACKGROUNDS for name in names[1:])
    if not labelled - {0} and IGNORED in keys and count <= 2:
        # Masks of 0 and 255: without 255 there is but one class.
        pair = tuple(zip(names if count == 2 else ['background', *names], (0, IGNORED), strict=True))
        text = f"value 0 is '{pair[0][0]}' and 255 '{pair[1][0]}'"
        yield _Reading(pair, text, f'--classes {pair[0][0]}=0,{pair[1][0]}=255', background_first)
    elif labelled <= set(range(1, count + 1)) and '0' in (answers.ignore or ()):
        # Without a value above the last place, the list may count from the value 0 that is left out.
        named_zero = labelled <= set(range(count))
        if not named_zero or names[0].lower() not in _BACKGROUNDS:
            yield _Reading(from_one, of_one, f'--classes {names[0]}=1,...')
        if named_zero:
            yield _Reading(literal, of_zero, f'--classes {names[0]}=0,...')
    elif labelled <= set(range(count)):
        yield _Reading(literal, of_zero, f'--classes {names[0]}=0,...')
        if 0 not in labelled:
            yield _Reading(from_one, of_one, f'--classes {names[0]}=1,...')
    elif 0 in labelled and labelled <= set(range(count + 1)):
        last = _Reading(literal, f'{of_zero}, and {count} no class', f'--ignore {count}', ignored=frozenset({count}))
        first = _Reading(from_one, f'{of_one}, and 0 no class', '--ignore 0', ignored=frozenset({0}))
        both = _Reading((('background', 0), *from_one), f'{of_one}, and 0 a class background', '--background 0')
        yield from (last, first) if names[0].lower() in _BACKGROUNDS else (first, last, both)
    elif labelled <= set(range(1, count + 1)):
        yield _Reading(from_one, of_one, '--ignore 0')
    elif len(ascending) == count:
        certain = count == 2 and background_first and ascending[0] == 0
        text = f'the values {_list(ascending, False)} have the names in their order'
        pairs = ','.join(f'{name}={key}' for name, key in in_order[:3])
        yield _Reading(in_order, text, f'--classes {pairs}{",..." * (count > 3)}', certain)


def _unnamed(keys: set[int], answers: Answers, void: set[int], coloured: bool) -> Iterator[_Reading]:
    labelled = sorted(keys - void)
    if answers.background is not None:
        key = _key(answers.background, coloured)
        rest = [value for value in sorted(keys) if value != key and (value not in void or len(keys) == 2)]
        front = ('background', key)
        yield _Reading((front, *((f'class_{value}', value) for value in rest)),
                       f'value {key} is the background, each other value a class', '--background')  # fmt: skip
        return
    each = tuple((f'class_{value}', value) for value in labelled)
    text = f'each of the values {_list(labelled, False)} is taken for a class'
    said = answers.ignore or ()
    left = [*(text for text in said if text != 'none'), *map(str, sorted(keys & void))]
    nothing = f'{", ".join(left)} {"are" if len(left) > 1 else "is"} not trained on' if left else 'no class is ignored'
    if keys == {0, IGNORED} and void:
        yield _Reading((('background', 0), ('foreground', IGNORED)), '0 is the background and 255 the foreground', '')
    elif labelled[-1] >= 8 and 2 * len(labelled) <= labelled[-1] + 1:
        if keys & void:
            every = tuple((f'class_{value}', value) for value in sorted(keys))
            text = f'the values {_list(sorted(keys), False)} are grey levels, each a class, 255 too'
            yield _Reading(every, text, '--ignore none')
            yield _Reading(each, 'the same without 255, which is no class', '--ignore 255')
        else:
            decided = answers.ignore is not None
            yield _Reading(each, f'{text}, {nothing}; --classes NAME=VALUE,... names them', '--classes', decided)
    else:
        ends = ' or '.join(dict.fromkeys(str(value) for value in (labelled[0], labelled[-1])))
        # The first or the last of several may be "no class", as in CamVid; two are an object and what is around it.
        certain = bool(keys & void) or len(labelled) < 3 or answers.ignore is not None
        other = '' if certain and len(labelled) > 2 else f'; if {ends} is no class, give --ignore with it'
        option = '--classes' if certain else '--ignore none'
        yield _Reading(each, f'{text}, {nothing}{other}; --classes NAME,... names them', option, certain)


def _say_ignored(
    rest: set[int], coloured: bool, answers: Answers, counts: Mapping[int, int], said: list[tuple[str, str]]
) -> None:
    """What nobody has named, and whether that was to be expected."""
    if not coloured:
        rest = rest - {IGNORED}
    if not rest:
        return
    share = sum(counts[key] for key in rest) / sum(counts.values())
    shown = [show_key(key, coloured) for key in sorted(rest)]
    said.append((
        'question' if answers.ignore is None or list(answers.ignore) == ['none'] else 'decision',
        f'{_list(rest, coloured)} have no class ({share:.1%} of the pixels): they are not trained on '
        f'(--ignore {" ".join(shown[:8])}); --background {shown[0]} makes a class of {shown[0]}, --classes names all',
    ))  # fmt: skip


def _list(keys: Sequence[int] | set[int], coloured: bool) -> str:
    shown = [show_key(key, coloured) for key in (sorted(keys) if isinstance(keys, set) else keys)]
    return ', '.join(shown[:12]) + (', ...' if len(shown) > 12 else '')
