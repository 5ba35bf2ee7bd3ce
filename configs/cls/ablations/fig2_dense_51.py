# Fig. 2: dense (K x K), 51.
_base_ = './table1_replk_51_no_sparsity.py'
