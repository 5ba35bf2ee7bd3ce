# Table 7: PeLK at 224 x 224.
_base_ = './pelk_t.py'
