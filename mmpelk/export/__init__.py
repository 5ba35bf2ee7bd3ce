"""Trained networks out of Python: standard operators, ONNX."""

from .network import ExportedNetwork, Preprocessing, load_deployed, real_image
from .onnx_file import OPSETS, Comparison, compare_onnx, export_onnx, in_half, open_onnx
from .plain import make_plain
from .tables import decomposition_table, onnx_translation_table

__all__ = [
    'OPSETS',
    'Comparison',
    'ExportedNetwork',
    'Preprocessing',
    'compare_onnx',
    'decomposition_table',
    'export_onnx',
    'in_half',
    'load_deployed',
    'make_plain',
    'onnx_translation_table',
    'open_onnx',
    'real_image',
]
