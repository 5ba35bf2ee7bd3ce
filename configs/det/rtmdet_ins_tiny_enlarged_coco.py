# Not of the paper: as rtmdet_tiny_enlarged_coco.py, with masks.
_base_ = 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py'

model = dict(backbone=dict(_delete_=True, type='mmpelk.Enlarged', backbone=_base_.model.backbone, kernel_size=31))
optim_wrapper = dict(constructor='mmpelk.PeripheralOptimWrapperConstructor')  # a tenth of the rate for large kernels
