"""Annotations and weights that do not fit; whole runs are in test_bad_inputs.py."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmpelk.fault_tolerance.errors import DataError, UserError
from mmpelk.fault_tolerance.samples import CheckDataHook, _CheckedPipeline


@pytest.mark.parametrize(('label', 'fits'), [(0, True), (3, True), (4, False), (255, True)])
def test_labels_of_a_map_end_below_the_number_of_classes(label: int, fits: bool) -> None:
    pipeline = _CheckedPipeline([], 4, 'files', {255})
    data = dict(gt_seg_map=np.full((2, 2), label), reduce_zero_label=False, ori_shape=(2, 2))
    if fits:
        assert pipeline.check(data) is data
    else:
        with pytest.raises(DataError, match='has class 4, but there are 4 classes'):
            pipeline.check(data)


@pytest.mark.parametrize(('label', 'fits'), [(-1, False), (0, True), (3, True), (4, False)])
def test_labels_of_images_end_below_the_number_of_classes(label: int, fits: bool) -> None:
    pipeline = _CheckedPipeline([], 4, 'files', {255})
    if fits:
        assert pipeline(dict(gt_label=label)) == dict(gt_label=label)
    else:
        with pytest.raises(DataError, match='but there are 4 classes'):
            pipeline(dict(gt_label=label))


def test_weights_of_another_network_are_no_start() -> None:
    runner: Any = SimpleNamespace(model=nn.Linear(1, 1), _load_from='a.pth')
    hook = CheckDataHook()
    hook.after_load_checkpoint(runner, dict(state_dict={'weight': torch.ones(2, 2), 'x': torch.ones(1)}))
    with pytest.raises(UserError, match='no parameter has its name and shape'):
        hook.before_train(runner)


@pytest.mark.parametrize(('fitting', 'ok'), [(4, True), (2, True), (1, False), (0, False)])
def test_weights_of_another_network_are_not_tested(fitting: int, ok: bool) -> None:
    network = nn.ParameterList(torch.zeros(1) for _ in range(4))
    weights: dict[str, Any] = {str(index): torch.zeros(1 if index < fitting else 2) for index in range(4)}
    dataset = SimpleNamespace(metainfo={}, __len__=lambda: 1)
    runner: Any = SimpleNamespace(
        model=network, _load_from='a.pth', test_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=[dataset]))
    )
    hook = CheckDataHook()
    hook.after_load_checkpoint(runner, dict(state_dict=weights))
    if ok:
        hook.before_test(runner)
    else:
        with pytest.raises(UserError, match=f'{fitting} of 4 parameters'):
            hook.before_test(runner)
