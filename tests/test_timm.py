"""``mmpelk.timm``: PeLK in timm's registry, used as timm's users do."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch._subclasses.fake_tensor import FakeTensorMode

import mmpelk
from mmpelk.errors import UserError
from mmpelk.models import ARCHITECTURES
from mmpelk.models.weights.key_maps import to_timm

pytest.importorskip('timm', reason='pip install -e .[timm]')
import timm

from mmpelk.sparsity import apply_masks
from mmpelk.timm import NAMES, names_of_timm
from tests.sparsity.tiny import draw_masks

SMALL: dict[str, Any] = dict(depths=(1, 2, 1), channels=(8, 12, 16), kernel_sizes=(13, 9, 7))

SHARED = dict(first_conv='backbone.downsample_layers.0.0', classifier='head.fc')


def create(**arguments: Any) -> Any:
    torch.manual_seed(0)
    # At its initial 1e-6 the layer scale would hide what the blocks compute.
    return timm.create_model('pelk_tiny', **SMALL | dict(layer_scale_init_value=1.0) | arguments).eval()


def test_every_architecture_is_listed() -> None:
    assert {'pelk_tiny', 'pelk_small', 'pelk_base', 'pelk_base_101'} <= set(timm.list_models('pelk*'))
    assert len(timm.list_models('pelk*')) == len(ARCHITECTURES)
    assert not timm.list_models('pelk*', pretrained=True)


@pytest.mark.parametrize('name', ['pelk_tiny', 'pelk_small', 'pelk_base'])
def test_features_are_of_the_architecture(name: str) -> None:
    with torch.device('meta'):
        model = timm.create_model(name, features_only=True, out_indices=(1, 3))
    arch = ARCHITECTURES[NAMES[name]]
    assert model.feature_info.channels() == [arch['channels'][1], arch['channels'][3]]
    assert model.feature_info.reduction() == [8, 32]
    assert [len(stage) for stage in model.model.backbone.stages] == list(arch['depths'])


@pytest.mark.parametrize(
    ('out_indices', 'stages', 'patch'),
    [((0, 1, 2), [0, 1, 2], 4), ((0, 1), [0, 1], 2), ([-1], [2], 4), (2, [1, 2], 4)],
    ids=str,
)
def test_features(out_indices: Any, stages: list[int], patch: int) -> None:
    model = create(features_only=True, out_indices=out_indices, stem_patch_size=patch)
    image = torch.rand(2, 3, 64, 48)
    maps = model(image)
    assert [tuple(out.shape) for out in maps] == [
        (2, channels, 64 // reduction, 48 // reduction)
        for channels, reduction in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]
    assert model.feature_info.channels() == [SMALL['channels'][stage] for stage in stages]
    # What was pruned is gone, and what is left computes what the whole network does.
    backbone = model.model.backbone
    assert len(backbone.stages) == len(backbone.downsample_layers) == stages[-1] + 1
    _, want = create(stem_patch_size=patch).forward_intermediates(image, indices=stages)
    for out, expected in zip(maps, want, strict=True):
        assert torch.equal(out, expected)


def test_other_ways_to_extract_features() -> None:
    image = torch.rand(1, 3, 64, 48)
    want = create(features_only=True)(image)
    for kind in ('hook', 'fx'):
        maps = create(features_only=True, feature_cls=kind, out_indices=(0, 1, 2))(image)
        torch.testing.assert_close(list(maps), want)
    for kind in ('list', 'dict'):
        with pytest.raises(UserError, match=f"'hook' or 'fx', not '{kind}'"):
            create(features_only=True, feature_cls=kind)


@pytest.mark.parametrize('options', [{}, dict(stop_early=True), dict(intermediates_only=True)], ids=str)
@pytest.mark.parametrize('indices', [None, 3, 1, [1, 0]], ids=str)
def test_intermediate_maps(indices: Any, options: dict[str, bool]) -> None:
    model, image = create(), torch.rand(1, 3, 32, 32)
    whole, ran = [image], []
    for stage in range(3):
        whole.append(model.backbone.forward_stage(stage, whole[-1]))
        model.backbone.stages[stage].register_forward_hook(lambda *_, stage=stage: ran.append(stage))
    stages = {None: [0, 1, 2], 3: [0, 1, 2], 1: [2]}[indices] if not isinstance(indices, list) else [0, 1]
    found = model.forward_intermediates(image, indices, **options)
    assert ran == list(range(stages[-1] + 1 if options else 3)), 'no stage that is not needed'
    last = [] if 'intermediates_only' in options else [ran[-1]]
    maps = [*found[1], found[0]] if last else found
    for out, stage in zip(maps, [*stages, *last], strict=True):
        assert torch.equal(out, whole[stage + 1])
    with pytest.raises(UserError, match="'NCHW', got 'NHWC'"):
        model.forward_intermediates(image, output_fmt='NHWC')


@pytest.mark.parametrize(
    ('options', 'channels', 'has_head'),
    [
        (dict(indices=[2], prune_head=False), 16, True),
        (dict(indices=[2], prune_head=False, prune_norm=True), 16, False),
        (dict(indices=[2]), 16, False),
        (dict(indices=[1, 0], prune_head=False), 12, False),
    ],
    ids=str,
)
def test_stages_and_head_are_pruned(options: dict[str, Any], channels: int, has_head: bool) -> None:
    model, image = create(num_classes=5), torch.rand(2, 3, 32, 32)
    model.prune_intermediate_layers(**options)
    features = model.forward_features(image)
    assert features.shape[1] == model.num_features == model.head_hidden_size == channels
    assert model(image).shape == (2, 5) if has_head else torch.equal(model(image), features)
    model.reset_classifier(7, 'avg')
    assert model(image).shape == (2, 7)


def test_stages_that_are_not_there() -> None:
    with pytest.raises(ValueError, match='of 3 stages'):
        create(features_only=True, out_indices=(0, 7))
    for number in (-1, 0, 4):
        with pytest.raises(ValueError, match='of 3 stages'):
            create().forward_intermediates(torch.rand(1, 3, 32, 32), indices=number)


def test_classifier() -> None:
    model = create(num_classes=5, in_chans=1, drop_path_rate=0.3, drop_rate=0.1)
    image = torch.rand(2, 1, 40, 56)
    assert model(image).shape == (2, 5)
    assert model.forward_features(image).shape == (2, 16, 2, 3)
    assert torch.equal(model.forward_head(model.forward_features(image)), model(image))
    assert model.forward_head(model.forward_features(image), pre_logits=True).shape == (2, model.num_features)
    assert model.backbone.stages[2][0].drop_path.drop_prob == pytest.approx(0.3)
    assert model.get_classifier().out_features == 5
    assert model.head.drop.p == model.drop_rate == 0.1
    assert model.in_chans == 1
    assert not model.get_classifier().bias.any()
    assert create().get_classifier().weight.std().item() == pytest.approx(0.02, rel=0.1)
    scaled = create(num_classes=5, in_chans=1, head_init_scale=0.01).get_classifier().weight
    torch.testing.assert_close(scaled, 0.01 * model.get_classifier().weight)
    assert model.default_cfg['input_size'] == (3, 224, 224)
    for key in ('first_conv', 'classifier'):
        assert f'{model.default_cfg[key]}.weight' in model.state_dict()
    # Random, as timm's models are when they are created.
    assert model.backbone.stages[0][0].pointwise_conv1.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_pictures_are_prepared_as_by_the_recipe() -> None:
    pytest.importorskip('mmpretrain')
    recipe, given = mmpelk.get_config('cls/pelk_t_in1k.py'), create().default_cfg
    for key in ('mean', 'std'):
        assert [255 * value for value in given[key]] == pytest.approx(recipe.data_preprocessor[key])
    steps = {step.type: step for step in recipe.test_pipeline}
    crop, edge = steps['CenterCrop'].crop_size, steps['ResizeEdge']
    assert (given['input_size'], given['crop_pct']) == ((3, crop, crop), crop / edge.scale)
    assert given['interpolation'] == edge.interpolation
    assert given['pool_size'] == (crop // 32,) * 2
    assert given['num_classes'] == recipe.model.head.num_classes
    assert given['license'] == 'apache-2.0'


def test_head_is_reset() -> None:
    model, image = create(), torch.rand(2, 3, 32, 32)
    model.reset_classifier(7)
    assert model(image).shape == (2, 7)
    assert model.num_classes == 7
    model.reset_classifier(0)
    assert model(image).shape == (2, 16)
    model.reset_classifier(0, '')
    assert model(image).shape == (2, 16, 2, 2)
    assert create(num_classes=0).get_classifier()(image) is image


@pytest.mark.parametrize('features', [False, True])
def test_learning_and_recomputing_give_the_same_gradients(features: bool) -> None:
    gradients = []
    for recompute in (False, True):
        model = create(**dict(features_only=True) if features else dict(num_classes=3)).train()
        model.set_grad_checkpointing(recompute)
        network = model.model if features else model
        assert {block.with_cp for stage in network.backbone.stages for block in stage} == {recompute}
        out = model(torch.ones(2, 3, 32, 32))
        sum(each.square().sum() for each in (out if features else [out])).backward()
        gradients.append([value.grad for value in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('extra', [{}, dict(features_only=True), dict(num_classes=0), dict(global_pool='')], ids=str)
def test_device_and_dtype(extra: dict[str, Any]) -> None:
    for device, dtype in (('meta', None), (None, torch.bfloat16), (torch.device('meta'), torch.float64)):
        model = timm.create_model('pelk_tiny', **SMALL, device=device, dtype=dtype, **extra)
        assert {str(value.device) for value in model.parameters()} == {'meta' if device else 'cpu'}
        assert {value.dtype for value in model.parameters()} == {dtype or torch.float32}
    assert create(dtype=torch.float64)(torch.rand(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


def test_new_head_is_like_the_network() -> None:
    model = create(device='meta', dtype=torch.bfloat16)
    model.reset_classifier(7)
    assert (model.head.fc.weight.device.type, model.head.fc.weight.dtype) == ('meta', torch.bfloat16)


def test_created_of_fake_tensors() -> None:
    with FakeTensorMode():
        model = create()
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
        assert type(model.head.fc.weight.data).__name__ == 'FakeTensor'


def test_no_embedding() -> None:
    """``None`` does not reach the network: timm leaves it out."""
    small = dict(depths=(1, 1), channels=(8, 12), kernel_sizes=(9, 7))
    model = timm.create_model('pelk_tiny', positional_embedding='none', arch=small)
    assert not [name for name in model.state_dict() if name.endswith('positional_embedding')]
    assert model.backbone.channels == small['channels']


def test_output_stride() -> None:
    assert create(output_stride=16).feature_info[-1]['reduction'] == 16
    for extra in ({}, dict(features_only=True)):
        for stride in (8, 32):
            with pytest.raises(UserError, match=rf'output_stride of this network is 16, got {stride}.*out_indices'):
                create(output_stride=stride, **extra)


def test_description_of_weights_as_an_object(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from timm.models import PretrainedCfg

    source = create(num_classes=5)
    torch.nn.init.uniform_(source.head.fc.weight)
    save_file(source.state_dict(), str(tmp_path / 'model.safetensors'))
    given = PretrainedCfg(file=str(tmp_path / 'model.safetensors'), num_classes=5, **SHARED)
    model = create(num_classes=5, pretrained=True, pretrained_cfg=given)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(image), source(image))
    with pytest.raises(UserError, match='published weights of pelk_tiny yet'):
        create(pretrained=True, pretrained_cfg=PretrainedCfg(num_classes=5, **SHARED))


def test_layer_groups_hold_every_parameter() -> None:
    from timm.models import group_parameters

    model = create()
    # The stem, then blocks, the first of which has what comes before it in its stage, or whole stages, then the head.
    for coarse, count in ((False, 6), (True, 5)):
        groups = group_parameters(model, model.group_matcher(coarse))
        names = [name for group in groups.values() for name in group]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())
        assert len(groups) == count
        layers = {name: layer for layer, group in groups.items() for name in group}
        for stage, before in enumerate(('stages.0.positional_embedding', 'downsample_layers.1.1.weight')):
            assert layers[f'backbone.{before}'] == layers[f'backbone.stages.{stage}.0.gamma']
        assert layers['backbone.stages.1.positional_embedding'] == layers['backbone.stages.1.0.gamma']
    from timm.optim import param_groups_weight_decay

    found = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    undecayed = [value for group in found if not group['weight_decay'] for value in group['params']]
    assert any(value is model.backbone.stages[0].positional_embedding for value in undecayed)


def test_reparameterised_by_timm() -> None:
    model, image = create(), torch.rand(1, 3, 48, 32)
    for name, value in model.named_buffers():
        if name.endswith('running_var'):
            torch.nn.init.uniform_(value, 0.5, 2.0)
    deployed = timm.utils.reparameterize_model(model)
    assert deployed.backbone.stages[0].positional_embedding is None
    torch.testing.assert_close(deployed(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('names', ['of the recipe', 'of three stages, masked', "of timm's ConvNeXt"])
def test_weights_of_a_classification_recipe(names: str, tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    from safetensors.torch import save_file

    sizes = SMALL
    if 'three' not in names:  # as many stages as the names of ConvNeXt are of
        sizes = {key: (*value, value[-1]) for key, value in SMALL.items()}
    head = dict(type='LinearClsHead', num_classes=5, in_channels=16)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        trained = MODELS.build(
            dict(type='ImageClassifier', backbone=dict(type='mmpelk.PeLK', **sizes), head=head)
        ).eval()
    for value in trained.parameters():
        torch.nn.init.uniform_(value, -0.2, 0.3)
    masks = draw_masks(trained) if 'masked' in names else []
    state = copy.deepcopy(trained.state_dict())
    apply_masks(masks)
    if 'ConvNeXt' in names:
        state = {to_timm(trained)[key]: value for key, value in state.items()}
    save_file(state, str(tmp_path / 'model.safetensors'))
    overlay = dict(file=str(tmp_path / 'model.safetensors'), num_classes=5)
    model = create(**sizes, num_classes=5, pretrained=True, pretrained_cfg_overlay=overlay)
    # As a file of a training has them, and an address: timm takes what is wrapped out of the former alone.
    assert names_of_timm(dict(state_dict=state), model).keys() == model.state_dict().keys()
    image = torch.rand(2, 3, 64, 64)
    want = trained.head(trained.extract_feat(image))
    torch.testing.assert_close(model(image), want, rtol=1e-4, atol=1e-5)


def test_weights_that_nobody_published(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='published weights of pelk_tiny yet'):
        timm.create_model('pelk_tiny', pretrained=True)
    monkeypatch.setattr('mmpelk.timm.build_model_with_cfg', lambda *_, **__: torch.nn.Identity())
    for key in ('file', 'url', 'hf_hub_id', 'state_dict'):  # those that timm takes weights from
        timm.create_model('pelk_tiny', pretrained=True, pretrained_cfg_overlay={key: 'given'})
