# Not of the paper: the depthwise 5 x 5 kernels of RTMDet-tiny's backbone become centres of 31 x 31 ones. The network
# starts as the plain one; its checkpoints load.
_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'

model = dict(backbone=dict(_delete_=True, type='mmpelk.Enlarged', backbone=_base_.model.backbone, kernel_size=31))
optim_wrapper = dict(constructor='mmpelk.PeripheralOptimWrapperConstructor')  # a tenth of the rate for large kernels
