# Fig. 2: dense (K x K), 13.
_base_ = './table1_replk_51_no_sparsity.py'

model = dict(backbone=dict(kernel_sizes=(13, 13, 13, 13)))
