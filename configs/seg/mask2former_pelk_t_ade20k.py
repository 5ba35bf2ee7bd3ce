# Not of the paper: mmseg's Mask2Former with PeLK-T. The rates decay as in ConvNeXt-T's UperNet. Not measured.
_base_ = [
    __import__('mmpelk').config_path('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'),
    '../_base_/models/pelk_widths.py',
    '../_base_/hooks.py',
    '../_base_/sparsity_fixed.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpelk.PeLK',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        drop_path_rate=0.3,  # Swin-T's Mask2Former
        layer_scale_init_value=1.0,  # ConvNeXt's for segmentation; the pretrained values replace it
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        # ImageNet-1K weights from your own pre-training: nobody has published any. See docs/training.md.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_t_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=_base_.widths.tiny),
)
default_hooks = dict(checkpoint=dict(type='mmpelk.CheckpointHook'), **_base_.mmpelk_hooks)
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    constructor='mmpelk.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        decay_rate=0.9,
        decay_type='stage_wise',
        num_layers=6,
        custom_keys=dict(query_embed=no_decay, query_feat=no_decay, level_embed=no_decay),
    ),
)
