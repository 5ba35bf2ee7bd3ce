"""Compare the networks of the classification demo: a table, and a figure with error bars over the seeds.

python tools/demo/compare_classification.py work_dirs/demo_classification
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch

matplotlib.use('Agg')  # no display needed

NETWORKS = {'pelk': 'peripheral', 'conv7': 'conv7 (ConvNeXt)', 'stripe': 'stripe (SLaK)'}
METRIC = 'accuracy/top1'


@dataclass(frozen=True)
class Result:
    """The runs of one network.

    Attributes:
        name: As in the figure.
        parameters: Number of parameters.
        epochs: Epochs with a test.
        accuracies: Top-1 in percent: one list per seed, with a value per epoch.
    """

    name: str
    parameters: int
    epochs: list[int]
    accuracies: list[list[float]]

    @property
    def final(self) -> list[float]:
        """Accuracy of each seed at the end."""
        return [run[-1] for run in self.accuracies]

    def spread(self) -> list[float]:
        """Sample standard deviation over the seeds, per epoch; 0 for one seed."""
        by_epoch = zip(*self.accuracies, strict=True)
        return [statistics.stdev(values) if len(values) > 1 else 0.0 for values in by_epoch]

    def mean(self) -> list[float]:
        """Mean over the seeds, per epoch."""
        return [statistics.mean(values) for values in zip(*self.accuracies, strict=True)]


def read_run(folder: Path) -> list[tuple[int, float]]:
    """``[(epoch, accuracy), ...]`` of one training.

    Raises:
        FileNotFoundError: If the folder holds no tested training.
    """
    for log in sorted(folder.glob('*/vis_data/scalars.json'), reverse=True):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        # A test writes its epoch as "step".
        if tested := [(line['step'], line[METRIC]) for line in lines if METRIC in line]:
            return tested
    raise FileNotFoundError(f"no tested training in '{folder}'; tools/demo/run_cls.sh makes them")


def count_parameters(folder: Path) -> int:
    """Parameters of the network whose last checkpoint is in ``folder``."""
    path = (folder / 'last_checkpoint').read_text()
    state = torch.load(path, map_location='cpu', weights_only=False)['state_dict']
    statistic = ('running_mean', 'running_var', 'num_batches_tracked')
    return sum(value.numel() for name, value in state.items() if not name.endswith(statistic))


def read_results(work_dir: Path) -> list[Result]:
    """All networks under ``work_dir``."""
    results = []
    for network, name in NETWORKS.items():
        folders = sorted((work_dir / network).glob('seed_*'))
        if not folders:
            raise FileNotFoundError(f"no runs in '{work_dir / network}'; tools/demo/run_cls.sh makes them")
        runs = [read_run(folder) for folder in folders]
        epochs = [epoch for epoch, _ in runs[0]]
        accuracies = [[accuracy for _, accuracy in run] for run in runs]
        results.append(Result(name, count_parameters(folders[0]), epochs, accuracies))
    return results


def print_table(results: list[Result]) -> None:
    print(f'{"mixer":18} {"parameters":>10}  top-1 on the test set, %')
    for result in results:
        seeds = ', '.join(f'{value:.1f}' for value in result.final)
        print(
            f'{result.name:18} {result.parameters:10}  {result.mean()[-1]:.2f} ± {result.spread()[-1]:.2f}  ({seeds})'
        )


def plot(results: list[Result], out: Path) -> None:
    """Accuracy over the epochs, and at the end; bars are standard deviations over the seeds."""
    figure, (curves, final) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for position, result in enumerate(results):
        label = f'{result.name}, {result.parameters / 1e3:.1f} k'
        curves.errorbar(result.epochs, result.mean(), result.spread(), marker='o', capsize=4, label=label)
        final.errorbar(position, result.mean()[-1], result.spread()[-1], marker='o', capsize=8, markersize=8)
        final.plot([position + 0.12] * len(result.final), result.final, 'k.', alpha=0.5)
    curves.set(xlabel='epoch', ylabel='top-1 on 500 test digits, %')
    curves.legend(loc='lower right')
    final.set(ylabel='top-1 at the end, %', xlim=(-0.5, len(results) - 0.5))
    final.set_xticks(range(len(results)), [result.name for result in results])
    for axes in (curves, final):
        axes.grid(alpha=0.3)
    figure.suptitle(f'Mean and standard deviation of {len(results[0].final)} seeds; one digit is 0.2 %')
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='folder of the runs, NETWORK/seed_N')
    parser.add_argument('--out', type=Path, help='the figure; comparison.png in the folder by default')
    args = parser.parse_args()
    results = read_results(args.work_dir)
    print_table(results)
    out = args.out or args.work_dir / 'comparison.png'
    plot(results, out)
    print(out)


if __name__ == '__main__':
    main()
