"""Export of trained networks: standard operators, ONNX, torch.export."""

from .comparison import Comparison, compare, in_half
from .network import ExportedNetwork, Preprocessing, load_deployed, real_image
from .onnx_file import OPSETS, check_opset, export_onnx, onnx_operators, open_onnx, runner_of
from .plain import make_plain
from .quantisation import calibration_images, quantize_onnx, replace_weights
from .torch_program import compile_program, export_program, load_program

__all__ = [
    'OPSETS',
    'Comparison',
    'ExportedNetwork',
    'Preprocessing',
    'calibration_images',
    'check_opset',
    'compare',
    'compile_program',
    'export_onnx',
    'export_program',
    'in_half',
    'load_deployed',
    'load_program',
    'make_plain',
    'onnx_operators',
    'open_onnx',
    'quantize_onnx',
    'real_image',
    'replace_weights',
    'runner_of',
]
