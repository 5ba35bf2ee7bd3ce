"""PeLK inside mmdet's detectors: any size, frozen stages, activation checkpointing."""

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


@pytest.mark.parametrize('divisor', [1, 32])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES.keys())
def test_detector_trains_and_predicts_at_any_size(sizes: list[tuple[int, int]], divisor: int) -> None:
    model = detector(pad_size_divisor=divisor)
    loss = loss_of(model, batch(*sizes))
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    predicted = model.test_step(batch(*sizes))
    assert [sample.pred_instances.masks.shape[-2:] for sample in predicted] == [torch.Size(size) for size in sizes]


def test_maps_are_contiguous() -> None:
    """mmcv's RoIAlign reads memory as ``(N, C, H, W)`` whatever the strides: with others a detector learns nothing."""
    model = detector()
    inputs = model.data_preprocessor(batch((64, 96), (70, 50)), training=True)['inputs']
    assert all(value.is_contiguous() for value in model.backbone(inputs))
    assert all(value.is_contiguous() for value in model.extract_feat(inputs))


@pytest.mark.parametrize('frozen', [1, 3])
def test_frozen_stages_stay_as_they_are(frozen: int) -> None:
    model = detector(frozen_stages=frozen)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_of(model, batch((64, 64))).backward()
    optimizer.step()
    stages = {str(i) for i in range(frozen)}
    for name, value in model.backbone.state_dict().items():
        part, index, *_ = name.split('.')
        if part in ('stages', 'downsample_layers') and index in stages:  # running statistics included
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
    trained = {name for name, value in model.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith(f'stages.{frozen}.') for name in trained)


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for with_cp in (False, True):
        model = detector(with_cp=with_cp)
        loss_of(model, batch((64, 96), (70, 50))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        # The same operations in the same order.
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
