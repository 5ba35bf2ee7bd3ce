# Table 7: PeLK, 384 x 384, 51-49-47-13.
_base_ = './pelk_t_384.py'
