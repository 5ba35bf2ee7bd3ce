# Fig. 2: stripe (K x 5), 7.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(backbone=dict(kernel_sizes=(7, 7, 7, 7)))
