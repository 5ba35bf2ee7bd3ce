"""The study on photographs: all networks begin as the same function, are trained on the same, and are counted right."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.real_pictures import networks, picture, pictures, study, training
from benchmarks.real_pictures.networks import Variant
from mmpelk.errors import UserError
from mmpelk.models.peripheral_conv import PeripheralConv2d
from mmpelk.ops import expand_kernel

timm = pytest.importorskip('timm')


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('weights') / 'lite0.pth'
    torch.manual_seed(0)
    torch.save(timm.create_model(networks.ENCODER).state_dict(), path)
    return path


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for folder, shape in ((split, (24, 32, 3)), (f'{split}annot', (24, 32))):
            (tmp_path / folder).mkdir()
            for index in range(3):
                values = generator.integers(0, 256 if len(shape) == 3 else 3, shape, dtype=np.uint8)
                Image.fromarray(values).save(tmp_path / folder / f'{index}.png')
    return tmp_path


@pytest.mark.slow
def test_encoders_begin_as_the_same_function_and_decoders_with_the_same_values(weights: Path) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 96)
    plain, _ = networks.pretrained_network(Variant('plain'), weights, 3, seed=1)
    with torch.no_grad():
        expected = plain.eval()(image)
    for variant in (
        Variant('dense', 15),
        Variant('stripes', 31),
        Variant('peripheral', 51),
        Variant('peripheral', 31, 1.0),
    ):
        network, new = networks.pretrained_network(variant, weights, 3, seed=1)
        torch.testing.assert_close(network.eval()(image), expected, rtol=1e-4, atol=1e-4)
        assert new
    wide, _ = networks.pretrained_network(Variant('wide', 31), weights, 3)
    enlarged, _ = networks.pretrained_network(Variant('peripheral', 31), weights, 3)
    assert 1 <= networks.count(wide) / networks.count(enlarged) < 1.01


def test_scaled_numbers_move_the_kernel_by_their_size() -> None:
    conv = networks.ScaledConv2d(2, 7, (3, 3))
    conv.power = 1.0
    torch.nn.init.ones_(conv.weight)
    side = torch.tensor(conv.sharing_grid, dtype=torch.float)
    assert torch.equal(conv.scaled_weight()[0, 0], 1 / (side[:, None] * side))
    conv.power, conv.outer = 0.0, 0.25
    assert torch.equal(conv.scaled_weight()[0, 0] == 1, side[:, None] * side == 1)
    assert conv.scaled_weight().unique().tolist() == [0.25, 1]


def test_batches_follow_the_seed_and_keep_pictures_and_labels_together(camvid: Path) -> None:
    split = pictures.read_split(camvid, 'train', 3, None)
    same = pictures.Split(split.labels[:, None].expand(-1, 3, -1, -1) * 100, split.labels)
    first, again, other = (list(pictures.batches(same, (24, 32), 2, 3, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][1], other[0][1])
    constant = pictures.Split(
        torch.full((1, 3, 24, 32), 100, dtype=torch.uint8), torch.full((1, 24, 32), 1, dtype=torch.uint8)
    )
    for images, labels in pictures.batches(constant, (24, 32), 1, 5, 0):
        padded = labels[:, None].expand(-1, 3, -1, -1) == pictures.IGNORED
        torch.testing.assert_close(images[~padded], torch.full_like(images[~padded], 100 / 255))


def test_pictures_are_scaled_cut_and_padded_with_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """From three quarters to one and a half; each picture once before the next round."""
    blocks = torch.zeros(2, 24, 32, dtype=torch.uint8)
    blocks[0, 6:17], blocks[1, :, 3:20] = 1, 1
    split, sizes = pictures.Split(blocks[:, None].expand(-1, 3, -1, -1) * 255, blocks), []
    resized = pictures.resized
    monkeypatch.setattr(pictures, 'resized', lambda images, size: sizes.append(size) or resized(images, size))
    for images, labels in pictures.batches(split, (24, 32), 4, 40, 0):
        shown, padded = images[:, 0], labels == pictures.IGNORED
        clear = ~padded & ((shown - 0.5).abs() > 1e-3)
        assert ((shown > 0.5) == (labels == 1))[clear].all()
        assert (shown[padded] == 0.5).all()
    shares = np.array(sizes)[:, 0] / 24
    assert shares.min() == pytest.approx(0.75, abs=0.03)
    assert shares.max() == pytest.approx(1.5, abs=0.03)
    numbered = pictures.Split(
        torch.zeros(5, 3, 24, 32, dtype=torch.uint8),
        torch.arange(5, dtype=torch.uint8)[:, None, None].repeat(1, 24, 32),
    )
    drawn = [
        label[label < 5][0].item() for _, labels in pictures.batches(numbered, (24, 32), 2, 5, 0) for label in labels
    ]
    assert [sorted(drawn[:5]), sorted(drawn[5:])] == [[0, 1, 2, 3, 4]] * 2


def test_labels_that_are_no_class_are_refused(camvid: Path) -> None:
    with pytest.raises(UserError, match='holds the value 2, which is no class'):
        pictures.read_split(camvid, 'train', 2, None)
    assert pictures.IGNORED in pictures.read_split(camvid, 'train', 2, 2).labels
    with pytest.raises(UserError, match='no pictures of the split'):
        pictures.read_split(camvid, 'other', 2, None)


def test_perfect_scores_are_100() -> None:
    labels = torch.randint(0, 3, (2, 16, 16), dtype=torch.uint8)
    labels[0, :4] = pictures.IGNORED
    split = pictures.Split(torch.stack([(labels * 80).clamp(max=160)] * 3, 1), labels)

    class Perfect(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return -(images[:, :1] * 255 / 80 - torch.arange(3)[:, None, None]).abs()

    result = training.evaluate(Perfect(), split, (16, 16), 3)  # type: ignore[arg-type]
    assert result['iou'] == [100, 100, 100]
    assert result['miou_cropped'] == 100
    wrong = training.evaluate(Perfect(), replace(split, labels=torch.where(labels == 2, 1, labels)), (16, 16), 3)  # type: ignore[arg-type]
    assert wrong['iou'][0] == 100
    assert wrong['iou'][1] < 100
    assert wrong['iou'][2] is None


def test_the_middle_is_evaluated_in_the_whole_and_alone() -> None:
    """A network that is right in the middle of whole pictures alone."""
    labels = torch.randint(0, 3, (2, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = pictures.Split(torch.stack([labels * 80] * 3, 1), labels)

    class Short(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            right = -(images[:, :1] * 255 / 80 - torch.arange(3)[:, None, None]).abs()
            shown = torch.zeros(images.shape[-2:])
            if images.shape[-2:] == (16, 24):
                shown[4:12, 6:18] = 1
            return right * shown

    result = training.evaluate(Short(), split, (16, 24), 3)  # type: ignore[arg-type]
    assert result['miou_middle'] == 100
    part = labels[:, 4:12, 6:18]
    assert result['miou_cropped'] == pytest.approx(100 * (part == 0).float().mean().item() / 3, abs=0.01)
    hits = [(part == index).sum().item() for index in range(3)]
    outside = labels.numel() - part.numel()
    union = [
        (labels == index).sum().item() + (outside - ((labels == 0).sum().item() - hits[0])) * (index == 0)
        for index in range(3)
    ]
    hits[0] = (labels == 0).sum().item()
    assert result['iou'] == pytest.approx([100 * hit / all_ for hit, all_ in zip(hits, union, strict=True)], abs=0.01)


@pytest.mark.parametrize(('bias', 'expected'), [(1.0, [3, 3]), (-9.0, None)], ids=['alive', 'dead'])
def test_a_map_that_nothing_reaches_has_no_receptive_field(bias: float, expected: list[int] | None) -> None:
    encoder = torch.nn.Conv2d(3, 1, 3, padding=1)
    torch.nn.init.constant_(encoder.weight, 0.01)
    torch.nn.init.constant_(encoder.bias, bias)  # type: ignore[arg-type]
    images = torch.full((4, 3, 9, 13), 120, dtype=torch.uint8)
    split = pictures.Split(images, torch.zeros(4, 9, 13, dtype=torch.uint8))
    network = networks.Segmenter(encoder, torch.nn.Identity())
    assert training.receptive_sides(network, split, (9, 13)) == expected


def test_receptive_fields_are_those_of_the_middles_of_pictures_of_the_whole_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = torch.arange(9, dtype=torch.uint8)[:, None, None, None]
    images = (10 * numbers + torch.arange(13, dtype=torch.uint8)).expand(9, 3, 9, 13)
    split = pictures.Split(images, torch.zeros(9, 9, 13, dtype=torch.uint8))
    network = networks.Segmenter(torch.nn.Identity(), torch.nn.Identity(), half=True)
    seen: list[float] = []
    scores = np.zeros((9, 9))
    scores[2:7, 2:7], scores[3:6, 3:6], scores[4, 4] = 0.3 / 16, 0.4 / 8, 0.3

    def contribution_scores(encoder: torch.nn.Module, given: Iterable[torch.Tensor]) -> np.ndarray:
        for image in given:
            assert image.shape[-2:] == (9, 9)
            columns = ((image[0, 0] * 0.5 + 0.5) * 255).round()
            assert columns.diff().unique().tolist() == [1]
            seen.append(columns[0].item())
        return scores

    monkeypatch.setattr(training, 'contribution_scores', contribution_scores)
    assert training.receptive_sides(network, split, (9, 13)) == [3, 5]
    assert seen == [2, 22, 42, 62]


class Tiny(torch.nn.Module):
    """An encoder with a norm, and one of its parameters that is new."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2)
        self.new = torch.nn.Parameter(torch.ones(1, 2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.norm(self.conv(x)) * self.new[0, :, None, None]]


class First(torch.nn.Module):
    """A decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = torch.nn.Conv2d(2, 3, 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.classify(maps[0])


@pytest.mark.parametrize('frozen', [True, False])
def test_a_training_is_what_its_schedule_says(frozen: bool, camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of every iteration, of new kernels after their time; decay of what is a matrix; norms; and the loss."""
    torch.manual_seed(0)
    network = networks.Segmenter(Tiny(), First())
    schedule = training.Schedule(1e-3, (24, 32), 2, 42, 1e-2, warmup=10, frozen_statistics=frozen)
    split = pictures.read_split(camvid, 'train', 3, None)
    variant, steps, losses = Variant('peripheral', rate=0.5, late=0.5), [], []
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    def step(optimizer: torch.optim.Optimizer) -> None:
        assert network.training
        assert network.encoder.norm.training is not frozen  # type: ignore[union-attr]
        groups = optimizer.param_groups
        steps.append({names[id(p)]: (group['lr'], group['weight_decay']) for group in groups for p in group['params']})

    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    result = training.train(network, [network.encoder.new], variant, schedule, split, 3)  # type: ignore[list-item, arg-type]
    for iteration, rates in enumerate(steps):
        share = min((iteration + 1) / 10, 1) if iteration < 10 else 0.5 + 0.5 * np.cos(np.pi * (iteration - 10) / 32)
        for name, (rate, decay) in rates.items():
            new = 0 if iteration < 21 else 0.5
            highest = 1e-2 if name.startswith('decoder.') else 1e-3 * (new if name == 'encoder.new' else 1)
            assert rate == pytest.approx(highest * share)
            assert decay == (0.05 if name in ('encoder.conv.weight', 'encoder.new', 'decoder.classify.weight') else 0)
    assert len(steps) == 42
    network.train()
    network.encoder.norm.train(not frozen)  # type: ignore[union-attr]
    network.encoder.norm.reset_running_stats()  # type: ignore[union-attr]
    for images, labels in pictures.batches(split, schedule.size, 2, 42, 3):
        scores = network(images).log_softmax(1).movedim(1, -1)[labels != pictures.IGNORED]
        losses.append(-scores.gather(1, labels[labels != pictures.IGNORED][:, None]).mean().item())
    assert result['losses'] == pytest.approx(losses[::20], abs=1e-3)
    assert result['diverged_at'] is None


@pytest.mark.parametrize('at', [0, 3, 5])
def test_where_a_training_diverged(at: int, camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step is seen by the parameters alone."""
    network, number = networks.Segmenter(Tiny(), First()), iter(range(9))

    def step(optimizer: torch.optim.Optimizer) -> None:
        if next(number) == at:
            network.encoder.new.data.fill_(float('nan'))  # type: ignore[union-attr]

    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    schedule = training.Schedule(1e-3, (24, 32), 2, 6, warmup=1)
    result = training.train(network, [], Variant('plain'), schedule, pictures.read_split(camvid, 'train', 3, None), 0)
    assert result['diverged_at'] == at + 1


def test_rings_are_those_of_the_larger_distance() -> None:
    torch.manual_seed(0)
    scaled = networks.ScaledConv2d(2, 11, (3, 3))
    scaled.power = 0.5
    stripes = networks.Stripes(torch.nn.Conv2d(2, 2, 3, padding=1, groups=2), 9)
    for stripe in stripes.stripes:
        torch.nn.init.normal_(stripe.weight)
    network = torch.nn.ModuleDict(dict(scaled=scaled, plain=PeripheralConv2d(2, 7), stripes=stripes))
    for name in ('scaled', 'plain'):
        torch.nn.init.normal_(network[name].weight)
    kernels = dict(
        scaled=expand_kernel(scaled.scaled_weight(), scaled.sharing_grid),
        plain=expand_kernel(network['plain'].weight, network['plain'].sharing_grid),
        stripes=stripes.dense_kernel(),
    )
    found = training.learnt_rings(network)
    assert found.keys() == kernels.keys()
    for name, kernel in kernels.items():
        values = kernel.detach().abs().numpy()
        radius = values.shape[-1] // 2
        for ring in range(radius + 1):
            wanted = [
                values[:, 0, radius + y, radius + x]
                for y in range(-radius, radius + 1)
                for x in range(-radius, radius + 1)
                if max(abs(y), abs(x)) == ring
            ]
            assert found[name][ring] == pytest.approx(np.mean(wanted), rel=6e-3)  # of three digits
    image = torch.rand(1, 2, 12, 12)
    torch.testing.assert_close(
        stripes(image), torch.nn.functional.conv2d(image, kernels['stripes'], stripes.center.bias, padding=4, groups=2)
    )


@pytest.mark.slow
def test_a_run_is_repeated_exactly_and_written_once(
    camvid: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = training.Schedule(rate=1e-4, size=(24, 32), batch=2, iterations=3, warmup=1)
    splits = pictures.read_split(camvid, 'train', 3, None), pictures.read_split(camvid, 'val', 3, None)
    found = []
    for name in ('first.json', 'second.json'):
        run = study.Run(tmp_path / 'results' / name, Variant('peripheral', 15, rate=0.5), schedule, 7)
        run.train(splits, 3, weights)
        found.append(json.loads(run.path.read_text()))
    assert {**found[0], 'cpu_seconds': 0} == {**found[1], 'cpu_seconds': 0}
    monkeypatch.setattr(training, 'run', lambda *args: pytest.fail('trained again'))
    run.train(splits, 3, weights)
    for other, message in (
        (lambda: replace(run, variant=Variant('plain')).train(splits, 3, weights), 'of other settings, its variant'),
        (lambda: run.train(splits[::-1], 3, weights), 'of other data: name another folder by --results'),
        (lambda: run.train(splits, 3, camvid / 'train' / '0.png'), 'of other weights: name another folder'),
    ):
        with pytest.raises(UserError, match=message):
            other()


def test_differences_are_paired_by_seed() -> None:
    difference = study.paired_difference({0: 11.0, 1: 22.0, 2: 33.0, 9: 0.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert difference is not None
    assert difference.pairs == 3
    assert difference.mean == 2
    assert difference.margin == pytest.approx(4.3027 / 3**0.5, rel=1e-4)  # Student's t of two degrees of freedom
    assert study.paired_difference({0: 1.0}, {0: 1.0}) is None


def test_later_parts_wait_for_the_choice_of_earlier_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='the part recipe comes first'):
        study.PARTS['main'].runs(tmp_path, None, [0])
    for part, values in (('recipe', [1.0, 3.0, 2.0]), ('rule', [1.0, 0.5, 0.5, 0.5, 0.5, 5.0, 0.5])):
        for name, value in zip(study.PARTS[part].variants, values, strict=True):
            for seed in study.PARTS[part].seeds:
                (tmp_path / f'{part}-{name}-{seed}.json').write_text(json.dumps(dict(miou=value)))
    # Of a seed that is not the part's.
    (tmp_path / f'recipe-{study.RATES[0]}-7.json').write_text(json.dumps(dict(miou=99.0)))
    plain, peripheral, dense = study.PARTS['main'].runs(tmp_path, ['plain', 'peripheral-51', 'dense-31'], [0])
    assert plain.schedule.rate == peripheral.schedule.rate == study.RATES[1]
    assert (plain.variant.power, peripheral.variant.power, dense.variant.power) == (0, 1, 0)


def test_second_round_has_the_chosen_decoder_and_rule(tmp_path: Path) -> None:
    chosen = dict(recipe='0.001', rule='rate-0.1', decoder='width-128-rate-0.003')
    for part, best in chosen.items():
        for name in study.PARTS[part].variants:
            for seed in study.PARTS[part].seeds:
                (tmp_path / f'{part}-{name}-{seed}.json').write_text(json.dumps(dict(miou=float(name == best))))
    for run in study.PARTS['second'].runs(tmp_path, None, [0]):
        assert run.variant.options == (('width', 128),)
        assert run.variant.rate == (1 if run.variant.kind == 'plain' else 0.1)
        assert (run.schedule.rate, run.schedule.decoder_rate, run.schedule.iterations) == (1e-3, 3e-3, 400)
    assert {run.schedule.iterations for run in study.PARTS['longer'].runs(tmp_path, None, [0])} == {1200}


def test_new_kernels_have_epsilon_and_decay_of_their_own() -> None:
    network = torch.nn.ModuleDict(dict(encoder=torch.nn.Linear(2, 2)))
    weight = next(network.parameters())
    variant = Variant('peripheral', 31, options=(('eps', 1e-4), ('weight_decay', 0.5)))
    groups = training._groups(network, [weight], variant, training.Schedule(rate=1e-3))  # type: ignore[arg-type]
    new, other = sorted(groups, key=lambda group: not group['is_new'])
    assert (new['eps'], new['weight_decay']) == (1e-4, 0.5)
    assert 'eps' not in other


def test_rules_from_scratch_change_how_the_large_kernels_learn_alone() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs, sizes = [], {}
    for name, variant in study.SCRATCH_RULES.items():
        network, new = networks.scratch_network(variant, 3, seed=1)
        outputs.append(network.eval()(image))
        kernels = [module for module in network.modules() if isinstance(module, PeripheralConv2d)]
        assert len(kernels) == 6
        assert {id(weight) for weight in new} == ({id(k.weight) for k in kernels} if name == 'rate-0.1' else set())
        kernel = kernels[0]
        before, parameter = kernel.weight.detach().clone(), next(kernel.parameters())
        with torch.no_grad():
            parameter.add_(1.0)
        sizes[name] = ((kernel.weight - before)[0, 0, 0, 0] * kernel.sharing_grid[0] ** 2).item()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-4, atol=1e-5)
    corner = kernel.sharing_grid[0] ** 2
    assert corner > 1
    assert sizes == pytest.approx({'rate-1': corner, 'rate-0.1': corner, 'full-power': 1.0}, rel=1e-4)


def test_share_of_a_kernel_beyond_a_distance() -> None:
    assert picture.share_beyond([8.0, 1.0, 0.5]) == pytest.approx([100 * 16 / 24, 100 * 8 / 24, 0])


def test_classes_are_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    for name, seed, iou in (('plain', 0, [50.0, None]), ('plain', 1, [60.0, 20.0]), ('dense-31', 1, [70.0, 10.0])):
        run = dict(diverged_at=None, iou=iou)
        (tmp_path / f'main-{name}-{seed}.json').write_text(json.dumps(run))
    table = study.make_class_table(tmp_path)
    assert table.columns == ['class', 'plain', 'dense-31']
    assert [list(row[1:]) for row in table.rows] == [['55.0', '+10.0'], ['20.0', '-10.0']]


def test_a_run_that_diverged_is_counted_and_has_no_figures(tmp_path: Path) -> None:
    for seed, diverged in ((0, None), (1, 7)):
        run: dict[str, object] = dict(diverged_at=diverged, cpu_seconds=None, parameters=dict(all=1_000_000))
        if diverged is None:
            run |= dict(cpu_seconds=0.5, miou=40.0, miou_middle=30.0, miou_cropped=29.0)
        (tmp_path / f'main-plain-{seed}.json').write_text(json.dumps(run))
    table = study.make_table(tmp_path, 'main')
    assert [list(row) for row in table.rows] == [['plain', '1.00 M', '0.50', '40.00', '-', '-1.00', '2, 1 diverged']]


def test_receptive_fields_are_means_over_the_runs_that_have_them(tmp_path: Path) -> None:
    for seed, run in enumerate(
        (
            dict(),
            dict(receptive_sides=[[5, 9], [7, 11]]),
            dict(receptive_sides=[[5, 9], [9, 15]]),
            dict(receptive_sides=[[5, 9], None]),
        )
    ):
        (tmp_path / f'main-plain-{seed}.json').write_text(json.dumps(run))
    assert [list(row) for row in study.make_field_table(tmp_path).rows] == [['plain', '5', '8', '9', '13', '2']]


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    for path in study.RESULTS.glob('*.json'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    study.check_results(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('main-plain-0', dict(variant=dict(kind='plain')), 'of other settings, its variant'),
        ('main-plain-0', dict(schedule=dict(rate=1.0)), 'of other settings, its schedule'),
        ('main-plain-0', dict(seed=1), 'of other settings, its seed'),
        ('main-wide-0', dict(data=['0', 'd6354ac5dd887510']), r'differ in data \(train\)'),
        ('main-wide-0', dict(data=['0bffc679aee377d1', '0']), r'differ in data \(test\)'),
        ('main-wide-0', dict(weights='0'), 'differ in weights'),
        ('main-wide-0', dict(classes=3), 'differ in classes'),
        ('main-wide-9', {}, r'9: the part main has the seeds'),
        ('other-wide-0', {}, 'other-wide-0.json is of no part'),
        ('main-wide-1', None, 'main-wide-1.json is damaged'),
    ],
)
def test_what_is_not_of_the_study_comes_into_no_table(
    copies: Path, name: str, changes: dict[str, object] | None, message: str
) -> None:
    path = copies / f'{name}.json'
    result = json.loads((copies / 'main-wide-0.json').read_text() if not path.exists() else path.read_text())
    path.write_text('{' if changes is None else json.dumps(result | changes))
    with pytest.raises(UserError, match=message):
        study.check_results(copies)


@pytest.mark.parametrize(
    ('half', 'expected'), [(True, [-1, 0, 1]), (False, [(value - 0.485) / 0.229 for value in (0, 0.5, 1)])]
)
def test_pictures_are_normalised(half: bool, expected: list[float]) -> None:
    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
            return torch.stack(x) if isinstance(x, list) else x

    network = networks.Segmenter(Same(), Same(), half)
    values = [network(torch.full((1, 3, 2, 2), value))[0, 0].unique().item() for value in (0.0, 0.5, 1.0)]
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_page_has_the_tables_of_the_results() -> None:
    study.check_results(study.RESULTS)
    page = study.PAGE.read_text()
    assert study.page_with_tables(page, study.RESULTS) == page
