"""Public checkpoints to ours, and ours to timm's names: renamed, compared name by name, written if everything matches.

python tools/convert_checkpoint.py import configs/cls/convnext_t_in1k.py convnext_tiny_1k_224_ema.pth convnext_t.pth
python tools/convert_checkpoint.py import configs/cls/slak_t_in1k.py SLaK_tiny_checkpoint.pth slak_t.pth --key model_ema
python tools/convert_checkpoint.py inflate configs/cls/pelk_convnext_t_in1k.py convnext_tiny_1k_224_ema.pth start.pth
python tools/convert_checkpoint.py export configs/cls/pelk_t_in1k.py pelk_t_in1k.pth pelk_t_timm.safetensors
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmpelk.analysis.table import Table
from mmpelk.engine.command_line import exit_on_user_error, read_config
from mmpelk.models import PeLK
from mmpelk.models.weights.downloads import read_public
from mmpelk.models.weights.identify import without_checkpoint
from mmpelk.models.weights.inflation import inflate
from mmpelk.models.weights.key_maps import detect_source, fit_shape, from_source, to_timm
from mmpelk.sparsity import fold_masks
from mmpelk.sparsity.publish import save_pth, save_safetensors

SHOWN = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest='mode', required=True)
    for mode, description in (
        ('import', 'a public checkpoint to ours'),
        ('inflate', "ConvNeXt's, SLaK's or dense kernels onto the sharing grids of a network of the same widths"),
        ('export', "ours to timm's names"),
    ):
        part = modes.add_parser(mode, help=description)
        part.add_argument('config', help='classification recipe whose network the checkpoint belongs to')
        part.add_argument('checkpoint', help='file or URL to read, timm://NAME or hf://OWNER/NAME')
        part.add_argument('out', type=Path, help='.pth to write, or .safetensors when exporting')
        part.add_argument('--key', help='entry of the file that holds the weights; by default state_dict or model')
    return parser.parse_args()


def read_weights(path: str, key: str | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint."""
    public = read_public(path, key)
    if path.startswith(('timm://', 'hf://')):
        print(f'licence of the weights: {public.licence}')
    return public.state


def build_model(args: argparse.Namespace) -> nn.Module:
    """The recipe's network, on the CPU, with no weights loaded."""
    cfg = read_config(args.config)
    if cfg.model.get('type') != 'ImageClassifier':
        raise ValueError(f"'{args.config}' is no classification recipe; those are in configs/cls")
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    cfg.model.backbone.update(without_checkpoint(cfg.model.backbone))
    return MODELS.build(cfg.model)


def check(state: Mapping[str, Tensor], model: nn.Module, renamed: Mapping[str, str], config: str) -> None:
    """Print what of a state dict the network takes and why not the rest, and refuse what is no complete match."""
    own, original = model.state_dict(), {new: old for old, new in renamed.items()}
    known = {name: original.get(name, name) for name in state}
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    problems = {
        'the checkpoint lacks': [name for name in own if name not in state],
        'the network lacks': [old + f' (as {name})' * (old != name) for name, old in known.items() if name not in own],
        'of another shape': [
            f'{old} {tuple(state[name].shape)}, in the network {name} {shapes[name]}'
            for name, old in known.items()
            if name in own and state[name].shape != own[name].shape
        ],
    }
    matched = len(own) - len(problems['the checkpoint lacks']) - len(problems['of another shape'])
    other = sum(old != new for old, new in renamed.items())
    print(f'{matched} of {len(own)} tensors of the network matched, {other} of them by another name')
    for reason, names in problems.items():
        if names:
            more = [f'... and {len(names) - SHOWN} more'] if len(names) > SHOWN else []
            print(f'{reason} ({len(names)}):', *names[:SHOWN], *more, sep='\n  ')
    if any(problems.values()):
        raise ValueError(
            f"the checkpoint is not one of '{config}': nothing is written. Other shapes mean another size or another "
            'number of classes, missing or extra tensors another mixer or embedding, or a deployed form'
        )


def import_checkpoint(args: argparse.Namespace) -> None:
    """Write a public checkpoint as one of ours."""
    if args.out.suffix != '.pth':
        raise ValueError(f"the name of '{args.out}' must end in .pth")
    weights, model = read_weights(args.checkpoint, args.key), build_model(args)
    source = detect_source(weights)
    print(f'names of {source}')
    renamed = from_source(weights, source)
    own = model.state_dict()
    state = {new: fit_shape(weights[old], own.get(new, weights[old])) for old, new in renamed.items()}
    check(state, model, renamed, args.config)
    maskable = [value for value in state.values() if value.dim() in (2, 4)]
    density = sum(int(value.count_nonzero()) for value in maskable) / sum(value.numel() for value in maskable)
    save_pth(dict(meta=dict(converted_from=source), state_dict=state), args.out)
    print(f'{args.out}: {100 * density:.1f} % of the weights of convolutions and linear layers are not zero')


def inflate_checkpoint(args: argparse.Namespace) -> None:
    """Write the start of a network with large kernels, and how much of every kernel its grid holds."""
    if args.out.suffix != '.pth':
        raise ValueError(f"the name of '{args.out}' must end in .pth")
    weights, model = read_weights(args.checkpoint, args.key), build_model(args)
    backbone, classifier = model.get_submodule('backbone'), model.get_submodule('head')
    if not isinstance(backbone, PeLK):
        raise ValueError(f"the backbone of '{args.config}' is no PeLK")
    found = inflate(weights, backbone, f"'{args.checkpoint}'")
    table = Table(['kernel', 'energy kept'], title='Share of each kernel that its sharing grid holds')
    for name, share in found.kept.items():
        table.add(name, f'{share:.2%}')
    table.print()
    state = {f'backbone.{name}': value for name, value in found.state.items()}
    head: dict[str, Tensor] = classifier.state_dict(prefix='head.')
    theirs = {new: weights[old] for old, new in from_source(weights, detect_source(weights)).items() if new in head}
    if theirs and all(theirs[name].shape == value.shape for name, value in head.items() if name in theirs):
        state |= theirs
    else:
        print(
            "the classifier is dropped: the checkpoint has none, or one of other classes; the recipe's is trained anew"
        )
    if dropped := [name for name in found.dropped if name not in theirs]:
        print(f'not of the network: {", ".join(dropped[:SHOWN])}')
    save_pth(dict(meta=dict(inflated_from=str(args.checkpoint)), state_dict=state), args.out)
    print(f'{args.out}: {len(found.state)} tensors of the backbone')


def export_checkpoint(args: argparse.Namespace) -> None:
    """Write one of our checkpoints with timm's names, masks folded in."""
    writers = {'.pth': save_pth, '.safetensors': save_safetensors}
    if args.out.suffix not in writers:
        raise ValueError(f"the name of '{args.out}' must end in {' or '.join(writers)}")
    model = build_model(args)
    # The preprocessor's mean and deviation are the config's.
    weights = {
        name: value
        for name, value in fold_masks(read_weights(args.checkpoint, args.key)).items()
        if not name.startswith('data_preprocessor.')
    }
    names = to_timm(model)
    check(weights, model, names, args.config)
    state = {names[name]: value for name, value in weights.items()}
    ours = sorted({name.split('.mixer.')[1] for name in state if '.mixer.' in name})
    if args.out.suffix == '.pth':
        torch.save(state, args.out)  # timm takes a bare state dict
    else:
        save_safetensors(dict(meta=dict(sparsity={}), state_dict=state), args.out)
    note = f'; timm has no such mixer, its tensors keep our names: {", ".join(ours)}' if ours else ''
    print(f'{args.out}: {len(state)} tensors{note}')


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        modes = {'import': import_checkpoint, 'inflate': inflate_checkpoint, 'export': export_checkpoint}
        modes[args.mode](args)


if __name__ == '__main__':
    main()
