"""The forms of the peripheral convolution in standard operators, against the operator itself."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmpelk.errors import UserError
from mmpelk.export import ExportedNetwork, Preprocessing, export_onnx, onnx_operators, real_image
from mmpelk.export.fourier import fourier_conv2d, kernel_spectrum, map_waves
from mmpelk.export.plain import AnySizeForm, DenseForm, FourierForm, PlainAveragePool, make_plain
from mmpelk.models import PeLK, PeripheralConv2d
from mmpelk.ops import expand_kernel

# Channels, height, width, kernel size: odd, smaller than the kernel's reach, and single rows.
SHAPES = [(5, 9, 13, 31), (3, 40, 33, 51), (4, 7, 7, 13), (2, 1, 1, 31), (2, 2, 1, 31)]


@pytest.mark.parametrize(('shape', 'bias'), [*((shape, True) for shape in SHAPES), ((4, 7, 7, 13), False)], ids=str)
def test_forms_compute_the_convolution(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    channels, height, width, size = shape
    conv = PeripheralConv2d(channels, size, bias=bias).double()
    own = nn.init.normal_(conv.bias)[:, None, None] if bias else 0
    x, bias_map = (torch.randn(*batch, channels, height, width, dtype=torch.float64) for batch in ((2,), ()))
    dense = expand_kernel(conv.weight, conv.sharing_grid)
    want = nn.functional.conv2d(x, dense, conv.bias, padding=size // 2, groups=channels) + bias_map
    with torch.no_grad():
        torch.testing.assert_close(DenseForm(conv)(x, bias_map), want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(AnySizeForm(conv)(x, bias_map), want, rtol=1e-10, atol=1e-10)
        transformed = fourier_conv2d(x, conv.weight, conv.sharing_grid)
        torch.testing.assert_close(transformed + own + bias_map, want, rtol=1e-10, atol=1e-10)
        # float32 inside.
        torch.testing.assert_close(FourierForm(conv, (height, width), bias_map)(x), want, rtol=1e-5, atol=1e-5)
        without = FourierForm(conv, (height, width), None)(x)
        torch.testing.assert_close(without + bias_map, want, rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_large_sums() -> None:
    conv = PeripheralConv2d(2, 31)
    x = torch.full((1, 2, 64, 64), 100.0)  # the sum over the map is beyond float16
    with torch.no_grad():
        want = conv(x)
        for form in (FourierForm(conv, (64, 64), None), AnySizeForm(copy.deepcopy(conv).half())):
            out = form(x.half())
            torch.testing.assert_close(out.float(), want, rtol=2e-3, atol=0.1)
            assert out.dtype == torch.float16
        for form in (DenseForm(conv).bfloat16(), AnySizeForm(copy.deepcopy(conv).bfloat16())):
            assert form(x[..., :5, :5].bfloat16(), torch.ones(2, 5, 5)).dtype == torch.bfloat16, 'with any term'


def test_waves_of_long_maps_keep_their_digits() -> None:
    waves, exact = (map_waves(600, 640, dtype) for dtype in (torch.float32, torch.float64))
    for wave, want in zip(waves, exact, strict=True):
        torch.testing.assert_close(wave.double(), want, rtol=0, atol=1e-6)
    conv = PeripheralConv2d(2, 31)
    form = FourierForm(conv, (600, 5), None)  # which loses none but in the end
    exact = [*map_waves(600, 616, torch.float64)]
    exact += kernel_spectrum(conv.weight.detach(), conv.sharing_grid, (15, 4), (616, 10), torch.float64)
    names = ('rows_cos', 'rows_sin', 'kernel_real', 'kernel_imag', 'kernel_real_mirrored', 'kernel_imag_mirrored')
    for name, want in zip(names, exact, strict=True):
        torch.testing.assert_close(form.get_buffer(name).double(), want, rtol=6e-8, atol=1e-12, msg=name)


@pytest.mark.parametrize('bins', [2, 3, (3, None)], ids=str)
def test_pooling(bins: int | tuple[int, None]) -> None:
    pool, x = nn.AdaptiveAvgPool2d(bins), torch.randn(2, 3, 16, 7)
    torch.testing.assert_close(PlainAveragePool(pool)(x), pool(x))


ONE_BRANCH = dict(branch_norms=False, small_kernel_size=0, positional_embedding=None)


def small_backbone() -> PeLK:
    torch.manual_seed(0)
    model = PeLK(
        depths=(1, 1), channels=(8, 12), kernel_sizes=(31, 13), out_indices=(0, 1), gap_before_final_norm=False
    )
    for stage in model.stages:
        for block in stage:
            nn.init.uniform_(block.gamma, 0.5, 1.5)
            nn.init.uniform_(block.pointwise_conv2.bias)  # which the layer scale multiplies, too
    model.eval().switch_to_deploy()
    return model


@pytest.mark.parametrize(
    'given', [{}, dict(mean=[2.0], std=[4.0]), dict(mean=list(range(6)), std=[2] * 6, bgr_to_rgb=True)]
)
def test_preprocessing_of_six_channels(given: dict) -> None:
    preprocessing = Preprocessing.of(Config(dict(model=dict(data_preprocessor=given))), 6)
    assert len(preprocessing.mean) == len(preprocessing.std) == 6
    image = real_image(None, (8, 9), 6)
    assert image.shape == (8, 9, 6)
    assert np.array_equal(image, np.tile(real_image(None, (8, 9)), 2)), 'red, green, blue, and again'
    want = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    for channel in range(6):
        mean, std = (preprocessing.mean[channel], preprocessing.std[channel])
        torch.testing.assert_close(preprocessing.of_image(image)[:, channel], (want[:, channel] - mean) / std)


def test_preprocessing_of_another_number_of_channels() -> None:
    cfg = Config(dict(model=dict(data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3))))
    with pytest.raises(UserError, match=r'data_preprocessor\.mean has 3 values, the network takes 6 channels'):
        Preprocessing.of(cfg, 6)


def test_plain_network_has_no_operator_of_ours() -> None:
    model, images = small_backbone(), [torch.randn(1, 3, *size) for size in ((67, 45), (33, 90))]
    for plain, taken in (
        (make_plain(copy.deepcopy(model), images[0]), images[:1]),
        (make_plain(copy.deepcopy(model)), images),
    ):
        forms = [
            type(module) for module in plain.modules() if isinstance(module, DenseForm | FourierForm | AnySizeForm)
        ]
        assert forms == [AnySizeForm if len(taken) > 1 else FourierForm, DenseForm], (
            'the faster one where there are two'
        )
        assert not any(isinstance(module, PeripheralConv2d) for module in plain.modules())
        for image in taken:
            with torch.no_grad():
                for out, want in zip(plain(image), model(image), strict=True):
                    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    """One convolution at two places, for maps of one size or of two."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = PeripheralConv2d(3, 31)
        self.second, self.pool = self.first, nn.AvgPool2d(stride)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(self.pool(self.first(image)))


@pytest.mark.parametrize('stride', [1, 2])
def test_a_convolution_at_two_places_is_replaced_at_both(stride: int) -> None:
    torch.manual_seed(0)
    network, image = Twice(stride).eval(), torch.randn(1, 3, 20, 34)
    plain = make_plain(copy.deepcopy(network), image)
    assert not any(isinstance(module, PeripheralConv2d) for module in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(plain(image), network(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [13, 31])
def test_a_term_may_be_given_by_its_name(size: int) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = PeripheralConv2d(3, size, bias=True)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.conv(image, bias_map=7 * torch.ones(3, *image.shape[2:]))

    network, image = Named().eval(), torch.randn(1, 3, 9, 12)
    with torch.no_grad():
        for given in (image, None):
            plain = make_plain(copy.deepcopy(network), given)
            torch.testing.assert_close(plain(image), network(image), rtol=1e-4, atol=1e-5)


def test_plain_form_of_a_trained_network_is_refused() -> None:
    model = PeLK(depths=(1,), channels=(8,), kernel_sizes=(7,))
    with pytest.raises(UserError, match=r'stages\.0\.0\.mixer is not deployed.*switch_to_deploy'):
        make_plain(model, torch.rand(1, 3, 32, 32))
    model.eval().switch_to_deploy()
    make_plain(model, torch.rand(1, 3, 32, 32))
    make_plain(PeLK(depths=(1,), channels=(8,), kernel_sizes=(7,), **ONE_BRANCH).eval(), torch.rand(1, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize('dynamo', [True, False])
def test_own_export_to_onnx_names_the_remedy(dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip('onnxscript', reason='pip install -e .[export]')
    model, image = small_backbone(), torch.rand(1, 3, 64, 48)
    with (
        pytest.warns(UserWarning, match=r'mmpelk\.export\.make_plain'),
        pytest.raises(Exception, match='peripheral_conv2d'),
    ):
        torch.onnx.export(model, (image,), str(tmp_path / 'model.onnx'), dynamo=dynamo)


@pytest.mark.slow
def test_onnxruntime_fuses_gelu_of_the_file(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip('onnxruntime', reason='pip install -e .[export]')
    pytest.importorskip('onnxscript', reason='pip install -e .[export]')
    network = ExportedNetwork(Levels(small_backbone()), ('level0', 'level1'), 'detection', Preprocessing(), 4)
    export_onnx(network, torch.randn(1, 3, 64, 48), tmp_path / 'model.onnx')
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimised.onnx')
    onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'), options, providers=['CPUExecutionProvider'])
    assert 'Erf' in onnx_operators(tmp_path / 'model.onnx')
    optimised = onnx_operators(tmp_path / 'optimised.onnx')
    assert 'Erf' not in optimised
    assert any(name.endswith('Gelu') for name in optimised)


class Levels(nn.Module):
    """A backbone whose maps are a tuple."""

    def __init__(self, backbone: PeLK) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.backbone(image))


def test_layers_that_others_changed_keep_the_layer_scale() -> None:
    """A linear layer of another class, with a hook, or of two blocks is not multiplied; a hooked kernel is refused."""

    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.mean(-1, keepdim=True)

    def deployed() -> PeLK:
        torch.manual_seed(0)
        arch = dict(depths=(2,), channels=(16,), kernel_sizes=(31,))
        network = PeLK(arch, layer_scale_init_value=0.5, gap_before_final_norm=False).eval()
        network.switch_to_deploy()
        return network

    def adapt(network: PeLK) -> None:
        old = network.stages[0][0].pointwise_conv2
        network.stages[0][0].pointwise_conv2 = Adapted(old.in_features, old.out_features)

    changes = {
        'another class': adapt,
        'a hook': lambda network: network.stages[0][0].pointwise_conv2.register_forward_hook(lambda m, i, out: out + 1),
        'shared': lambda network: setattr(
            network.stages[0][1], 'pointwise_conv2', network.stages[0][0].pointwise_conv2
        ),
    }
    image = torch.rand(1, 3, 64, 64)
    for kind, change in changes.items():
        network = deployed()
        change(network)
        with torch.no_grad():
            want = network(image)[0]
            torch.testing.assert_close(make_plain(network, image)(image)[0], want, rtol=1e-4, atol=1e-4, msg=kind)

    class Doubled(PeripheralConv2d):
        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(*args)

    for double in (
        lambda large: large.register_forward_hook(lambda module, args, out: 2 * out),
        lambda large: setattr(large, '__class__', Doubled),
    ):
        network = deployed()
        double(network.stages[0][0].mixer.large)
        with pytest.raises(UserError, match='has a hook, a wrapper or a forward of its own'):
            make_plain(network, image)
