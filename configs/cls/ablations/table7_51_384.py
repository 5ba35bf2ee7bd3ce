# Table 7: PeLK at 384 x 384.
_base_ = './pelk_t_384.py'
