# Table 1: dense kernels, without sparsity.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(backbone=dict(mixer='dense'))
