# PeLK-B with as many active weights as pelk_b_in1k.py, but whole hidden units inactive, the same share in every block:
# tools/export_dense.py --shrink takes them out. Beyond the paper, and nobody has trained it; the schedule is SLaK-B's.
_base_ = './pelk_b_in1k.py'

_units = dict(granularity='unit', initialisation='uniform', update_interval=100, prune_rate=0.3)
custom_hooks = [dict(**_units, **_base_.sparsity), _base_.ema]
