"""Shared by the export tools: options, the network and images that they describe, and the comparison."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import add_cfg_options, read_config
from mmpelk.errors import UserError

from .comparison import compare, in_half
from .network import ExportedNetwork, load_deployed, real_image

# Of the largest output: what rounding alone does, in float32 and in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2


def add_export_options(parser: argparse.ArgumentParser, suffix: str) -> None:
    """Add config, checkpoint, file to write, its image sizes and precision."""
    parser.add_argument('config', help='recipe of the training')
    parser.add_argument('checkpoint', help='its checkpoint, trained or deployed')
    parser.add_argument('out', type=Path, help=f'{suffix} to write')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        action='append',
        metavar=('H', 'W'),
        help="the file's image size, 224 224 by default; with --dynamic the sizes to compare at, as often as you like",
    )
    parser.add_argument('--dynamic', action='store_true', help='let batch and image size vary')
    parser.add_argument(
        '--fold-preprocessing', action='store_true', help='take (N, H, W, C) of uint8, red, green, blue, as images come'
    )
    parser.add_argument('--half', action='store_true', help='weights and maps in float16')
    parser.add_argument('--image', type=Path, help='photograph to compare on; one of matplotlib by default')
    add_cfg_options(parser)


@dataclass
class Request:
    """The network and images of a command line.

    Attributes:
        exported: Network to be written, in the precision asked for.
        exact: The same in float32, to compare with.
        images: One image of each size, as the file takes it.
        shapes: The sizes.
        tolerance: Largest difference of a file that may be used.
    """

    exported: ExportedNetwork
    exact: ExportedNetwork
    images: list[Tensor]
    shapes: list[tuple[int, int]]
    tolerance: float

    @classmethod
    def of(cls, args: argparse.Namespace, suffix: str) -> 'Request':
        """From parsed options.

        Raises:
            FileNotFoundError: If config or checkpoint do not exist.
            UserError: If the options contradict each other, or the checkpoint is one of another network.
        """
        cfg = read_config(args.config, args.cfg_options)
        check_checkpoint(args.checkpoint)
        shapes = [(height, width) for height, width in args.shape or [(224, 224)]]
        if len(shapes) > 1 and not args.dynamic:
            raise UserError('a file of one size has one --shape; --dynamic makes one for any')
        if args.out.suffix != suffix:
            raise UserError(f"the name of '{args.out}' must end in {suffix}")
        network = ExportedNetwork.of(cfg, load_deployed(cfg, args.checkpoint))
        for shape in shapes:
            network.check_size(*shape)
        images = [torch.from_numpy(real_image(args.image, shape, network.channels))[None] for shape in shapes]
        exact = network.folded() if args.fold_preprocessing else network
        exported = in_half(network) if args.half else network
        exported = exported.folded() if args.fold_preprocessing else exported
        if not args.fold_preprocessing:
            images = [network.preprocessing.apply(image) for image in images]
            images = [image.half() for image in images] if args.half else images
        return cls(exported, exact, images, shapes, HALF_TOLERANCE if args.half else TOLERANCE)

    def report(self, run: Callable[[np.ndarray], Sequence[np.ndarray]], path: Path, runtime: str, format_: str) -> None:
        """Run the file on every image and print how far it is from the network.

        Raises:
            UserError: If the file differs by more than rounding does.
        """
        console = Console(soft_wrap=True)
        size = sum(file.stat().st_size for file in path.parent.glob(f'{path.name}*')) / 2**20
        console.print(f'{path}: {format_}, {size:.1f} MB, outputs {", ".join(self.exported.outputs)}')
        worst = 0.0
        for (height, width), image in zip(self.shapes, self.images, strict=True):
            found = compare(run, self.exact, image)
            worst = float(np.maximum(worst, found.difference))  # NaN stays
            console.print(
                f'  {height} x {width}: differs by {found.difference:.1e} of the largest output, '
                f'{found.same_labels:.4%} of the labels are the same; {found.seconds * 1e3:.0f} ms in {runtime}, '
                f'{found.torch_seconds * 1e3:.0f} ms in torch'
            )
        if not worst < self.tolerance:
            raise UserError(f"the file differs by {worst:.1e} of the largest output: do not use '{path}'")
