"""Names of classes, with the values or colours that mean them, as annotation tools write them."""

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

from mmpelk.errors import UserError

from .dataset import read_text

__all__ = ['ClassName', 'order_names', 'pack', 'read_names', 'show_key', 'unpack']

Colour = tuple[int, int, int]
# Lists that annotation tools leave beside the data: CVAT's, CamVid's, Roboflow's, Darknet's, and plain ones.
_FILES = (
    *('labelmap.txt', 'label_colors.txt', 'class_dict.csv', '_classes.csv', 'classes.txt', 'labels.txt', 'names.txt'),
    *('obj.names', 'classes.csv'),
)
_GAP, _NUMBERS = r'[\s,;:]+', r'(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)'
# What a line may be; a list has one form throughout.
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf'{_NUMBERS}{_GAP}(?P<name>.*\D.*)',  # R G B name
        rf'(?P<name>.*?\D.*?){_GAP}{_NUMBERS}(:.*)?',  # name,R,G,B, and CVAT's name:R,G,B::
        r'(?P<name>.+)=\s*#(?P<hex>[0-9a-fA-F]{6})',  # name=#rrggbb
        r'(?P<name>.+)=\s*(?P<value>\d+)',  # name=value
        rf'(?P<value>\d+){_GAP}(?P<name>\D.*)',  # value, name
        r'(?P<name>\D.*?)[\t,;:]\s*(?P<value>\d+)',  # name, value
    )
)
_TITLES = ('class', 'classes', 'class_name', 'class name', 'name', 'names', 'label', 'labels')  # of a single column


@dataclass(frozen=True)
class ClassName:
    """One line of a list.

    Attributes:
        name: Of the class.
        key: The value, or the packed colour, that means it in the label maps; ``None`` where the list does not say it.
        coloured: The key is a colour.
    """

    name: str
    key: int | None = None
    coloured: bool = False


def pack(red: int, green: int, blue: int) -> int:
    """One number for a colour."""
    return red << 16 | green << 8 | blue


def unpack(key: int) -> Colour:
    """The colour of :func:`pack`."""
    return key >> 16, key >> 8 & 255, key & 255


def show_key(key: int, coloured: bool) -> str:
    """A value, or a colour as ``#rrggbb``."""
    return f'#{key:06x}' if coloured else str(key)


def read_names(given: str | None, root: Path) -> list[ClassName]:
    """Read the names of the classes, in their order.

    Args:
        given: The names with commas between them, each may have ``=VALUE`` or ``=#rrggbb``; or the path of a list with
            a class a line: ``name``, ``name,R,G,B``, ``R G B name``, ``value name``, CVAT's ``name:R,G,B::``; or
            ``None``: look for a list in ``root``.
        root: Folder of the data set.

    Raises:
        UserError: If the list cannot be read, or a name without a value comes twice.
    """
    from_file = not given or os.path.isfile(given)  # unlike Path.is_file, of a text of any length
    if given and not from_file:
        if given.endswith(('.txt', '.csv', '.names')):
            raise UserError(f"there is no list of classes '{given}'")
        lines = given.split(',')
    else:
        files = [Path(given)] if given else [root / name for name in _FILES if (root / name).is_file()]
        lines = read_text(files[0]).splitlines() if files else []
    lines = [line.strip() for line in lines if line.strip() and not line.startswith(('#', '//'))]
    # A first line in columns that is of no form, where all others are of one, is a heading in any language.
    rest = [form for form in _FORMS if from_file and lines[1:] and all(map(form.fullmatch, lines[1:]))]
    headed = rest and re.search(r'[,;\t]', lines[0]) and not any(form.fullmatch(lines[0]) for form in rest)
    if headed or (from_file and len(lines) > 2 and lines[0].strip('" ').lower() in _TITLES):
        lines = lines[1:]
    for form in _FORMS:
        found = [form.fullmatch(line) for line in lines]
        if lines and all(found):
            return [_of_match(match.groupdict()) for match in found if match]
    columns = [line for line in lines if re.search(r'[,;\t]', line) and any(form.fullmatch(line) for form in _FORMS)]
    if from_file and columns:
        first = next(form for form in _FORMS if form.fullmatch(columns[0]))
        other = next(line for line in lines if not first.fullmatch(line))
        raise UserError(f"the list of classes has lines like '{columns[0]}' and like '{other}': make them alike")
    if partly := [line for line in lines if _FORMS[2].fullmatch(line) or _FORMS[3].fullmatch(line)]:
        raise UserError(f"'{partly[0]}' says what means the class, others do not: give all classes =VALUE or =#rrggbb")
    names = [next(csv.reader([line]))[0].strip() if line[0] == '"' else line.strip(' :;\t') for line in lines]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f'the list of classes has {doubled} twice')
    return [ClassName(name) for name in names]


def _of_match(parts: dict[str, str | None]) -> ClassName:
    name = (parts['name'] or '').strip(' ,;:\t"')
    if value := parts.get('value'):
        return ClassName(name, int(value))
    if code := parts.get('hex'):
        return ClassName(name, int(code, 16), coloured=True)
    colour = [int(parts[key] or 0) for key in 'rgb']
    if max(colour) > 255:
        raise UserError(f"the colour {colour} of the class '{name}' is beyond 255")
    return ClassName(name, pack(*colour), coloured=True)


def order_names(found: list[str], given: str | None, root: Path) -> list[str]:
    """The classes that a data set has, in the order that the user gives.

    Raises:
        UserError: If those are others.
    """
    if given is None:
        return found
    listed = read_names(given, root)
    if any(name.key is not None for name in listed) and not os.path.isfile(given):
        raise UserError('the data set has names and no values: give --classes NAME,... alone')
    names = [name.name for name in listed]
    if sorted(names) != sorted(found):
        raise UserError(
            f'--classes has {", ".join(names[:12])}, the data set {", ".join(found[:12])}: give the same names, in the '
            'order of their indices'
        )
    return names
