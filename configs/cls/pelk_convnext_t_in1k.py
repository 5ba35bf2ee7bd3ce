# Not of the paper: PeLK's kernels in ConvNeXt-T, for its public weights: tools/convert_checkpoint.py inflate.
_base_ = './pelk_t_in1k.py'

model = dict(
    backbone=dict(arch='convnext-tiny'),
    head=dict(in_channels=_base_.widths.convnext_tiny[-1]),
)
custom_hooks = [_base_.ema]
optim_wrapper = dict(constructor='mmpelk.PeripheralOptimWrapperConstructor')  # docs/enlarge.md
