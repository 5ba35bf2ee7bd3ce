# Fig. 2: stripes of K = 51, without sparsity.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(backbone=dict(kernel_sizes=(51, 49, 47, 13)))
