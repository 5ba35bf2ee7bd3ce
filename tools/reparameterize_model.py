"""Turn a trained checkpoint into its deployed form: norms and small kernels merged into the large kernels.

python tools/reparameterize_model.py configs/cls/pelk_t_in1k.py pelk_t_in1k.pth pelk_t_in1k_deployed.pth
"""

import argparse
from pathlib import Path
from typing import cast

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mmpelk.analysis.inference import image_channels
from mmpelk.engine.checks import check_checkpoint
from mmpelk.engine.command_line import add_cfg_options, exit_on_user_error, read_config
from mmpelk.fault_tolerance.safe_loading import read_checkpoint
from mmpelk.models import PeLK
from mmpelk.models.deploy import deploy_state_dict
from mmpelk.models.weights.checkpoint import state_dict_of
from mmpelk.models.weights.identify import without_checkpoint
from mmpelk.sparsity import fold_masks

PREFIX = 'backbone.'
# Of the largest output. Merging is done in float64, so that this is the rounding of two float32 forwards.
TOLERANCE = 1e-3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe of the training, of any task')
    parser.add_argument('checkpoint', help='trained checkpoint')
    parser.add_argument('out', type=Path, help='.pth to write')
    add_cfg_options(parser)
    return parser.parse_args()


def build_backbone(cfg: Config, deploy: bool) -> PeLK:
    """The recipe's backbone in eval mode, with no weights loaded."""
    arguments = {**without_checkpoint(cfg.model.backbone.to_dict()), 'deploy': deploy}
    norm_cfg = arguments.get('norm_cfg') or {}
    if norm_cfg.get('type') == 'SyncBN':  # which does not run on a CPU
        arguments['norm_cfg'] = {**norm_cfg, 'type': 'BN'}
    backbone = MODELS.build(arguments)
    if not isinstance(backbone, PeLK):
        raise ValueError(f'only PeLK backbones have a deployed form, the config has {type(backbone).__name__}')
    return cast(PeLK, backbone.eval())


@torch.no_grad()
def largest_difference(trained: PeLK, deployed: PeLK) -> float:
    """Of the outputs for a random image, relative to the largest output."""
    image = torch.randn(1, image_channels(trained), 96, 96, generator=torch.Generator().manual_seed(0))
    differences = [
        (out - want).abs().max() / want.abs().max() for out, want in zip(deployed(image), trained(image), strict=True)
    ]
    return float(torch.stack(differences).max())  # NaN stays


def convert(cfg: Config, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """State dict of the deployed model, and how far its backbone's outputs are from the trained one's."""
    if any(name.endswith('.embedding_table') for name in state) or cfg.model.backbone.get('deploy'):
        raise ValueError('this is a deployed model already')
    state = fold_masks(state)
    trained = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    if not trained:
        raise ValueError(f"no name in the checkpoint begins with '{PREFIX}': is it one of this recipe?")
    before, after = build_backbone(cfg, deploy=False), build_backbone(cfg, deploy=True)
    merged = deploy_state_dict(build_backbone(cfg, deploy=False), trained)
    before.load_state_dict(trained)
    after.load_state_dict(merged)
    others = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    return {PREFIX + name: value for name, value in merged.items()} | others, largest_difference(before, after)


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        cfg = read_config(args.config, args.cfg_options)
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        check_checkpoint(args.checkpoint)
        checkpoint = read_checkpoint(args.checkpoint)
        try:
            state, difference = convert(cfg, state_dict_of(checkpoint, args.checkpoint))
        except RuntimeError as error:  # names or shapes that do not match
            raise ValueError(f"'{args.checkpoint}' is not one of '{args.config}': {error}") from error
        if not difference < TOLERANCE:
            raise ValueError(f'the deployed backbone differs by {difference:.1e} of its largest output: not written')
        torch.save(dict(meta={**checkpoint.get('meta', {}), 'deployed': True}, state_dict=state), args.out)
    print(f'{args.out}: differs by {difference:.1e} of the largest output; use it with the same config and')
    of_form = ' model.backbone.init_cfg=None' if cfg.model.backbone.get('arch') != 'inflated' else ''
    print(f'  --cfg-options model.backbone.deploy=True{of_form}')


if __name__ == '__main__':
    main()
