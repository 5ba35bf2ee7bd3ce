"""What of an ONNX file is ours to write."""

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

from mmpelk.export.onnx_file import gelu_translation


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_gelu_is_torchs(approximate: str) -> None:
    onnxscript = pytest.importorskip('onnxscript', reason='pip install -e .[export]')
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    got = np.asarray(gelu_translation(onnxscript.tensor.Tensor(x), approximate).value)
    np.testing.assert_allclose(got, gelu(torch.from_numpy(x), approximate=approximate).numpy(), rtol=1e-5, atol=1e-5)
