# Not of the paper: the 7 x 7 kernels of ConvNeXt-T, with its public weights, become centres of kernels of PeLK's sizes.
_base_ = __import__('mmpelk').config_path('mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512')

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpelk.Enlarged',
        backbone=_base_.model.backbone,
        kernel_size={'stages.0.*': 51, 'stages.1.*': 49, 'stages.2.*': 47, 'stages.3.*': 13},
    )
)
optim_wrapper = dict(
    constructor='mmpelk.LayerDecayOptimWrapperConstructor',  # the toolbox's rates
    paramwise_cfg=dict(peripheral_lr_mult=0.1),  # docs/enlarge.md
)
