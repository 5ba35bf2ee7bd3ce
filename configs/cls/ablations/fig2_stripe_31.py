# Fig. 2: stripe (K x 5), 31.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(backbone=dict(kernel_sizes=(31, 29, 27, 13)))
