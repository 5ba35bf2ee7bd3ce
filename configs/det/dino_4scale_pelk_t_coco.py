# Not of the paper: mmdet's DINO with PeLK-T. The rates decay as in ConvNeXt-T's Cascade Mask R-CNN. Not measured.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/models/pelk_widths.py',
    '../_base_/hooks.py',
    '../_base_/sparsity_fixed.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpelk.PeLK',
        arch='tiny',
        out_indices=(1, 2, 3),
        gap_before_final_norm=False,
        drop_path_rate=0.2,  # Swin-L's DINO
        layer_scale_init_value=1.0,  # ConvNeXt's for detection; the pretrained values replace it
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        # ImageNet-1K weights from your own pre-training: nobody has published any. See docs/training.md.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_t_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=_base_.widths.tiny[1:]),
)
default_hooks = dict(checkpoint=dict(type='mmpelk.CheckpointHook'), **_base_.mmpelk_hooks)
optim_wrapper = dict(
    constructor='mmpelk.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.7, decay_type='layer_wise'),
)
