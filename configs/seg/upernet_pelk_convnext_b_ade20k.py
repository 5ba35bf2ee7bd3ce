# Not of the paper: PeLK's kernels in ConvNeXt, which starts as that very network from its public ImageNet-1K weights.
_base_ = ['./upernet_pelk_b_ade20k.py', '../_base_/models/convnext_weights.py']

model = dict(
    backbone=dict(
        arch='convnext-base',
        init_cfg=dict(
            _delete_=True,
            mean=_base_.model.data_preprocessor.mean,
            std=_base_.model.data_preprocessor.std,
            **_base_.inflated.base,
        ),
    ),
    decode_head=dict(in_channels=_base_.widths.convnext_base),
    auxiliary_head=dict(in_channels=_base_.widths.convnext_base[2]),
)
custom_hooks = []  # these weights are dense
optim_wrapper = dict(paramwise_cfg=dict(peripheral_lr_mult=0.1))  # docs/enlarge.md
