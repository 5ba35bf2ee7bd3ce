"""The recipes for pure-Python configs: ``with read_base(): from mmpelk.configs.seg.upernet_pelk_t_ade20k import *``."""
