"""What the counters and the class activation maps of others see of the large kernels."""

import pytest
import torch
from mmengine.analysis import ActivationAnalyzer, FlopAnalyzer, get_model_complexity_info
from torch import Tensor, nn

from mmpelk.analysis.complexity import count_complexity
from mmpelk.models import PeLK, PeripheralConv2d
from mmpelk.models.flop_handles import FLOP_HANDLES
from mmpelk.ops import peripheral_conv2d, sharing_grid

NANO = dict(depths=(1, 1, 2, 1), channels=(8, 12, 16, 24), kernel_sizes=(13, 11, 9, 7))


@pytest.fixture(params=['trained', 'deployed'])
def network(request: pytest.FixtureRequest) -> PeLK:
    network = PeLK(NANO).eval()
    if request.param == 'deployed':
        network.switch_to_deploy()
    return network


def test_mmengine_counts_the_large_kernels(network: PeLK) -> None:
    calls, image = count_complexity(network, (64, 48)).calls, torch.zeros(1, 3, 64, 48)
    flops = FlopAnalyzer(network, (image,)).by_operator()['peripheral_conv2d']
    assert flops == sum(call.dense_flops for call in calls) > 0
    activations = ActivationAnalyzer(network, (image,)).by_operator()['peripheral_conv2d']
    assert activations == sum(torch.Size(call.shape).numel() for call in calls)
    # What the toolboxes' get_flops.py call.
    counts = get_model_complexity_info(network, (3, 64, 48), show_table=False, show_arch=False)
    assert counts['flops'] > flops
    assert counts['flops'] == FlopAnalyzer(network, (image,)).total()


def test_channels_that_pass_count_nothing() -> None:
    class Partial(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return peripheral_conv2d(x, torch.zeros(2, 1, 3, 3), sharing_grid(5, 1), partial=True)

    PeripheralConv2d(1, 5)
    counted = FlopAnalyzer(Partial(), (torch.zeros(3, 7, 9, 8),)).by_operator()
    assert counted == {'peripheral_conv2d': 3 * 2 * 9 * 8 * 5**2}


# The counters below are no requirement of the tests; docs/complexity.md shows these calls.


def test_fvcore_counts_them_once_it_has_the_handles(network: PeLK) -> None:
    fvcore = pytest.importorskip('fvcore.nn')
    image = torch.zeros(1, 3, 64, 48)
    counter = fvcore.FlopCountAnalysis(network, image).unsupported_ops_warnings(False)
    large = sum(call.dense_flops for call in count_complexity(network, (64, 48)).calls)
    assert 'peripheral_conv2d' not in counter.by_operator()
    handled = fvcore.FlopCountAnalysis(network, image).set_op_handle(**FLOP_HANDLES).unsupported_ops_warnings(False)
    assert handled.total() == counter.total() + large


def test_hooks_on_modules_see_every_large_kernel(network: PeLK) -> None:
    """As thop and ptflops count, by forward hooks on the modules of a class."""
    counted: list[int] = []

    def count(module: PeripheralConv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        counted.append(output.numel() * module.kernel_size**2)

    for module in network.modules():
        if isinstance(module, PeripheralConv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 48))
    assert sum(counted) == sum(call.dense_flops for call in count_complexity(network, (64, 48)).calls)


def test_thop_and_ptflops_count_them_once_they_have_a_hook() -> None:
    thop, ptflops = pytest.importorskip('thop'), pytest.importorskip('ptflops')
    network, image = PeLK(NANO).eval(), torch.zeros(1, 3, 64, 48)
    large = sum(call.dense_flops for call in count_complexity(network, (64, 48)).calls)

    def count(attribute: str):
        def hook(module: PeripheralConv2d, inputs: tuple[Tensor], output: Tensor) -> None:
            operations = output.numel() * module.kernel_size**2
            setattr(module, attribute, getattr(module, attribute) + operations)

        return hook

    custom = {PeripheralConv2d: count('total_ops')}
    counts = [thop.profile(network, (image,), custom_ops=ops, verbose=False)[0] for ops in ({}, custom)]
    assert counts[1] - counts[0] == large
    counts = [
        ptflops.get_model_complexity_info(
            PeLK(NANO), (3, 64, 48), as_strings=False, print_per_layer_stat=False, custom_modules_hooks=hooks
        )[0]
        for hooks in ({}, {PeripheralConv2d: count('__flops__')})
    ]
    assert counts[1] - counts[0] == large


def test_last_stage_has_the_map_that_a_classifier_pools() -> None:
    """The layer for class activation maps: behind it there are numbers per channel alone."""
    network, seen = PeLK(NANO).eval(), []
    network.stages[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    (pooled,) = network(torch.rand(1, 3, 64, 48))
    assert seen[0].shape == (1, 24, 2, 1)
    assert pooled.shape == (1, 24)
    assert seen[0].requires_grad
