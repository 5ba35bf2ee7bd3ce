# Table 1: dense kernels, with sparsity.
_base_ = './table1_slak_51.py'

model = dict(backbone=dict(mixer='dense'))
