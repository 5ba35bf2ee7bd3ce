# Table 1: RepLK-51, 51 x 51, w/o.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(backbone=dict(mixer='dense'))
