# Not of the paper: PeLK's kernels in ConvNeXt, which starts as that very network from its public ImageNet-1K weights.
_base_ = './upernet_pelk_t_ade20k.py'

model = dict(
    backbone=dict(
        arch='convnext-tiny',
        init_cfg=dict(
            _delete_=True,
            type='mmpelk.Inflated',
            # What the toolbox's own recipe starts from.
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/convnext/downstream/convnext-tiny_3rdparty_32xb128-noema_in1k_20220301-795e9634.pth',
        ),
    ),
    decode_head=dict(in_channels=_base_.widths.convnext_tiny),
    auxiliary_head=dict(in_channels=_base_.widths.convnext_tiny[2]),
)
custom_hooks = []  # these weights are dense
