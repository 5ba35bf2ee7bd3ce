# Table 1: SLaK-51, 51 x 5 + 5 x 51, w/o.
_base_ = './table1_slak_51.py'

custom_hooks = [_base_.ema]
