"""``mmpelk.hub``: whole networks of all three toolboxes in folders that their own tools take, too."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope, registry
from torch import nn
from torch.nn.utils import prune

import mmpelk
from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import load_data
from mmpelk.models import PeLK
from mmpelk.models.weights.checkpoint import write_safetensors
from mmpelk.models.weights.harmless import only_registered, without_initialisation
from mmpelk.sparsity import apply_masks
from tests.paths import CONFIGS, sample_data
from tests.sparsity.tiny import draw_masks

pytest.importorskip('huggingface_hub', reason='pip install -e .[hub]')
from mmpelk import hub

NANO = {
    'mmseg': 'upernet_pelk_nano_synthetic',
    'mmdet': 'mask_rcnn_pelk_nano_synthetic',
    'mmpretrain': 'pelk_nano_digits',
}


def network(scope: str) -> tuple[Any, Config, dict[str, Any]]:
    """A random nano network, its recipe, and the data of its classes."""
    pytest.importorskip(scope)
    cfg = Config.fromfile(CONFIGS / 'demo' / f'{NANO[scope]}.py')
    cfg.update(work_dir='/home/me/run', load_from='/home/me/a.pth', resume=True, launcher='pytorch')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        model = MODELS.build(cfg.model)
        model.init_weights()
    for name, value in model.state_dict().items():
        if name.endswith('running_mean'):
            torch.nn.init.normal_(value)
    classes = tuple(f'class {index}' for index in range(11))
    return model.eval(), cfg, dict(classes=classes, palette=[[index, 0, 255] for index in range(11)])


def photograph() -> str:
    return str(next((sample_data('ade20k_sample') / 'images').rglob('*.jpg')))


def assert_same_state(model: Any, other: Any) -> None:
    want, got = model.state_dict(), other.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(value, got[key]) for key, value in want.items())


@pytest.mark.parametrize('form', ['trained', 'deployed', 'sparse'])
@pytest.mark.parametrize('scope', NANO)
def test_network_comes_back(scope: str, form: str, tmp_path: Path) -> None:
    model, cfg, meta = network(scope)
    if form == 'deployed':
        model.backbone.switch_to_deploy()
    if form == 'sparse':
        apply_masks(draw_masks(model))
    # What is given comes first.
    model.dataset_meta, model.cfg = dict(classes=('of another',)), Config(dict(model=dict(type='Another')))
    numbers, before = torch.get_rng_state(), copy.deepcopy(cfg.to_dict())
    with DefaultScope.overwrite_default_scope('mmengine'):  # in a process that is none of the toolbox's
        hub.save_pretrained(model, tmp_path, cfg, meta)
    assert cfg.to_dict() == before
    assert torch.equal(torch.get_rng_state(), numbers), 'a training that saves goes on as without'
    other = hub.from_pretrained(tmp_path)
    assert_same_state(model, other)
    assert other.dataset_meta['classes'] == list(meta['classes'])
    assert other.cfg.test_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline
    assert not {'work_dir', 'load_from', 'resume', 'launcher'} & other.cfg.keys(), 'what is of the run alone'
    assert '/home/me' not in (tmp_path / 'config.py').read_text()
    assert not any(isinstance(module, nn.SyncBatchNorm) or module.training for module in other.modules())
    if form == 'deployed':
        del other.cfg, other.dataset_meta  # as mmpretrain's, which has them by the other names
    hub.save_pretrained(other, tmp_path / 'again')  # which now knows its recipe
    assert load_data(tmp_path / 'again' / 'model.safetensors')['meta']['dataset_meta']['palette'] == meta['palette']
    assert (tmp_path / 'again' / 'config.py').read_text() == (tmp_path / 'config.py').read_text()
    features = torch.rand(1, 3, 64, 96)
    for out, want in zip(other.extract_feat(features), model.extract_feat(features), strict=True):
        assert torch.equal(out, want)


@pytest.mark.parametrize('own', [False, True])
def test_a_preprocessor_beside_the_model_comes_back(own: bool, tmp_path: Path) -> None:
    """As mmengine's runner gives it to a model that has none of its own."""
    model, cfg, meta = network('mmseg')
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    if own:
        cfg.model.data_preprocessor = copy.deepcopy(cfg.data_preprocessor)
        cfg.data_preprocessor.update(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    hub.save_pretrained(model, tmp_path, cfg, meta)
    got = hub.from_pretrained(tmp_path).data_preprocessor
    assert torch.equal(got.mean, model.data_preprocessor.mean)
    assert torch.equal(got.std, model.data_preprocessor.std)


def in_data_parallel(model: nn.Module) -> nn.Module:
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(revert_sync_batchnorm(model))
    finally:
        dist.destroy_process_group()


def with_compiled_backbone(model: Any) -> Any:
    model.backbone = torch.compile(model.backbone)
    return model


def with_compiled_deployed_backbone(model: Any) -> Any:
    model.backbone.switch_to_deploy()
    return with_compiled_backbone(model)


WRAPPERS = dict(
    compiled_deployed_backbone=with_compiled_deployed_backbone,
    compiled=torch.compile,
    parallel=in_data_parallel,
    averaged=ExponentialMovingAverage,
    compiled_parallel=lambda model: torch.compile(in_data_parallel(model)),
    compiled_backbone=with_compiled_backbone,
)


@pytest.fixture(scope='module')
def segmentor() -> tuple[Any, Config, dict[str, Any]]:
    return network('mmseg')


@pytest.fixture
def published(segmentor: tuple[Any, Config, dict[str, Any]], tmp_path: Path) -> Path:
    """A folder that holds a network of MMSegmentation."""
    model, cfg, meta = segmentor
    hub.save_pretrained(model, tmp_path, cfg, meta)
    return tmp_path


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrapped_network_comes_back(wrapper: str, tmp_path: Path) -> None:
    model, cfg, meta = network('mmseg')
    want = copy.deepcopy(model)
    if 'deployed' in wrapper:
        want.backbone.switch_to_deploy()
    hub.save_pretrained(WRAPPERS[wrapper](model), tmp_path, cfg, meta)
    assert_same_state(want, hub.from_pretrained(tmp_path))
    assert json.loads((tmp_path / 'config.json').read_text())['model'] == 'EncoderDecoder'


CHANGES = dict(
    fused=fuse_conv_bn,
    pruned=lambda model: prune.l1_unstructured(model.decode_head.conv_seg, 'weight', 0.5),
    parametrised=lambda model: nn.utils.parametrizations.weight_norm(model.backbone.stages[0][0].pointwise_conv1),
    replaced=lambda model: setattr(model.decode_head, 'conv_seg', nn.Conv2d(32, 3, 1)),
)


@pytest.mark.parametrize('change', CHANGES)
def test_network_that_its_recipe_does_not_build_is_refused(change: str, tmp_path: Path) -> None:
    model, cfg, meta = network('mmseg')
    CHANGES[change](model)
    with pytest.raises(UserError, match=r'another than its description builds: they differ in .* take that off first'):
        hub.save_pretrained(model, tmp_path / 'model', cfg, meta)
    assert not (tmp_path / 'model').exists()


def test_shrunk_network_comes_back(tmp_path: Path) -> None:
    model, cfg, meta = network('mmseg')
    block = model.backbone.stages[0][0]
    state = model.state_dict()
    prefix = 'backbone.stages.0.0.pointwise_conv'
    state[f'{prefix}1.weight'] = block.pointwise_conv1.weight[:7]
    state[f'{prefix}1.bias'] = block.pointwise_conv1.bias[:7]
    state[f'{prefix}2.weight'] = block.pointwise_conv2.weight[:, :7]
    model.load_state_dict(state)
    hub.save_pretrained(model, tmp_path, cfg, meta)
    other = hub.from_pretrained(tmp_path)
    assert_same_state(model, other)
    assert other.cfg.model.backbone.hidden_channels[0] == [7]


def test_inflated_network_comes_back_without_the_file_that_it_was_inflated_from(tmp_path: Path) -> None:
    _, cfg, meta = network('mmseg')
    arch = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20))
    ours = PeLK('convnext-tiny', **arch, kernel_sizes=(7, 7, 7, 7), use_grn=True, layer_scale_init_value=0)
    names = {name: name.replace('.mixer.large.', '.depthwise_conv.') for name in ours.state_dict()}  # as mmpretrain's
    torch.save({names[name]: value for name, value in ours.state_dict().items()}, tmp_path / 'v2.pth')
    inflated = dict(type='mmpelk.Inflated', checkpoint=str(tmp_path / 'v2.pth'))
    cfg.model.backbone = dict(
        type='mmpelk.PeLK',
        arch='inflated',
        kernel_sizes=(13, 11, 9, 7),
        out_indices=(1, 3),
        gap_before_final_norm=False,
        init_cfg=inflated,
    )
    cfg.model.update(decode_head=dict(in_channels=[12, 20]), auxiliary_head=None)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    hub.save_pretrained(model, tmp_path / 'model', cfg, meta)
    (tmp_path / 'v2.pth').unlink()
    assert_same_state(model, hub.from_pretrained(tmp_path / 'model'))


def test_toolboxes_read_checkpoints_as_data_from_then_on(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install = mock.Mock()
    monkeypatch.setattr(hub, 'install_safe_loading', install)
    hub.from_pretrained(published)
    install.assert_called_once_with()


def test_nothing_of_a_config_is_initialised_from_files() -> None:
    """Wherever it stands: in the model, in a part, in a list of heads."""
    file = dict(init_cfg=dict(type='Pretrained', checkpoint='a.pth'), pretrained='b.pth')
    config = dict(
        type='A', **file, heads=[dict(type='B', **file), (dict(type='C', **file),)], part=dict(inner=file, size=3)
    )
    before = copy.deepcopy(config)
    want = dict(type='A', heads=[dict(type='B'), (dict(type='C'),)], part=dict(inner={}, size=3))
    assert without_initialisation(config) == want
    assert config == before


def test_toolboxes_take_the_folder_and_the_network(published: Path) -> None:
    from mmseg.apis import inference_model, init_model

    image = photograph()
    own = inference_model(hub.from_pretrained(published), image)
    theirs = init_model(str(published / 'config.py'), str(published / 'model.safetensors'), device='cpu')
    assert theirs.dataset_meta['classes'] == [f'class {index}' for index in range(11)]
    assert torch.equal(own.pred_sem_seg.data, inference_model(theirs, image).pred_sem_seg.data)


def test_detector_and_classifier_run_in_their_inferencers(tmp_path: Path) -> None:
    model, cfg, meta = network('mmdet')
    hub.save_pretrained(model, tmp_path, cfg, meta)
    from mmdet.apis import inference_detector

    assert 'pred_instances' in inference_detector(hub.from_pretrained(tmp_path), photograph())
    model, cfg, meta = network('mmpretrain')
    hub.save_pretrained(model, tmp_path, cfg, meta)
    from mmpretrain import ImageClassificationInferencer

    (result,) = ImageClassificationInferencer(hub.from_pretrained(tmp_path))(photograph())
    assert result['pred_class'].startswith('class ')


def test_every_recipe_can_be_written_and_read_as_data() -> None:
    for name in mmpelk.list_configs():
        cfg = mmpelk.get_config(name)
        content = hub.read_recipe(hub.write_recipe(cfg), name)
        if 'enlarged' in name:  # networks of the toolboxes, which are on no list of harmless ones
            with pytest.raises(UserError, match='If you trust its author'):
                hub.refuse_harmful_recipe(content, name)
            continue
        hub.refuse_harmful_recipe(content, name)
        assert Config(content).model == cfg.model, name
        assert content['test_dataloader'] == cfg.test_dataloader.to_dict(), name


def _recipe(part: dict[str, Any], **others: Any) -> str:
    return f"default_scope = 'mmseg'\nmodel = {dict(type='EncoderDecoder', backbone=part, **others)!r}\n"


BARE = 'default_scope = "mmseg"\nmodel = {}\n'
HARMFUL = {
    'statement': ('import os\nos.system("touch pwned")\n', 'more than names and literal values'),
    'call': ('model = dict(type=print("x"))\n', 'more than names and literal values'),
    'key': ('model = {[1]: 2}\n', 'more than names and literal values'),
    'deep': (f'model = {"~" * 20_000}1\n', 'more than names and literal values'),
    'type': ('model = {"type": "os.system", "command": "touch pwned"}\n', "wants 'os.system'"),
    'function': (
        'model = {"type": "EncoderDecoder", "backbone": [{"type": "mmengine.load"}]}\n',
        "wants 'mmengine.load'",
    ),
    'scope': ('default_scope = "evil"\nmodel = {}\n', "wants 'evil'"),
    'evaluates': (_recipe(dict(type='CameraMotionCompensation', warp_mode='euclidean')), 'CameraMotionCompensation'),
    'other scope': (_recipe(dict(type='EncoderDecoder', _scope_='mmdet')), '_scope_'),
    'size': (_recipe(dict(type='PeLK', channels=[10**9])), 'channels beyond'),
    'negative size': (_recipe(dict(type='PeLK', channels=[-(10**9)])), 'channels beyond'),
    'library': (_recipe(dict(type='evil.PeLK')), "wants 'evil.PeLK', which is not on the list"),
    'name of no loss': (_recipe(dict(type='CrossEntropyLoss', class_weight='loss_evil')), "class_weight='loss_evil'"),
    'name of a loss': (_recipe(dict(type='CrossEntropyLoss', loss_name='loss_a/evil.pkl')), "'loss_a/evil.pkl'"),
    'module': (_recipe(dict(type='evil_module')), "wants 'evil_module'"),
    'not registered': (_recipe(dict(type='MaskRCNN')), "'MaskRCNN', which is not registered here in 'mmseg'"),
    'pickle': (_recipe(dict(type='CrossEntropyLoss', class_weight='evil.pkl')), "class_weight='evil.pkl'"),
    'file': (_recipe(dict(type='CrossEntropyLoss', class_weight='mean')), "class_weight='mean'"),
    'word': (_recipe(dict(type='CrossEntropyLoss', reduction='evil')), "reduction='evil'"),
    'address': (_recipe(dict(type='CrossEntropyLoss', class_weight='http://host/evil')), "'http://host/evil'"),
    'imported nms': (_recipe(dict(type='nms'), decode_head=None), "wants 'nms' where no such module is registered"),
    'imported transform': (_recipe(dict(type='Resize')), "'Resize', which is not registered here in 'mmseg' for this"),
    'imported in pipeline': (BARE + 'test_pipeline = [{"type": "Mixup"}]\n', "wants 'Mixup', which is not"),
    'imported visualizer': (BARE + 'visualizer = {"type": "Resize"}\n', "wants 'Resize', which is not"),
    'bytes': (_recipe(dict(type='CrossEntropyLoss', class_weight=b'x')), 'of type bytes'),
    'nms': (_recipe(dict(type='UPerHead', test_cfg=dict(nms=dict(type='__import__("os")')))), 'known to run nothing'),
    'pipeline': (BARE + 'test_pipeline = [{"type": "evil"}]\n', "wants 'evil'"),
    'visualizer': (BARE + 'visualizer = {"type": "evil"}\n', "wants 'evil'"),
    'folder of a visualizer': (
        BARE + 'visualizer = {"type": "SegLocalVisualizer", "save_dir": "evil"}\n',
        "save_dir='evil'",
    ),
    'folder of a backend': (
        BARE + 'visualizer = {"vis_backends": [{"type": "LocalVisBackend", "save_dir": "evil"}]}\n',
        "save_dir='evil'",
    ),
    'inner scope': ('model = {"type": "EncoderDecoder", "backbone": {"_scope_": "evil"}}\n', "wants 'evil'"),
    'none': ('default_scope = "mmseg"\n', 'has no model'),
}


@pytest.mark.parametrize('kind', HARMFUL)
def test_recipes_run_no_code(kind: str, published: Path) -> None:
    recipe, message = HARMFUL[kind]
    (published / 'config.py').write_text(recipe)
    with pytest.raises(ValueError, match=message):
        hub.from_pretrained(published)
    assert not Path('pwned').exists()


@pytest.mark.parametrize(
    ('added', 'message'),
    [
        ("filename = 'x'\n", 'filename is reserved'),
        ("model = {'_delete_': True}\n", 'must contain the key "type"'),
        ("model['type'] = 1\n", 'more than names and literal values'),
        ("model = {'type': 'EncoderDecoder', 'other': 1}\n", 'TypeError'),
    ],
)
def test_networks_that_cannot_be_built_end_in_a_sentence(added: str, message: str, published: Path) -> None:
    with open(published / 'config.py', 'a', encoding='utf-8') as file:
        file.write(added)
    with pytest.raises(UserError, match=message):
        hub.from_pretrained(published)


@pytest.mark.parametrize(
    'odd',
    [
        *(dict(classes=classes) for classes in (3, ['a', 3], 'ab', dict(a=1))),
        *(
            dict(palette=palette)
            for palette in ('x', [3], [[1, 2, 256]], [[1, -1, 2]], [[1, 2]], [[1, 2, 3, 4]], [[0.5] * 3])
        ),
    ],
    ids=str,
)
def test_odd_classes_and_colours_are_refused(
    odd: dict[str, Any], segmentor: tuple[Any, Config, dict[str, Any]], tmp_path: Path
) -> None:
    model, cfg, meta = segmentor
    hub.save_pretrained(model, tmp_path, cfg, {**meta, **odd})
    with pytest.raises(UserError, match='in its dataset_meta'):
        hub.from_pretrained(tmp_path)


def test_files_that_a_recipe_starts_from_are_not_read(tmp_path: Path) -> None:
    model, cfg, meta = network('mmseg')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='/no/such/file.pth')
    cfg.model.pretrained = '/no/such/file.pth'
    hub.save_pretrained(model, tmp_path, cfg, meta)
    assert '/no/such' not in str(Config.fromfile(tmp_path / 'config.py').model.backbone)
    loaded = hub.from_pretrained(tmp_path, device='meta')
    assert 'UPerHead' in str(loaded.cfg.model)
    assert {value.device.type for value in loaded.state_dict().values()} == {'meta'}


def test_other_threads_import_as_before() -> None:
    with only_registered('name'), ThreadPoolExecutor(1) as threads:
        assert threads.submit(registry.get_object_from_string, 'mmengine.config.Config').result() is Config
    assert registry.get_object_from_string('mmengine.config.Config') is Config


def test_modules_that_the_caller_trusts(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in each part of a recipe that is built for inference."""
    content = dict(
        default_scope='mmseg',
        model=dict(type='PointHead'),
        data_preprocessor=dict(type='ImgDataPreprocessor'),
        test_pipeline=[dict(type='RandomFlip')],
        test_dataloader=dict(dataset=dict(pipeline=[dict(type='RandomRotate')])),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')]),
    )
    allow = {'PointHead', 'ImgDataPreprocessor', 'RandomFlip', 'RandomRotate', 'Visualizer', 'TensorboardVisBackend'}
    for name in allow:
        with pytest.raises(ValueError, match=f"wants '{name}'"):
            hub.refuse_harmful_recipe(content, 'name', allow - {name})
    hub.refuse_harmful_recipe(content, 'name', allow)
    trusted: list[Any] = []
    monkeypatch.setattr(hub, 'refuse_harmful_recipe', lambda content, name, allow: trusted.append(allow))
    hub.from_pretrained(published, allow=['PointHead'])
    assert trusted == [['PointHead']]


def test_weights_of_another_network_are_refused(published: Path) -> None:
    recipe = published / 'config.py'
    network('mmseg')[0].backbone.save_pretrained(published / 'backbone')
    recipe.write_text(recipe.read_text().replace("'depths': (1, 1)", "'depths': (1, 2)"))
    for load, folder, message in (
        (hub.from_pretrained, published, r'stages\.1\.1.* is missing'),
        (hub.from_pretrained, published / 'backbone', "holds 'PeLK'"),
        (PeLK.from_pretrained, published, "holds 'recipe'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_weights_that_the_network_has_no_place_for_are_refused(published: Path) -> None:
    weights = published / 'model.safetensors'
    write_safetensors(load_data(weights)['state_dict'] | {'backbone.more': torch.ones(1)}, weights)
    with pytest.raises(UserError, match=r'no place for backbone\.more'):
        hub.from_pretrained(published)


def test_classes_in_a_recipe_are_written_by_name() -> None:
    recipe = Config(dict(model=dict(type=PeLK, parts=(dict(type=PeLK),), heads=[dict(type=PeLK)])))
    kind = {'type': 'mmpelk.PeLK'}
    assert hub.read_recipe(hub.write_recipe(recipe), 'a') == {'model': {**kind, 'parts': (kind,), 'heads': [kind]}}


def test_network_without_a_recipe_is_not_written(tmp_path: Path) -> None:
    model, cfg, _ = network('mmseg')
    with pytest.raises(ValueError, match='does not know its recipe'):
        hub.save_pretrained(model, tmp_path)
    cfg.model.test_cfg.when = torch.float32
    with pytest.raises(ValueError, match='literal'):
        hub.save_pretrained(model, tmp_path, cfg)


def test_push_sends_recipe_and_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: dict[str, Any] = {}

    def upload(folder_path: str, **_: Any) -> str:
        sent.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
        return 'https://example.org/commit/1'

    api = mock.Mock(
        **{'return_value.upload_folder': upload, 'return_value.create_repo.return_value.repo_id': 'me/digits'}
    )
    monkeypatch.setattr('mmpelk.models.weights.publication.HfApi', api)
    model, cfg, meta = network('mmpretrain')
    assert hub.push_to_hub(model, 'me/digits', cfg, meta) == 'https://example.org/commit/1'
    assert sent.keys() == {'README.md', 'config.json', 'config.py', 'model.safetensors'}
    assert b"from_pretrained('me/digits')" in sent['README.md']
    assert json.loads(sent['config.json']) == {
        'type': 'recipe',
        'default_scope': 'mmpretrain',
        'model': 'ImageClassifier',
    }
    for name, content in sent.items():
        (tmp_path / name).write_bytes(content)
    download = mock.Mock(return_value=str(tmp_path))
    monkeypatch.setattr('mmpelk.models.weights.publication.snapshot_download', download)
    options: dict[str, Any] = dict(revision='v1', cache_dir=tmp_path, token='hf_1', force_download=True)
    other = hub.from_pretrained('me/digits', **options)
    assert_same_state(model, other)
    assert other.dataset_meta['classes'] == list(meta['classes'])
    wanted = ['config.json', 'model.safetensors', 'config.py']
    download.assert_called_once_with('me/digits', allow_patterns=wanted, **options)
