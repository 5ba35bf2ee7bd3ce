# Not of the paper: MobileNetV3 with its depthwise kernels of stride 1 as centres of 31 x 31 ones.
# It trains from scratch, by RMSprop: the lower rate is untested there (docs/enlarge.md).
_base_ = 'mmpretrain::mobilenet_v3/mobilenet-v3-large_8xb128_in1k.py'

model = dict(backbone=dict(_delete_=True, type='mmpelk.Enlarged', backbone=_base_.model.backbone, kernel_size=31))
optim_wrapper = dict(constructor='mmpelk.PeripheralOptimWrapperConstructor')  # a tenth of the rate for large kernels
