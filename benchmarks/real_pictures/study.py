"""The design of the study: which networks, seeds and schedules, in which order; and its tables."""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.utils import get_git_hash
from scipy import stats

from mmpelk.analysis.table import Table
from mmpelk.errors import UserError
from mmpelk.fault_tolerance.atomic_files import write_atomically

from . import training
from .networks import Variant, pretrained_network, scratch_network
from .pictures import Split
from .training import Schedule

RESULTS = Path(__file__).resolve().parents[1] / 'results' / 'real_pictures'
PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'evidence.md'
_MARK = '<!-- tables: python -m benchmarks.real_pictures -->'
# The 11 classes of CamVid as SegNet's authors number them.
CAMVID = ['sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist']
RATES = (1e-4, 3e-4, 1e-3)  # of the encoder, among which the first part chooses

# How the new parameters of a kernel of 31 learn.
RULES = {
    'rate-1': Variant('peripheral', 31),
    'rate-0.1': Variant('peripheral', 31, rate=0.1),
    'rate-3': Variant('peripheral', 31, rate=3.0),
    'late': Variant('peripheral', 31, late=1 / 3),
    'half-power': Variant('peripheral', 31, power=0.5),
    'full-power': Variant('peripheral', 31, power=1.0),
    'full-power-rate-3': Variant('peripheral', 31, power=1.0, rate=3.0),
}
MAIN = {
    'plain': Variant('plain'),
    'peripheral-15': Variant('peripheral', 15),
    'peripheral-31': Variant('peripheral', 31),
    'peripheral-51': Variant('peripheral', 51),
    'dense-15': Variant('dense', 15),
    'dense-31': Variant('dense', 31),
    'stripes-31': Variant('stripes', 31),
    'wide': Variant('wide', 31),
    'pyramid': Variant('pyramid'),
}
# The second round, which asks what the first has left open: the rates beside the chosen one, the centre at the full
# rate, Adam's epsilon, weight decay, and three times as long a schedule.
MORE_RULES = {
    'rate-0.1': Variant('peripheral', 31, rate=0.1),
    'rate-0.03': Variant('peripheral', 31, rate=0.03),
    'rate-0.3': Variant('peripheral', 31, rate=0.3),
    'outer-0.1': Variant('peripheral', 31, options=(('outer', 0.1),)),
    'epsilon-1e-4': Variant('peripheral', 31, options=(('eps', 1e-4),)),
    'decay-0.5': Variant('peripheral', 31, options=(('weight_decay', 0.5),)),
}
LONGER = {
    'plain': Variant('plain'),
    'rate-1': Variant('peripheral', 31),
    'rate-0.1': Variant('peripheral', 31, rate=0.1),
}
# Width and rate of the decoder, of which one that does not limit the encoders is chosen.
DECODERS = {
    f'width-{width}-rate-{rate}': (Variant('plain', options=(('width', width),)), rate)
    for width in (64, 128, 256)
    for rate in (1e-3, 3e-3)
}
# The same with the input that the weights were trained with.
INPUT = {
    name: replace(MAIN[name], options=(('half', True),))
    for name in ('plain', 'peripheral-15', 'peripheral-31', 'dense-31')
}
SECOND = {name: MAIN[name] for name in ('plain', 'peripheral-15', 'peripheral-31', 'dense-31')}
_NO_EMBEDDING = ('positional_embedding', None)
SCRATCH = {
    'conv7': Variant('conv7', options=(_NO_EMBEDDING,)),
    'stripe': Variant('stripe', 51, options=(_NO_EMBEDDING,)),
    'dense': Variant('dense', 51, options=(_NO_EMBEDDING,)),
    'peripheral': Variant('peripheral', 51),
    'peripheral-no-embedding': Variant('peripheral', 51, options=(_NO_EMBEDDING,)),
    'peripheral-no-small': Variant('peripheral', 51, options=(('small_kernel_size', 0),)),
}
# How PeLK's own large kernels learn.
SCRATCH_RULES = {
    'rate-1': SCRATCH['peripheral'],
    'rate-0.1': replace(SCRATCH['peripheral'], rate=0.1),
    'full-power': replace(SCRATCH['peripheral'], power=1.0),
}


@dataclass(frozen=True)
class Part:
    """Networks that are trained alike and compared.

    Attributes:
        name: Of the part.
        variants: Networks by name; the first is what the others are compared with.
        seeds: By default all of them.
        split: What the networks are evaluated on.
        schedule: Reads what earlier parts have chosen from their results.
        rule: Gives a variant the rule that an earlier part has chosen.
    """

    name: str
    variants: Mapping[str, Variant]
    seeds: tuple[int, ...]
    split: str
    schedule: Callable[[Path, str], Schedule]
    rule: Callable[[Path, Variant], Variant] = lambda results, variant: variant

    def runs(self, results: Path, names: Sequence[str] | None, seeds: Sequence[int]) -> list['Run']:
        """The runs of some networks, seed by seed.

        Raises:
            UserError: If a name or a seed is not of the part, or an earlier part is not finished.
        """
        if others := set(seeds) - set(self.seeds):
            raise UserError(f'{", ".join(map(str, sorted(others)))}: the part {self.name} has the seeds {self.seeds}')
        if unknown := set(names or ()) - self.variants.keys():
            raise UserError(f'{", ".join(sorted(unknown))}: the part {self.name} has {", ".join(self.variants)}')
        # What earlier parts have chosen is read once for a network, not for each of its seeds.
        settings = {
            name: (self.rule(results, self.variants[name]), self.schedule(results, name))
            for name in names or self.variants
        }
        return [
            Run(results / f'{self.name}-{name}-{seed}.json', *chosen, seed)
            for seed in seeds
            for name, chosen in settings.items()
        ]


@dataclass(frozen=True)
class Run:
    """A training and its file of results."""

    path: Path
    variant: Variant
    schedule: Schedule
    seed: int

    def train(self, splits: tuple[Split, Split], classes: int, weights: Path | None) -> None:
        """Train unless it is finished.

        Raises:
            UserError: If the file is damaged, or holds a run of other settings, data or weights.
        """
        origin = dict(
            data=[split.fingerprint() for split in splits],
            weights=None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
        )
        if self.path.exists():
            found = _load(self.path)
            self.check(found)
            if different := [key for key, value in origin.items() if found.get(key) != value]:
                raise UserError(
                    f'{self.path} is of other {" and ".join(different)}: name another folder by --results, '
                    'or remove it to run again'
                )
            return
        if weights is None:
            network, new = scratch_network(self.variant, classes, self.seed)
        else:
            network, new = pretrained_network(self.variant, weights, classes, self.seed)
        result = training.run(network, new, self.variant, self.schedule, splits, classes, self.seed)
        result |= origin | dict(commit=get_git_hash(digits=12))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(result, indent=1) + '\n').encode())
        print(
            f'{self.path.stem}: mIoU {result.get("miou")}, {result["cpu_seconds"]} s of the processor an iteration',
            flush=True,
        )

    def check(self, found: Mapping[str, Any]) -> None:
        """Raise unless a file's content is of this run.

        Raises:
            UserError: If it is not.
        """
        wanted = json.loads(
            json.dumps(dict(variant=asdict(self.variant), schedule=asdict(self.schedule), seed=self.seed))
        )
        for key, value in wanted.items():
            if found.get(key) != value:
                raise UserError(
                    f'{self.path} is of other settings, its {key} is not what the study says: remove it to run again'
                )


def check_results(results: Path) -> None:
    """Raise unless every file of a folder is a run of the study, and all are of the same data and weights.

    Raises:
        UserError: If a file is damaged, or of another design, seed, data set or file of weights than the study's.
    """
    origins: dict[str, tuple[Any, Path]] = {}
    unknown = set(results.glob('*.json'))
    for part in PARTS.values():
        for name, found in read_results(results, part.name).items():
            for run, result in zip(part.runs(results, [name], list(found)), found.values(), strict=True):
                unknown.remove(run.path)
                run.check(result)
                data = result.get('data') or [None, None]
                facts = {'data (train)': data[0], f'data ({part.split})': data[1], 'classes': result.get('classes')}
                if part.name not in FROM_SCRATCH:
                    facts['weights'] = result.get('weights')
                for key, value in facts.items():
                    first, other = origins.setdefault(key, (value, run.path))
                    if value != first:
                        raise UserError(f'{run.path} and {other} differ in {key}: keep the results of each in a folder')
    if unknown:
        raise UserError(f'{min(unknown)} is of no part of the study: move it away')


def read_results(results: Path, part: str) -> dict[str, dict[int, dict[str, Any]]]:
    """The finished runs of a part, by network and seed.

    Raises:
        UserError: If a file is damaged.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in PARTS[part].variants:
        for path in sorted(results.glob(f'{part}-{name}-*.json')):
            seed = path.stem.removeprefix(f'{part}-{name}-')
            if seed.isdecimal():
                found.setdefault(name, {})[int(seed)] = _load(path)
    return found


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}): remove it and run again') from error
    if not isinstance(found, dict):
        raise UserError(f'{path} is no result of a run: remove it and run again')
    return found


def finished(runs: Mapping[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Those of a network's runs that did not diverge, by seed."""
    return {seed: run for seed, run in runs.items() if run['diverged_at'] is None}


def best(results: Path, part: str) -> str:
    """The network of a part with the highest mean mIoU; a run that diverged counts 0.

    Raises:
        UserError: If a run is missing.
    """
    found, seeds = read_results(results, part), PARTS[part].seeds
    missing = [name for name in PARTS[part].variants if set(seeds) - found.get(name, {}).keys()]
    if missing:
        raise UserError(f'the part {part} comes first: run it to the end, {", ".join(missing)} is missing')
    means = {name: statistics.mean(found[name][seed].get('miou', 0.0) for seed in seeds) for name in found}
    return max(means, key=lambda name: means[name])


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and its confidence interval of 95 % (Student's t)."""

    mean: float
    margin: float
    pairs: int


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Over the seeds that both have; ``None`` for fewer than two."""
    seeds = sorted(values.keys() & reference.keys())
    if len(seeds) < 2:
        return None
    differences = [values[seed] - reference[seed] for seed in seeds]
    quantile = stats.t.ppf(0.975, len(seeds) - 1)
    margin = quantile * statistics.stdev(differences) / math.sqrt(len(seeds))
    return Difference(statistics.mean(differences), float(margin), len(seeds))


def make_table(results: Path, part: str, reference: str | None = None) -> Table:
    """mIoU of a part's networks, and the differences to one of them, by default its first."""
    found = read_results(results, part)
    title = part if reference is None else f'{part}, beside {reference}'
    reference = reference or next(iter(PARTS[part].variants))
    table = Table(
        [
            'network',
            'parameters',
            'seconds',
            'mIoU, %',
            f'difference to {reference}',
            'middle: cropped - whole',
            'runs',
        ],
        title=title,
    )
    for name, runs in found.items():
        ended = finished(runs)
        values = {seed: run['miou'] for seed, run in ended.items()}
        others = {seed: run['miou'] for seed, run in finished(found.get(reference, {})).items()}
        difference = paired_difference(values, others) if name != reference else None
        lost = len(runs) - len(ended)
        # The first runs measured another clock, which other programs change.
        seconds = [run['cpu_seconds'] for run in ended.values() if 'cpu_seconds' in run]
        table.add(
            name,
            f'{next(iter(runs.values()))["parameters"]["all"] / 1e6:.2f} M',
            f'{statistics.median(seconds):.2f}' if seconds else '-',
            f'{statistics.mean(values.values()):.2f}' if values else '-',
            f'{difference.mean:+.2f} ± {difference.margin:.2f}' if difference else '-',
            f'{statistics.mean(run["miou_cropped"] - run["miou_middle"] for run in ended.values()):+.2f}'
            if ended
            else '-',
            f'{len(runs)}' + (f', {lost} diverged' if lost else ''),
        )
    return table


def make_class_table(results: Path) -> Table:
    """IoU of each class by the first network of the main part, and the others' differences to it."""
    found = {
        name: {seed: run['iou'] for seed, run in finished(runs).items()}
        for name, runs in read_results(results, 'main').items()
    }
    reference = next(iter(MAIN))
    plain = found.get(reference, {})
    names = [name for name, runs in found.items() if runs.keys() & plain.keys()]
    table = Table(['class', *names], title='IoU of each class, main')
    for index in range(max((len(iou) for iou in plain.values()), default=0)):
        row = []
        for name in names:
            seeds = [
                seed
                for seed in found[name].keys() & plain.keys()
                if found[name][seed][index] is not None and plain[seed][index] is not None
            ]
            mean = [statistics.mean(runs[seed][index] for seed in seeds) for runs in (found[name], plain) if seeds]
            row.append('-' if not mean else f'{mean[0]:.1f}' if name == reference else f'{mean[0] - mean[1]:+.1f}')
        table.add(CAMVID[index] if index < len(CAMVID) else str(index), *row)
    return table


def make_field_table(results: Path) -> Table:
    """Sides of the main part's effective receptive fields, of the runs that measured them."""
    table = Table(
        ['network', '50 %, before', 'after', '99 %, before', 'after', 'runs'],
        title='Side of the effective receptive field, pixels of a 240 x 240 picture',
    )
    for name, runs in read_results(results, 'main').items():
        sides = [run['receptive_sides'] for run in runs.values() if all(run.get('receptive_sides', [None]))]
        if sides:
            means = [
                [statistics.mean(values) for values in zip(*times, strict=True)] for times in zip(*sides, strict=True)
            ]
            table.add(name, *(f'{time[share]:.0f}' for share in (0, 1) for time in means), str(len(sides)))
    return table


def tables(results: Path) -> list[Table]:
    """One of each part that has results, then those of the classes and of the receptive fields."""
    found = [make_table(results, part) for part in PARTS if read_results(results, part)]
    if read_results(results, 'scratch').get('peripheral'):
        found.append(make_table(results, 'scratch', 'peripheral'))
    if read_results(results, 'main').get(next(iter(MAIN))):
        found += [table for table in (make_class_table(results), make_field_table(results)) if table.rows]
    return found


def page_with_tables(page: str, results: Path) -> str:
    """The page with what stands behind its mark made anew."""
    parts = [f'### {table.title}\n\n{table.markdown()}\n' for table in tables(results)]
    return '\n'.join([page[: page.index(_MARK)] + _MARK, '', *parts])


def _chosen_rate(results: Path, name: str) -> Schedule:
    return Schedule(rate=float(best(results, 'recipe')))


def _chosen_rule(results: Path, variant: Variant) -> Variant:
    if variant.kind not in ('peripheral', 'dense', 'stripes'):
        return variant
    rule = RULES[best(results, 'rule')]
    # A dense kernel's and a stripe's numbers stand for one position each: there is no size to divide by.
    power = rule.power if variant.kind == 'peripheral' else 0.0
    return replace(variant, power=power, rate=rule.rate, late=rule.late)


def _chosen_decoder(results: Path, variant: Variant) -> Variant:
    decoder, _ = DECODERS[best(results, 'decoder')]
    return replace(_chosen_rule(results, variant), options=decoder.options)


def _with_decoder_rate(results: Path, name: str) -> Schedule:
    return replace(_chosen_rate(results, name), decoder_rate=DECODERS[name][1])


def _scratch_schedule(results: Path, name: str) -> Schedule:
    return Schedule(rate=1e-3, iterations=1000, frozen_statistics=False)


# Parts whose networks are not pretrained.
FROM_SCRATCH = ('scratch', 'scratch-rules')
PARTS = {
    part.name: part
    for part in (
        Part(
            'recipe',
            {str(rate): Variant('plain') for rate in RATES},
            (100,),
            'val',
            lambda results, name: Schedule(rate=float(name)),
        ),
        Part('rule', RULES, (100, 101), 'val', _chosen_rate),
        Part('main', MAIN, (0, 1, 2, 3, 4), 'test', _chosen_rate, _chosen_rule),
        Part('more-rules', MORE_RULES, (100, 101), 'val', _chosen_rate),
        Part(
            'longer',
            LONGER,
            (0, 1),
            'val',
            lambda results, name: replace(_chosen_rate(results, name), iterations=1200),
        ),
        Part('input', INPUT, (0, 1, 2), 'val', _chosen_rate, _chosen_rule),
        Part('decoder', {name: variant for name, (variant, _) in DECODERS.items()}, (100,), 'val', _with_decoder_rate),
        Part(
            'second',
            SECOND,
            (0, 1, 2, 3, 4),
            'test',
            lambda results, name: _with_decoder_rate(results, best(results, 'decoder')),
            _chosen_decoder,
        ),
        Part('scratch', SCRATCH, (0, 1, 2, 3, 4), 'test', _scratch_schedule),
        Part('scratch-rules', SCRATCH_RULES, (100, 101, 102), 'val', _scratch_schedule),
    )
}
