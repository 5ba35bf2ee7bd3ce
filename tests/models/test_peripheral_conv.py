"""The module around the operator."""

import pytest
import torch

from mmpelk.models import PeripheralConv2d
from mmpelk.ops import sharing_grid
from mmpelk.ops.positional_op import positional_term
from mmpelk.ops.reference import peripheral_conv2d_reference


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('with_map', [False, True])
def test_forward(bias: bool, with_map: bool) -> None:
    conv = PeripheralConv2d(4, 13, bias=bias).double()
    if conv.bias is not None:
        torch.nn.init.normal_(conv.bias)
    x, bias_map = torch.randn(2, 4, 8, 11, dtype=torch.float64), torch.randn(4, 8, 11, dtype=torch.float64)
    want = peripheral_conv2d_reference(x, conv.weight, sharing_grid(13, 5), conv.bias)
    got = conv(x, bias_map if with_map else None)
    torch.testing.assert_close(got, want + bias_map if with_map else want)
    embedding = torch.randn(4, 13, 13, dtype=torch.float64)
    term = positional_term(conv.weight, embedding, conv.sharing_grid, 8, 11)
    torch.testing.assert_close(conv(x, bias_map if with_map else None, embedding=embedding), got + term)


def test_parameters_and_repr() -> None:
    conv = PeripheralConv2d(46, 51)
    assert conv.weight.shape == (46, 1, 13, 13)
    assert '46, kernel_size=51, sharing_grid=[9, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 9]' in repr(conv)


def test_refuses() -> None:
    for arguments, message in (
        (dict(kernel_size=12), 'odd positive'),
        (dict(kernel_size=5, center_size=7), 'larger than kernel_size 5'),
        (dict(kernel_size=13, sharing_grid=[3, 2, 1]), 'kernel_size 13 needs'),
    ):
        with pytest.raises(ValueError, match=message):
            PeripheralConv2d(4, **arguments)


def test_initial_parameters() -> None:
    conv = PeripheralConv2d(64, 51, bias=True)
    assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)  # 64 x 13 x 13 numbers
    assert not conv.bias.any()


def test_names_the_backend_for_its_calls() -> None:
    with pytest.raises(ValueError, match="unknown backend 'magic'"):
        PeripheralConv2d(4, 13, backend='magic')(torch.zeros(1, 4, 8, 8))


def test_wrong_channel_count() -> None:
    with pytest.raises(ValueError, match='for an input of 5 channels'):
        PeripheralConv2d(4, 13)(torch.zeros(1, 5, 8, 8))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
def test_embeddings_and_maps_that_are_added_are_cast_to_the_map(dtype: torch.dtype) -> None:
    conv = PeripheralConv2d(3, 13).to(dtype)
    x, embedding, bias_map = torch.randn(2, 3, 9, 8), torch.randn(3, 13, 13), torch.randn(3, 9, 8)
    with torch.no_grad():
        got = conv(x.to(dtype), bias_map, embedding.to(dtype))
        want = conv.float()(x, bias_map, embedding)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
