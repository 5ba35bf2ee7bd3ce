# Fig. 2: stripe (K x 5), 51.
_base_ = './table1_slak_51_no_sparsity.py'
