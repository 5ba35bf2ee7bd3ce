# Table 1: stripes, without sparsity.
_base_ = './table1_slak_51.py'

custom_hooks = [_base_.ema]
