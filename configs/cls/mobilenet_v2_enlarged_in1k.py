# Not of the paper: MobileNetV2 with its depthwise 3 x 3 kernels of stride 1 as centres of 31 x 31 ones.
# It trains from scratch, by SGD: the lower rate is untested there (docs/enlarge.md).
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'

model = dict(backbone=dict(_delete_=True, type='mmpelk.Enlarged', backbone=_base_.model.backbone, kernel_size=31))
optim_wrapper = dict(constructor='mmpelk.PeripheralOptimWrapperConstructor')  # a tenth of the rate for large kernels
