"""Labels that are checked when they are loaded: what a segmentor's heads ignore is no class."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmpelk.engine import CheckDataHook
from mmpelk.errors import DataError, UserError

pytestmark = pytest.mark.scope('mmseg')


@pytest.mark.parametrize(
    ('ignored', 'value', 'passes'), [(254, 254, True), (254, 255, False), (255, 255, True), (255, 254, False)]
)
def test_the_ignored_value_is_the_heads(ignored: int, value: int, passes: bool, tmp_path: Path) -> None:
    from mmseg.registry import DATASETS

    label = np.zeros((8, 8), np.uint8)
    label[:4] = value
    for name, pixels in (('img', np.zeros((8, 8, 3), np.uint8)), ('ann', label)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / '0.png')
    data = DATASETS.build(
        dict(
            type='BaseSegDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='img', seg_map_path='ann'),
            img_suffix='.png',
            ignore_index=ignored,
            metainfo=dict(classes=('a', 'b')),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
        )
    )
    model = nn.Module()
    model.decode_head = nn.Module()
    model.decode_head.num_classes, model.decode_head.ignore_index = 2, ignored  # type: ignore[assignment]
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=data))
    CheckDataHook().before_train(SimpleNamespace(model=model, train_loop=loop))  # type: ignore[arg-type]
    if passes:
        assert data[0]['inputs'].shape == (3, 8, 8)
    else:
        with pytest.raises(DataError, match=f'has class {value}'):
            data[0]


def test_weights_of_which_a_few_fit_are_another_networks() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    runner, hook = SimpleNamespace(model=model, _load_from='other.pth'), CheckDataHook()
    hook.after_load_checkpoint(runner, dict(state_dict={'0.weight': torch.ones(4, 3)}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match='another network: 1 of 4 parameters'):
        hook.before_test(runner)  # type: ignore[arg-type]
