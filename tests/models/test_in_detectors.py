"""PeLK inside mmdet's detectors: images of any size, padded or not."""

import pytest
import torch

from tests.models.detectors import batch, detector, loss_of

pytestmark = pytest.mark.scope('mmdet')

SIZES = {
    'not a multiple of 32': [(97, 75)],
    '1333 wide': [(48, 1333)],
    'two sizes in a batch': [(64, 96), (120, 70)],
    # Two images: batch norm refuses to train on a single pixel, which is what the last stage sees of each.
    'smaller than the kernel': [(24, 17), (20, 23)],
    'smaller than the total stride': [(30, 7), (9, 25)],
}


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES.keys())
def test_detector_trains_and_predicts_at_any_size(sizes: list[tuple[int, int]]) -> None:
    """Unpadded; what padding to multiples of 32, the recipes' way, gives are sizes like any other."""
    model = detector(pad_size_divisor=1, depths=(1, 1, 1, 1))
    loss = loss_of(model, batch(*sizes))
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    predicted = model.test_step(batch(*sizes))
    assert [sample.pred_instances.masks.shape[-2:] for sample in predicted] == [torch.Size(size) for size in sizes]
