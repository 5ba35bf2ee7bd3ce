"""PeLK (Section 4.4 of the paper): a ConvNeXt-like backbone whose blocks mix tokens by peripheral convolution."""

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, cast

import torch
import torch.fx
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleList, Sequential, update_init_info
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpelk.ops.autocast import autocast_dtype
from mmpelk.ops.branches import BranchTensors, stacked_branches
from mmpelk.ops.mixed_norm import is_fused, mixed_norm
from mmpelk.ops.positional_op import central_embedding
from mmpelk.ops.training_norm import mix_and_norm
from mmpelk.registry import MODELS

from .architectures import resolve_arch
from .hidden_units import HiddenUnits, fit_hidden_units
from .layers import DropPath, build_activation
from .mixers import MIXERS, EmbeddingMode, Mixer, MixerSpec
from .mixers.base import fold_pruning, is_hooked, plain_norm
from .peripheral_conv import is_traced
from .weights.checkpoint import backbone_state_dict, check_pretrained, pretrained_cfgs, shorten
from .weights.facts import refuse_another, write_fact
from .weights.identify import arch_of
from .weights.pretrained import Pretrained


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of ``(N, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        # Not by `super()`, which TorchScript does not know.
        out = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return out.permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's: each channel times its share of the map's energy, https://arxiv.org/abs/2301.00808.

    Args:
        channels: Of a map ``(N, H, W, C)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        return x + self.gamma * (x * share) + self.beta


class PeLKBlock(BaseModule):
    """Token mixer on the first channels, then an inverted bottleneck: the block of ConvNeXt with Eq. 4 to 6 in front.

    Args:
        channels: Width ``C`` of the block.
        mixer: Mixer of the first ``mixer.channels`` channels; the others pass unchanged.
        mixed_channels: Number of those channels, ``g`` of Eq. 4.
        drop_path_rate: Stochastic depth of the residual branch.
        layer_scale_init_value: Initial value of the layer scale; 0 leaves it out.
        act_cfg: Activation between the two linear layers.
        hidden_channels: Units between them; ``None`` for ``4C``. Loading a checkpoint with fewer changes it, but with
            a norm over them.
        use_grn: Whether ConvNeXt V2's norm over the units follows the activation.
        with_cp: Recompute the block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        channels: int,
        mixer: Mixer,
        mixed_channels: int,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        act_cfg: dict | None = None,
        hidden_channels: int | None = None,
        use_grn: bool = False,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        hidden_channels = hidden_channels or 4 * channels
        self.mixer = mixer
        self.mixed_channels, self.other_channels = mixed_channels, channels - mixed_channels
        self.with_cp = with_cp
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pointwise_conv1 = nn.Linear(channels, hidden_channels)
        self.act = build_activation(act_cfg)
        self.grn = GlobalResponseNorm(hidden_channels) if use_grn else None
        self.pointwise_conv2 = nn.Linear(hidden_channels, channels)
        self.gamma = (
            nn.Parameter(torch.full((channels,), float(layer_scale_init_value))) if layer_scale_init_value else None
        )
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Before the layers load: a shrunk checkpoint says how many hidden units they have.
        if self.grn is None:
            fit_hidden_units(HiddenUnits('', self, 'pointwise_conv1', 'pointwise_conv2'), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, embedding: Tensor | BranchTensors | None = None) -> Tensor:
        """``(N, C, H, W)`` to the same shape; ``embedding`` is what the stage's blocks share."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, embedding, self._is_fused_in_training(x), use_reentrant=False)
        return self._forward(x, embedding, self._is_fused_in_training(x))

    def _is_fused_in_training(self, x: Tensor) -> bool:
        """Asked once, as it may differ in the thread where a backward recomputes the block."""
        return type(x) is Tensor and not is_traced() and is_fused(x, training=True)

    def _forward(self, x: Tensor, embedding: Tensor | BranchTensors | None, fused_in_training: bool) -> Tensor:
        # Channels last from the mixer to the residual sum: what the layer norm and the linear layers want.
        out = None
        if fused_in_training or (type(x) is Tensor and not is_traced() and is_fused(x)):
            out = self._mix_and_norm(x, embedding, fused_in_training)
        if out is None:
            out = self.norm(self._mix(x, embedding).permute(0, 2, 3, 1))
        out = self.act(self.pointwise_conv1(out))
        if self.grn is not None:
            out = self.grn(out)
        out = self.pointwise_conv2(out).permute(0, 3, 1, 2)
        if self.gamma is None:
            return x + self.drop_path(out)
        scale = self.gamma.view(1, -1, 1, 1)
        if self.drop_path.training or is_hooked(self.drop_path):
            # A path is dropped by its scale, a number per channel, and not by passes over the map.
            scale = self.drop_path(scale.expand(x.shape[0], -1, -1, -1))
        # Traces are checked without gradients, and shall be the same then.
        return x + out * scale if torch.is_grad_enabled() or is_traced() else torch.addcmul(x, out, scale)

    def _mix_and_norm(self, x: Tensor, embedding: Tensor | BranchTensors | None, training: bool) -> Tensor | None:
        """What the first linear layer takes, by kernels for the norms; ``None`` if a module may differ.

        ``(N, H, W, C)``; under autocast in the dtype that the linear layer would cast to.
        """
        linear, norm = self.pointwise_conv1, plain_norm(self.norm) if type(self.norm) is nn.LayerNorm else None
        if norm is None or type(linear) is not nn.Linear or is_hooked(linear) or not isinstance(self.mixer, Mixer):
            return None
        dtype = autocast_dtype(x.device.type)
        if dtype is None and not x.dtype == norm[0][0].dtype == norm[0][1].dtype:
            return None
        if training:
            kernels = self.mixer.training_branches(x, embedding)
            return None if kernels is None else mix_and_norm(x, *kernels, norm, dtype or x.dtype)
        branches = self.mixer.branches(x, embedding)
        if branches is None:
            return None
        return mixed_norm(branches.large, branches.small, x, branches.norms, norm, dtype or x.dtype)

    def _mix(self, x: Tensor, embedding: Tensor | BranchTensors | None) -> Tensor:
        """The first channels mixed, the others as they are (Eq. 4)."""
        mixer = self.mixer
        if isinstance(mixer, Mixer) and mixer.passes_rest(x):
            return mixer(x, embedding)
        if not self.other_channels:
            return mixer(x, embedding)
        # The gradient of a split is one concatenation.
        mixed, others = x.split([self.mixed_channels, self.other_channels], 1)
        parts = [mixer(mixed, embedding), others]
        return torch.cat([part.permute(0, 2, 3, 1) for part in parts], -1).permute(0, 3, 1, 2)


class PeLKStage(Sequential):
    """Blocks of one resolution, and the positional embedding that they share (Section 4.2).

    Args:
        blocks: The blocks in order.
        embedding_shape: ``(g, K, K)``, or ``None`` for no embedding.
        embedding_mode: How Eq. 3 treats positions outside the map.
    """

    def __init__(
        self,
        blocks: Sequence[PeLKBlock],
        embedding_shape: tuple[int, int, int] | None,
        embedding_mode: EmbeddingMode | None = 'in_bounds',
    ) -> None:
        super().__init__(*blocks)
        self.embedding_mode = embedding_mode
        self.positional_embedding: nn.Parameter | None = None
        if embedding_shape is not None:
            self.positional_embedding = nn.Parameter(torch.empty(embedding_shape))
            nn.init.trunc_normal_(self.positional_embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` through all blocks."""
        embeddings = self._embeddings(x)
        for index, block in enumerate(self):
            x = block(x, embeddings[index])
        return x

    def _embeddings(self, x: Tensor) -> Sequence[Tensor | BranchTensors | None]:
        """What each block takes: the embedding, or in training what is computed of it for several blocks at once."""
        embedding: Tensor | None = self.positional_embedding
        # Compiled graphs serve maps of any size.
        if embedding is None or self.embedding_mode != 'in_bounds' or type(x) is not Tensor or is_traced():
            return [embedding] * len(self)
        embedding = central_embedding(embedding, x.shape[-2:])
        taken: list[Tensor | BranchTensors | None] = [embedding] * len(self)
        alike: dict[Any, list[tuple[int, Tensor, Tensor]]] = {}
        for index, block in enumerate(self):
            # Other classes and hooks may do anything with what a block takes.
            plain = type(block) is PeLKBlock and not is_hooked(block) and isinstance(block.mixer, Mixer)
            kernels = block.mixer.fused_kernels(x) if plain else None
            if kernels is not None:
                large, small = (kernel.weight for kernel in kernels)
                key = (
                    tuple(kernels[0].sharing_grid),
                    *[(each.shape, each.dtype, each.device) for each in (large, small)],
                )
                alike.setdefault(key, []).append((index, large, small))
        for (grid, *_), blocks in alike.items():
            if len(blocks) > 1:
                indices, weights, smalls = zip(*blocks, strict=True)
                for index, tensors in zip(indices, stacked_branches(x, weights, smalls, grid, embedding), strict=True):
                    taken[index] = tensors
        return taken

    def __getitem__(self, index: Any) -> Any:
        """A block, or for a slice a stage of some of the blocks with the same embedding."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        part = PeLKStage([], None, self.embedding_mode)
        for name, block in list(self.named_children())[index]:  # by their names, as nn.Sequential keeps them
            part.add_module(name, block)
        part.positional_embedding = self.positional_embedding
        part.training = self.training
        return part

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.positional_embedding is not None:
            write_fact(destination, prefix, 'embedding_mode', self.embedding_mode)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if self.positional_embedding is not None and f'{prefix}positional_embedding' in state_dict:
            refuse_another(local_metadata, prefix, 'embedding_mode', self.embedding_mode)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def switch_to_deploy(self) -> None:
        """Merge every block's mixer and drop the embedding, which the mixers then hold as tables."""
        fold_pruning(self)
        for block in self:
            block.mixer.switch_to_deploy(self.positional_embedding)
        self.positional_embedding = None


@MODELS.register_module()
class PeLK(Pretrained, BaseModule):
    """Parameter-efficient Large Kernel Network, CVPR 2024, https://arxiv.org/abs/2403.07589.

    Module names follow ConvNeXt's: ``downsample_layers.i``, ``stages.i.j``, ``norm{i}``.

    Args:
        arch: A name of :data:`~mmpelk.models.architectures.ARCHITECTURES`, or a dict with ``depths``, ``channels`` and
            ``kernel_sizes``, and optionally ``center_size``, ``sharing_grids``, and the block's ``conv_ratio``,
            ``small_kernel_size``, ``positional_embedding``, ``branch_norms`` and ``use_grn``. The arguments of the same
            names replace a part of it. ``'inflated'`` is the ConvNeXt in the checkpoint of ``init_cfg``'s
            ``mmpelk.Inflated``, which is read for it, its layer scale included.
        depths: Blocks per stage.
        channels: Width ``C`` of each stage.
        kernel_sizes: Side ``K`` of the large kernels of each stage, odd.
        center_size: Side of the fine-grained centre that Eq. 2 keeps; 5 if neither says.
        sharing_grids: One grid or ``None`` per stage, full or from the rim to the centre; ``None`` follows Eq. 2.
        in_channels: Channels of the image.
        stem_patch_size: Kernel and stride of the stem.
        mixer: What mixes the tokens, a name of :data:`mmpelk.models.mixers.MIXERS`: the paper's ``'peripheral'``, or,
            to compare with, RepLKNet's ``'dense'``, SLaK's ``'stripe'`` or ConvNeXt's ``'conv7'``. The last two have
            no positional embedding; those networks mix all channels (``conv_ratio=1``).
        conv_ratio: Share of the channels that the large kernels process, ``g / C`` of Eq. 4. By default, as the next
            three, the architecture's, or else the paper's: 3/8.
        small_kernel_size: Side of the dense kernel beside each large one; 0 for none. The paper's: 5.
        positional_embedding: ``'in_bounds'``, ``'constant'`` or ``None``: how Eq. 3 treats positions outside the map.
            With ``'constant'`` the norm after the convolution removes the term exactly. The paper's: ``'in_bounds'``.
        branch_norms: Whether each kernel has a norm, or the large one alone a bias: the form that deployment makes,
            trainable. It has neither small kernel nor embedding.
        use_grn: Whether the blocks have ConvNeXt V2's norm over their hidden units; their number is fixed then.
        norm_cfg: Norm of the convolution branches (``BN`` or ``SyncBN``).
        act_cfg: Activation of the blocks.
        hidden_channels: Units between the two linear layers, a sequence for each stage with a number for each block;
            ``None`` for ``4C``; ``'pretrained'`` for what ``init_cfg``'s checkpoint has. A shrunk checkpoint changes
            them on loading as well, but several processes can train it only if they are known here.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        layer_scale_init_value: Initial layer scale; 0 for none.
        out_indices: Stages whose normed maps are returned, in ``range(-stages, stages)``.
        frozen_stages: Number of stages, from the stem on, that do not train; 0 for none, as ConvNeXt counts.
        norm_eval: Keep the batch norms of the branches in eval mode while training.
        gap_before_final_norm: Average the map globally before the norm, for classification.
        with_cp: Activation checkpointing per block. The branches' norms then see every batch twice, as in all MM
            backbones, so that their running statistics follow it faster.
        deploy: Build the merged form that :meth:`switch_to_deploy` makes.
        init_cfg: Initialisation. ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')`` loads weights.

    Raises:
        ValueError: If an argument is out of its range; the message names what is allowed.

    Inputs:
        ``(N, in_channels, H, W)`` of any size from the stem's patch on.

    Outputs:
        A tuple with ``(N, C_i, H_i, W_i)`` per output stage, or ``(N, C_i)`` with ``gap_before_final_norm``.
    """

    init_cfg: Any  # mmengine does not annotate it

    def __init__(
        self,
        arch: str | dict = 'tiny',
        depths: Sequence[int] | None = None,
        channels: Sequence[int] | None = None,
        kernel_sizes: Sequence[int] | None = None,
        center_size: int | None = None,
        sharing_grids: Sequence[Sequence[int] | None] | None = None,
        in_channels: int = 3,
        stem_patch_size: int = 4,
        mixer: str = 'peripheral',
        conv_ratio: float | None = None,
        small_kernel_size: int | None = None,
        positional_embedding: EmbeddingMode | Literal['default'] | None = 'default',
        branch_norms: bool | None = None,
        use_grn: bool | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        hidden_channels: Sequence[Sequence[int]] | Literal['pretrained'] | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        gap_before_final_norm: bool = True,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        arguments = dict(locals())
        pretrained = pretrained_cfgs(init_cfg)
        if init_cfg is None:
            init_cfg = dict(type='TruncNormal', layer=['Conv2d', 'Linear', 'PeripheralConv2d'], std=0.02, bias=0.0)
        super().__init__(init_cfg)
        if arch == 'inflated':
            arch, has_layer_scale = arch_of(init_cfg)
            layer_scale_init_value = layer_scale_init_value if has_layer_scale else 0
            arguments |= dict(arch=arch, layer_scale_init_value=layer_scale_init_value)
        # Copies: the caller may change its own, such as an arch, afterwards.
        self._arguments = copy.deepcopy(
            {name: arguments[name] for name in arguments.keys() - {'self', '__class__', 'init_cfg'}}
        )
        arch = resolve_arch(
            arch,
            depths=depths,
            channels=channels,
            kernel_sizes=kernel_sizes,
            center_size=center_size,
            sharing_grids=sharing_grids,
            conv_ratio=conv_ratio,
            small_kernel_size=small_kernel_size,
            branch_norms=branch_norms,
            use_grn=use_grn,
        )
        if positional_embedding == 'default':
            positional_embedding = arch['positional_embedding']
        conv_ratio = arch['conv_ratio']
        if not arch['branch_norms'] and (arch['small_kernel_size'] or positional_embedding is not None):
            raise ValueError(
                'branch_norms=False leaves one kernel with a bias: it needs small_kernel_size=0 and '
                'positional_embedding=None'
            )
        if positional_embedding not in ('in_bounds', 'constant', None):
            raise ValueError(f"positional_embedding is 'in_bounds', 'constant' or None, got {positional_embedding!r}")
        if mixer not in MIXERS:
            raise ValueError(f'unknown mixer {mixer!r}; known: {", ".join(MIXERS)}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate is in [0, 1), got {drop_path_rate}')
        if not 0 < conv_ratio <= 1:
            raise ValueError(f'conv_ratio is in (0, 1], got {conv_ratio}')
        self.depths, self.channels = tuple(arch['depths']), tuple(arch['channels'])
        self.num_stages = len(self.depths)
        hidden = _resolve_hidden(hidden_channels, self.depths, pretrained)
        self.out_indices = _resolve_out_indices(out_indices, self.num_stages)
        if not 0 <= frozen_stages <= self.num_stages:
            raise ValueError(f'frozen_stages is in [0, {self.num_stages}], got {frozen_stages}')
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.gap_before_final_norm = gap_before_final_norm

        last_block = max(1, sum(self.depths) - 1)
        first_block = [0, *accumulate(self.depths)]
        self._patch_sizes = (stem_patch_size, *[2] * (self.num_stages - 1))
        self.downsample_layers = ModuleList()
        self.stages = Sequential()
        for i, (depth, width) in enumerate(zip(self.depths, self.channels, strict=True)):
            self.downsample_layers.append(
                _stem(in_channels, width, stem_patch_size) if i == 0 else _downsample(self.channels[i - 1], width)
            )
            spec = MixerSpec(
                channels=int(conv_ratio * width),
                kernel_size=arch['kernel_sizes'][i],
                sharing_grid=arch['sharing_grids'][i],
                center_size=arch['center_size'],
                small_kernel_size=arch['small_kernel_size'],
                positional_embedding=positional_embedding,
                norm_cfg=norm_cfg,
                deploy=deploy or not arch['branch_norms'],
            )
            blocks = [
                PeLKBlock(
                    width,
                    MIXERS[mixer](spec),
                    spec.channels,
                    drop_path_rate=drop_path_rate * (first_block[i] + j) / last_block,
                    layer_scale_init_value=layer_scale_init_value,
                    act_cfg=act_cfg,
                    hidden_channels=hidden[i][j],
                    use_grn=arch['use_grn'],
                    with_cp=with_cp,
                )
                for j in range(depth)
            ]
            has_embedding = positional_embedding is not None and not deploy
            embedding_shape = (spec.channels, spec.kernel_size, spec.kernel_size) if has_embedding else None
            self.stages.append(PeLKStage(blocks, embedding_shape, positional_embedding))
            if i in self.out_indices:
                norm = nn.LayerNorm if gap_before_final_norm else LayerNorm2d
                self.add_module(f'norm{i}', norm(width, eps=1e-6))
        self._freeze()

    def init_weights(self) -> None:
        """Initialise, or load ``init_cfg``'s checkpoint after checking that it fits.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If its keys or shapes are not this backbone's.
        """
        given: Any = self.init_cfg
        pretrained = pretrained_cfgs(given)
        # mmengine's own reading takes what does not fit without a word, and lets a file run code.
        others = [given] if isinstance(given, dict) else list(given or [])
        self.init_cfg = [cfg for cfg in others if not pretrained_cfgs(cfg)] + [
            dict(type=_Checked, checkpoint=cfg['checkpoint'], prefix=cfg.get('prefix') or '') for cfg in pretrained
        ]
        try:
            super().init_weights()
        finally:
            self.init_cfg = given

    def _load_pretrained(self, path: str, prefix: str) -> None:
        found, own = check_pretrained(self, path, prefix), self.state_dict()
        self.load_state_dict(found, strict=False)
        absent = [name for name in own if name not in found]
        unused = [name for name in found if name not in own]
        print_log(
            f"loaded {len(own) - len(absent)} of the backbone's {len(own)} tensors from '{path}'; missing there and "
            f'initialised: {shorten(absent) or "none"}; there, but not of the backbone: {shorten(unused) or "none"}',
            'current',
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = []
        for i in range(self.num_stages):
            x = self.forward_stage(i, x)
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}')
                # Contiguous: mmcv's RoIAlign reads its input as such and ignores the strides.
                outs.append(norm(x.mean((-2, -1))) if self.gap_before_final_norm else norm(x).contiguous())
        return tuple(outs)

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Image, or map of the stage before, ``(N, C, H, W)`` to the map of a stage, before its norm."""
        downsample = self.downsample_layers[index]
        return self.stages[index](downsample(_pad_to(x, self._patch_sizes[index])))

    def _freeze(self) -> None:
        for module in (*self.downsample_layers[: self.frozen_stages], *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'PeLK':
        """Set the mode; frozen stages, and with ``norm_eval`` all batch norms, stay in eval mode."""
        super().train(mode)
        if mode:
            self._freeze()
            if self.norm_eval:
                for module in self.modules():
                    if getattr(module, 'running_mean', None) is not None:  # BN and SyncBN
                        module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Fold norms and small kernels in place; the kernels stay peripheral. Call it in eval mode."""
        for stage in self.stages:
            stage.switch_to_deploy()

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, but ``init_cfg``, that build the network as it is: deployed, shrunk, shorter."""
        blocks = [[cast(PeLKBlock, block) for block in stage] for stage in self.stages]
        hidden = [
            # Wrapped layers, such as LoRA's, do not have the attribute.
            [getattr(block.pointwise_conv1, 'out_features', 4 * width) for block in stage]
            for stage, width in zip(blocks, self.channels, strict=True)
        ]
        depths = tuple(map(len, blocks))
        is_default = hidden == [[4 * width] * depth for width, depth in zip(self.channels, depths, strict=True)]
        deployed = all(block.mixer.deployed for stage in blocks for block in stage)
        now = dict(hidden_channels=None if is_default else hidden, deploy=deployed)
        return self._arguments | now | ({} if depths == self.depths else dict(depths=depths))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer id of a parameter and the number of layers, for layer-wise learning-rate decay.

        ConvNeXt's rule: the third stage counts a layer for every three blocks, the others one each.

        Args:
            param_name: Full name of the parameter.
            prefix: Prefix of the backbone in the model, such as ``'backbone.'``.

        Returns:
            The id, 0 being the stem, and the number of ids.
        """
        last = 12 if max(self.depths[2:3], default=0) > 9 else 6
        if not param_name.startswith(prefix):
            return last + 1, last + 2
        part, *index = param_name[len(prefix) :].split('.')
        if part == 'downsample_layers':
            stage = int(index[0])
            layer = (0, 2, 3, last)[min(stage, 3)]
        elif part == 'stages':
            stage = int(index[0])
            # A stage's shared embedding belongs to its first block.
            block = int(index[1]) if index[1].isdigit() else 0
            layer = (1, 2, min(3 + block // 3, last), last)[min(stage, 3)]
        else:
            layer = last + 1
        return layer, last + 2


class _Checked:
    """An initialiser for mmengine, whose log says of each parameter what it was initialised by."""

    def __init__(self, checkpoint: str, prefix: str) -> None:
        self.checkpoint, self.prefix = checkpoint, prefix

    def __call__(self, backbone: PeLK) -> None:
        backbone._load_pretrained(self.checkpoint, self.prefix)
        update_init_info(backbone, init_info=f'loaded from {self.checkpoint}')


def _resolve_hidden(
    given: Sequence[Sequence[int]] | str | None, depths: Sequence[int], pretrained: list[dict]
) -> list[list[int | None]]:
    """Hidden units of every block; ``None`` for the default."""
    if given is None:
        return [[None] * depth for depth in depths]
    if given == 'pretrained':
        # Without a checkpoint to begin with, such as in a test, loading changes the widths.
        state = backbone_state_dict(pretrained[-1]['checkpoint'], pretrained[-1].get('prefix')) if pretrained else {}
        names = [[f'stages.{i}.{j}.pointwise_conv1.weight' for j in range(depth)] for i, depth in enumerate(depths)]
        return [[state[name].shape[0] if name in state else None for name in stage] for stage in names]
    widths: list[list[Any]] = [list(stage) if isinstance(stage, Sequence) else [] for stage in given]
    positive = all(isinstance(width, int) and width > 0 for stage in widths for width in stage)
    if [len(stage) for stage in widths] != list(depths) or not positive:
        raise ValueError(
            f"hidden_channels is None, 'pretrained', or a sequence for each stage with a positive number for each of "
            f'its {tuple(depths)} blocks, got {given!r}'
        )
    return widths


def _resolve_out_indices(out_indices: int | Sequence[int], stages: int) -> tuple[int, ...]:
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not all(-stages <= index < stages for index in given):
        raise ValueError(f'out_indices {given} are not all in [{-stages}, {stages - 1}], the stages of this arch')
    return tuple(sorted({index % stages for index in given}))


def _stem(in_channels: int, channels: int, patch_size: int) -> Sequential:
    return Sequential(nn.Conv2d(in_channels, channels, patch_size, stride=patch_size), LayerNorm2d(channels, eps=1e-6))


def _downsample(in_channels: int, channels: int) -> Sequential:
    return Sequential(LayerNorm2d(in_channels, eps=1e-6), nn.Conv2d(in_channels, channels, 2, stride=2))


def _pad_to(x: Tensor, size: int) -> Tensor:
    """Pad a map smaller than the downsampling kernel, so that tiny images still reach the last stage."""
    missing = [max(0, size - extent) for extent in x.shape[-2:]]
    return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x


torch.fx.wrap('_pad_to')  # kept as a call by symbolic tracing, because it looks at the size of the map
