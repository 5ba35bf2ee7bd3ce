"""ConvNeXt under every name that public weights have: the real networks with random weights, and ours from their files.

The names of libraries that are not in the test environment are written from their published layout.
"""

import copy
import json
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmpretrain.models import ConvNeXt
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt

from mmpelk.errors import UserError
from mmpelk.models import ARCHITECTURES, PeLK
from mmpelk.models.weights.downloads import Normalisation, PublicWeights, read_public
from mmpelk.models.weights.identify import Reading, without_checkpoint
from mmpelk.models.weights.inflation import Inflated, inflate
from mmpelk.models.weights.key_maps import fit_shape, from_source, to_timm
from mmpelk.registry import MODELS

timm = pytest.importorskip('timm', reason='pip install -e .[timm]')

NANO: dict[str, Any] = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20))
SIZES: dict[str, Any] = dict(depths=NANO['depths'], channels=NANO['dims'])  # as ours calls them
Maps = list[Tensor]
Network = tuple[dict[str, Tensor], Callable[[Tensor], Maps]]
Rules = tuple[tuple[str, str], ...]


def randomised(model: Any) -> Any:
    """In eval mode, with weights that keep the maps' size, and scales that let every block count."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.squeeze().dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    model.eval()  # mmpretrain's returns None
    return model


def of_timm(name: str = 'convnext_atto', rules: Rules = (), prefix: str = '', **arguments: Any) -> Network:
    """timm's network, and its tensors under the names that the rules make."""
    model = randomised(timm.create_model(name, **arguments))

    def maps(image: Tensor) -> Maps:
        stages = model.forward_intermediates(image, intermediates_only=True)
        return [*stages, (model.head.norm if hasattr(model.head, 'norm') else model.norm_pre)(stages[-1])]

    state = {}
    for key, value in model.state_dict().items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        state[prefix + key] = value.view(1, 1, 1, -1) if '.grn.' in key and rules else value
    return state, maps


def of_timm_features() -> Network:
    model = randomised(timm.create_model('convnext_atto', features_only=True, **NANO))
    return model.state_dict(), model


def of_torchvision() -> Network:
    widths = [*NANO['dims'], None]
    setting = [CNBlockConfig(widths[i], widths[i + 1], depth) for i, depth in enumerate(NANO['depths'])]
    model = randomised(TorchvisionConvNeXt(setting))

    def maps(x: Tensor) -> Maps:
        stages = [x := layer(x) for layer in model.features][1::2]
        return [*stages, model.classifier[0](stages[-1])]

    return model.state_dict(), maps


def of_mmpretrain(**arguments: Any) -> Network:
    arch = dict(depths=NANO['depths'], channels=NANO['dims'])
    model = randomised(ConvNeXt(arch, out_indices=3, gap_before_final_norm=False, **arguments))
    return {f'backbone.{key}': value for key, value in model.state_dict().items()}, lambda x: list(model(x))


AUTHORS: Rules = (
    (r'^stem\.', 'downsample_layers.0.'),
    (r'^stages\.(\d)\.downsample', r'downsample_layers.\1'),
    (r'\.blocks\.', '.'),
    (r'conv_dw', 'dwconv'),
    (r'mlp\.fc', 'pwconv'),
    (r'mlp\.grn\.weight', 'grn.gamma'),
    (r'mlp\.grn\.bias', 'grn.beta'),
    (r'^head\.norm', 'norm'),
    (r'^head\.fc', 'head'),
)
TRANSFORMERS: Rules = (
    (r'\.norm\.', '.layernorm.'),
    (r'^head\.layernorm', 'layernorm'),
    (r'^head\.fc', 'classifier'),
    (r'^stem\.0', 'embeddings.patch_embeddings'),
    (r'^stem\.1', 'embeddings.layernorm'),
    (r'^stages\.(\d)\.downsample', r'encoder.stages.\1.downsampling_layer'),
    (r'^stages\.(\d)\.blocks', r'encoder.stages.\1.layers'),
    (r'conv_dw', 'dwconv'),
    (r'mlp\.fc', 'pwconv'),
    (r'mlp\.grn', 'grn'),
    (r'gamma$', 'layer_scale_parameter'),
)
TRANSFORMERS_DINOV3: Rules = (
    (r'\.norm\.', '.layer_norm.'),
    (r'^head\.layer_norm', 'layer_norm'),
    (r'^stem', 'stages.0.downsample_layers'),
    (r'\.downsample\.', '.downsample_layers.'),
    (r'\.blocks\.', '.layers.'),
    (r'conv_dw', 'depthwise_conv'),
    (r'mlp\.fc', 'pointwise_conv'),
)
# OpenCLIP's own layers beside timm's network, and what DINOv3's authors have twice.
CLIP = {'visual.head.proj.weight': torch.ones(4, 20), 'transformer.resblocks.0.attn.in_proj_weight': torch.ones(4, 4)}
TWICE = {'norms.3.weight': torch.zeros(20), 'norms.3.bias': torch.zeros(20)}

FORMATS: dict[str, tuple[Callable[[], Network], dict[str, Tensor], str]] = {
    'timm': (lambda: of_timm('convnext_tiny', **NANO), {}, 'a ConvNeXt .* by the names of timm'),
    'timm, convolutions for linear layers': (lambda: of_timm(**NANO), {}, 'timm'),
    'timm, no classifier': (lambda: of_timm(num_classes=0, **NANO), {}, 'timm'),
    'timm, norm first': (lambda: of_timm('convnext_tiny_hnf', **NANO), {}, 'timm'),
    'timm, MLP head': (lambda: of_timm('convnext_large_mlp', **NANO | dict(head_hidden_size=20)), {}, 'timm'),
    'timm, features only': (of_timm_features, {}, 'timm'),
    'timm, V2': (lambda: of_timm('convnextv2_atto', **NANO), {}, 'a ConvNeXt V2 .* timm'),
    'torchvision': (of_torchvision, {}, 'torchvision'),
    'mmpretrain': (of_mmpretrain, {}, 'mmpretrain'),
    'mmpretrain, convolutions': (lambda: of_mmpretrain(linear_pw_conv=False), {}, 'mmpretrain'),
    'mmpretrain, V2': (
        lambda: of_mmpretrain(use_grn=True, layer_scale_init_value=0.0),
        {},
        'a ConvNeXt V2 .* mmpretrain',
    ),
    'authors': (lambda: of_timm('convnext_tiny', AUTHORS, **NANO), {}, "ConvNeXt's authors"),
    'authors, V2': (lambda: of_timm('convnextv2_tiny', AUTHORS, **NANO), {}, "V2 .* ConvNeXt's authors"),
    'authors of DINOv3': (lambda: of_timm('convnext_tiny', AUTHORS, num_classes=0, **NANO), TWICE, 'authors'),
    'transformers': (lambda: of_timm('convnext_tiny', TRANSFORMERS, **NANO), {}, 'transformers'),
    'transformers, classifier': (
        lambda: of_timm('convnext_tiny', TRANSFORMERS, 'convnext.', **NANO),
        {'classifier.weight': torch.ones(4, 20)},
        'transformers',
    ),
    'transformers, V2': (lambda: of_timm('convnextv2_tiny', TRANSFORMERS, 'convnextv2.', **NANO), {}, 'V2 .* transf'),
    'transformers, DINOv3': (
        lambda: of_timm('convnext_tiny', TRANSFORMERS_DINOV3, num_classes=0, **NANO),
        {},
        'transformers',
    ),
    'OpenCLIP': (
        lambda: of_timm('convnext_tiny', prefix='visual.trunk.', **NANO),
        CLIP,
        'picture tower of a CLIP model, a ConvNeXt .* OpenCLIP',
    ),
    'OpenCLIP, V2': (
        lambda: of_timm('convnextv2_tiny', prefix='visual.trunk.', **NANO),
        CLIP,
        'CLIP .* V2 .* OpenCLIP',
    ),
}


def inflated(checkpoint: str, **arguments: Any) -> PeLK:
    """A network of the file's form: no size is given."""
    init_cfg = dict(type='mmpelk.Inflated', checkpoint=checkpoint, **arguments)
    model = MODELS.build(
        dict(type='mmpelk.PeLK', arch='inflated', out_indices=3, gap_before_final_norm=False, init_cfg=init_cfg)
    )
    model.init_weights()
    return model.eval()


@torch.no_grad()
def assert_same_maps(ours: PeLK, maps: Callable[[Tensor], Maps]) -> None:
    """At every stage, and behind the last norm where the other network has one."""
    x = image = torch.randn(1, 3, 97, 131)
    stages = [x := ours.forward_stage(index, x) for index in range(4)]
    wanted = list(maps(image))
    outputs = [*stages, ours.norm3(stages[-1])]
    outputs = {1: outputs[4:], 4: outputs[:4], 5: outputs}[len(wanted)]
    for out, want in zip(outputs, wanted, strict=True):
        # float32 in two orders of summation.
        assert (out - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize('name', FORMATS)
def test_every_name_of_convnext_is_the_same_function(name: str, tmp_path: Path) -> None:
    build, more, title = FORMATS[name]
    state, maps = build()
    torch.save(state | more, tmp_path / 'public.pth')
    reading = Reading(state | more)
    assert re.search(title, str(reading))
    assert (reading.normalisation is not None) == name.startswith('OpenCLIP')
    ours = inflated(str(tmp_path / 'public.pth'))
    assert ours.stages[0][0].mixer.large.weight.shape == (8, 1, 15, 15)
    assert_same_maps(ours, maps)
    again = PeLK(**ours.arguments())  # what save_pretrained writes needs no file
    assert again.state_dict().keys() == ours.state_dict().keys()
    recipe = dict(arch='inflated', init_cfg=dict(type='mmpelk.Inflated', checkpoint=str(tmp_path / 'public.pth')))
    plain = PeLK(**without_checkpoint(dict(recipe, out_indices=3)))  # as tools build it, whose weights come later
    assert plain.state_dict().keys() == ours.state_dict().keys()


@pytest.mark.parametrize('version', ['', 'v2'])
def test_weights_go_back_to_timms_network(version: str) -> None:
    """Of either version, each to the layer that it came from."""
    form = dict(use_grn=True, layer_scale_init_value=0) if version else {}
    ours = randomised(PeLK('convnext-atto', **SIZES, mixer='conv7', gap_before_final_norm=False, **form))
    names = to_timm(nn.ModuleDict(dict(backbone=ours)))
    model = timm.create_model(f'convnext{version}_tiny', num_classes=0, **NANO).eval()
    state = {names[f'backbone.{key}']: value for key, value in ours.state_dict().items()}
    model.load_state_dict(state, strict=True)
    assert_same_maps(ours, lambda image: model.forward_intermediates(image, intermediates_only=True))


def test_norms_of_the_maps_that_transformers_gives_are_those_of_ours() -> None:
    """Of its backbone: one for each stage that is asked for, counted from one."""
    state, _ = of_timm('convnext_tiny', TRANSFORMERS, num_classes=0, **NANO)
    norms = {
        f'hidden_states_norms.stage{stage + 1}.{part}': torch.rand(width)
        for stage, width in enumerate(NANO['dims'])
        for part in ('weight', 'bias')
    }
    state = {key: value for key, value in state.items() if not key.startswith('layernorm')} | norms
    ours = PeLK('convnext-tiny', **SIZES, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
    found = inflate(state, ours).state
    assert found.keys() == ours.state_dict().keys()
    for key, value in norms.items():
        stage, part = re.findall(r'stage(\d)\.(\w+)', key)[0]
        assert torch.equal(found[f'norm{int(stage) - 1}.{part}'], value)
        assert from_source(state, 'transformers')[key] == f'backbone.norm{int(stage) - 1}.{part}'


def test_the_log_says_the_least_share_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, _ = of_timm('convnext_tiny', **NANO, kernel_sizes=9)
    state['stages.3.blocks.0.conv_dw.weight'][..., [0, -1], :] = 0  # one that the grid holds better than the others
    state['stages.3.blocks.0.conv_dw.weight'][..., [0, -1]] = 0
    torch.save({key: value for key, value in state.items() if not key.startswith('head.norm')}, tmp_path / 'public.pth')
    lines: list[str] = []
    monkeypatch.setattr('mmpelk.models.weights.inflation.print_log', lambda line, *_: lines.append(line))
    ours = inflated(str(tmp_path / 'public.pth'))
    kept = inflate(torch.load(tmp_path / 'public.pth'), ours).kept
    assert min(kept.values()) < max(kept.values()) == 1
    assert f'inflated 5 kernels of {str(tmp_path / "public.pth")!r}' in lines[-1]
    assert f"at least {min(kept.values()):.1%} of each one's energy kept" in lines[-1]
    assert 'missing there and initialised: norm3.weight, norm3.bias; there, but not of the backbone: head.' in lines[-1]
    assert '4 of 5 kernels' in lines[-2]


@pytest.mark.parametrize('version', ['', 'v2'])
@pytest.mark.parametrize('size', [name.removeprefix('convnext-') for name in ARCHITECTURES if 'convnext' in name])
def test_every_size_is_recognised_by_the_shapes(size: str, version: str) -> None:
    name = f'convnext{version}_{size}'
    if name not in timm.list_models('convnext*'):
        assert size in ('huge', 'xlarge')  # which one of the two versions has
        return
    with torch.device('meta'):
        reading = Reading(timm.create_model(name).state_dict())
    assert f'ConvNeXt{" V2" * bool(version)}-{size} (' in str(reading)
    wanted = ARCHITECTURES[f'convnext-{size}'] | dict(use_grn=bool(version), layer_scale=not version)
    assert {key: value for key, value in wanted.items() if value == getattr(reading.layout, key, value)} == wanted


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('convnext_atto_ols', 'ConvNeXt-atto .*its stem is several overlapping convolutions'),
        ('convnext_nano_ols', 'ConvNeXt-nano .*its stem is several overlapping convolutions'),
        ('convnext_atto_rms', 'ConvNeXt-atto .*its norms have no shift'),
        ('convnext_zepto_rms', 'its norms have no shift'),
        ('convnext_xxlarge', 'ConvNeXt-xxlarge .*an epsilon of 1e-5'),
        ('vit_tiny_patch16_224', 'a transformer, .*no depthwise kernels'),
        ('resnet18', 'a ResNet'),
        ('mobilenetv3_small_050', 'not the names of SLaK or RepLKNet, ConvNeXt.s authors, mmpretrain, timm'),
        ('pelk_tiny', 'a network of this project'),
    ],
)
def test_another_network_is_refused_with_what_it_is(name: str, message: str) -> None:
    import mmpelk.timm  # noqa: F401 - its names

    with torch.device('meta'):
        state = timm.create_model(name).state_dict()
    with pytest.raises(UserError, match=f'public.pth.*{message}'):
        Reading(state, "'public.pth'")
    if name == 'convnext_xxlarge':  # which its depths tell from others of its width
        Reading({key: value for key, value in state.items() if not key.startswith('stages.0.blocks.2.')})


def test_sparse_layers_of_convnext_v2_are_named() -> None:
    """Of the files that its authors pretrain with, beside those that they publish."""
    state = {f'encoder.stages.0.0.dwconv.{part}': torch.ones(8) for part in ('kernel', 'bias')}
    with pytest.raises(UserError, match=r"MinkowskiEngine's sparse layers, .*take the converted file"):
        Reading(state)


def test_misfit_names_network_normalisation_and_recipe() -> None:
    with torch.device('meta'):
        state = {f'visual.trunk.{key}': value for key, value in timm.create_model('convnext_base').state_dict().items()}
        ours = PeLK('convnext-tiny')
    with pytest.raises(
        UserError,
        match=r'clip.bin is the picture tower of a CLIP model, a ConvNeXt-base .* expects pictures with '
        r"mean=\[122.771.*this backbone has .*-tiny \(3-3-9-3.*arch='inflated'",
    ):
        inflate(state, ours, 'clip.bin')


@pytest.mark.parametrize('several', ['student', 'teacher'])
def test_two_networks_in_a_file_are_refused(several: str) -> None:
    state, _ = of_timm(**NANO)
    both = {f'{owner}.{key}': value for key, value in state.items() for owner in {'student', several}}
    if several == 'student':
        assert Reading(both).prefix == 'student.'
    else:
        with pytest.raises(UserError, match=r"2 networks in it, whose names begin with 'student\.', 'teacher\."):
            Reading(both)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A local cache of huggingface_hub, which is offline: fills it with a repository."""
    constants = pytest.importorskip('huggingface_hub.constants', reason='pip install -e .[hub]')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))

    def publish(repository: str, weights: str, card: str = '', **configs: Any) -> None:
        repository, _, revision = repository.partition('@')
        folder = tmp_path / 'cache' / f'models--{repository.replace("/", "--")}'
        snapshot = folder / 'snapshots' / ('a' * 40)
        snapshot.mkdir(parents=True)
        (folder / 'refs').mkdir()
        (folder / 'refs' / (revision or 'main')).write_text('a' * 40)
        state, _ = of_timm('convnext_tiny', **NANO)
        if weights.endswith('.safetensors'):
            pytest.importorskip('safetensors.torch').save_file(state, snapshot / weights)
        else:
            torch.save(state, snapshot / weights)
        if card:
            (snapshot / 'README.md').write_text(f'---\n{card}\n---\n# Card\n')
        for name, content in configs.items():
            (snapshot / f'{name}.json').write_text(json.dumps(content))

    return publish


HALF = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)


@pytest.mark.parametrize(
    ('address', 'weights', 'card', 'configs', 'licence', 'normalisation'),
    [
        (
            'timm://convnext_tiny.dinov3_lvd1689m',
            'model.safetensors',
            'license: other\nlicense_name: dinov3-license',
            {},
            'dinov3-license',
            (123.675, 58.395),
        ),
        ('timm://convnext_base.clip_laion2b', 'open_clip_pytorch_model.bin', '', {}, 'apache-2.0', (122.771, 68.501)),
        ('hf://me/mine', 'pytorch_model.bin', 'license: mit', dict(preprocessor_config=HALF), 'mit', (127.5, 63.75)),
        (
            'timm://convnext_base.clip_laion2b',
            'open_clip_pytorch_model.bin',
            'license: mit',
            {},
            'mit',
            (122.771, 68.501),
        ),
        (
            'hf://me/mine',
            'model.safetensors',
            '',
            dict(
                preprocessor_config=dict(image_mean=['x'], image_std=['y']),
                open_clip_config=dict(preprocess_cfg=dict(mean=[0.1] * 3)),  # and no deviation
                config=dict(pretrained_cfg=dict(mean=[0.5] * 3, std=[0.25] * 3)),
            ),
            'unknown',
            (127.5, 63.75),
        ),
        ('hf://me/mine@v2', 'model.safetensors', 'license: [', dict(config=[]), 'unknown', None),
        (
            'hf://me/mine',
            'open_clip_model.safetensors',
            '',
            dict(open_clip_config=dict(preprocess_cfg=dict(mean=[0.5] * 3, std=[0.25] * 3))),
            'unknown',
            (127.5, 63.75),
        ),
    ],
)
def test_weights_by_address(
    address: str,
    weights: str,
    card: str,
    configs: dict[str, Any],
    licence: str,
    normalisation: tuple[float, float] | None,
    hub: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = address.partition('://')[2]
    hub(repository if '/' in repository else f'timm/{repository}', weights, card, **configs)
    numbers = torch.get_rng_state()
    public = read_public(address)
    assert torch.equal(torch.get_rng_state(), numbers), 'networks that are built to look at them draw nothing'
    assert public.licence.startswith(licence)
    found = public.normalisation
    assert (found and (found.mean[0], found.std[0])) == normalisation
    lines: list[str] = []
    monkeypatch.setattr('mmpelk.models.weights.inflation.print_log', lambda line, _: lines.append(line))
    ours = inflated(address)
    pictures = f'expect pictures with {found}' if found else "do not say how pictures are normalised: ImageNet's"
    assert f'Licence of the weights: {public.licence}. They {pictures}' in lines[0]
    assert_same_maps(ours, of_timm('convnext_tiny', **NANO)[1])


@pytest.mark.parametrize(
    ('address', 'config', 'message'),
    [
        ('timm://test_convnext.r160_in1k', {}, 'activation GELUTanh and norms with an epsilon of 1e-05, PeLK has GELU'),
        ('timm://test_convnext3', {}, 'activation SiLU'),
        ('timm://convnext_xxlarge.clip_laion2b_soup', {}, 'activation GELU and norms with an epsilon of 1e-05, PeLK'),
        ('hf://me/mine', dict(architecture='test_convnext'), 'activation GELUTanh'),
        ('hf://me/mine', dict(hidden_act='relu'), "activation 'relu', PeLK has GELU"),
    ],
)
def test_another_activation_is_refused(
    address: str, config: dict[str, Any], message: str, hub: Callable[..., None]
) -> None:
    hub('me/mine', 'model.safetensors', config=config)
    with pytest.raises(UserError, match=f'{address}.*{message}'):
        read_public(address)


@pytest.mark.parametrize(
    ('activations', 'epsilons', 'message'),
    [
        ([nn.SiLU()], [1e-6], 'activation SiLU and norms with an epsilon of 1e-06, PeLK has GELU'),
        ([nn.GELU(), nn.SiLU()], [1e-6], 'activation GELU, SiLU and'),
        ([nn.GELU()], [1e-6, 1e-5], 'an epsilon of 1e-06, 1e-05'),
    ],
)
def test_one_other_layer_is_enough_to_be_refused(
    activations: list[nn.Module], epsilons: list[float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [nn.ModuleDict(dict(mlp=nn.ModuleDict(dict(act=activation)))) for activation in activations]
    network = nn.Sequential(*blocks, *(nn.LayerNorm(2, eps=epsilon) for epsilon in epsilons))
    monkeypatch.setattr(timm, 'create_model', lambda name: network)
    with pytest.raises(UserError, match=message):
        read_public('timm://convnext_tiny.fb_in1k')


@pytest.mark.parametrize(
    ('architecture', 'has_timm'), [('test_convnext', False), ('unknown', True), (['ConvNextModel'], True)], ids=str
)
def test_a_config_that_says_nothing_of_layers_keeps_no_weights_back(
    architecture: object, has_timm: bool, hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub('me/mine', 'model.safetensors', config=dict(architecture=architecture))
    if not has_timm:
        monkeypatch.setattr('mmpelk.models.weights.downloads.find_spec', lambda _: None)
        monkeypatch.setitem(sys.modules, 'timm', None)
    assert read_public('hf://me/mine').state


@pytest.mark.parametrize('size', [7, 9])
def test_projection_onto_another_centre_is_a_warning(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(of_timm('convnext_tiny', **NANO, kernel_sizes=size)[0], tmp_path / 'public.pth')
    lines: list[tuple[Any, ...]] = []
    monkeypatch.setattr('mmpelk.models.weights.inflation.print_log', lambda *arguments: lines.append(arguments))
    inflated(str(tmp_path / 'public.pth'))
    warnings = [line for line, _, *level in lines if level == [logging.WARNING]]
    backbone = PeLK('convnext-atto', **SIZES)
    kept = inflate(torch.load(tmp_path / 'public.pth'), backbone).kept
    worst = min(kept, key=kept.__getitem__)
    assert all(f'keep {kept[worst]:.1%} of the energy of {worst}' in line for line in warnings)
    assert len(warnings) == (size > 7)
    assert all(
        re.search(r'5 of 5 kernels of .* not on the sharing grids .*keep \d\d\.\d% of', line) for line in warnings
    )


@pytest.mark.parametrize('prefix', ['', 'visual.trunk.'])
def test_norm_before_pooling_needs_a_backbone_that_does_not_pool(prefix: str) -> None:
    state, _ = of_timm('convnext_tiny_hnf', prefix=prefix, **NANO)
    with pytest.raises(UserError, match=r'last norm comes before pooling .*give gap_before_final_norm=False'):
        inflate(state, PeLK('convnext-tiny', **SIZES, gap_before_final_norm=True))
    inflate(state, PeLK('convnext-tiny', **SIZES, gap_before_final_norm=True, out_indices=(0, 1)))


@pytest.mark.parametrize('theirs', [True, False])
def test_layer_scale_that_one_of_the_two_lacks_is_refused(theirs: bool) -> None:
    state, _ = of_timm('convnext_tiny', **NANO)
    if not theirs:
        state = {key: value for key, value in state.items() if not key.endswith('.gamma')}
    ours = PeLK('convnext-tiny', **SIZES, layer_scale_init_value=0 if theirs else 1e-6)
    remedy = f'with{"" if theirs else "out"} layer scale: give layer_scale_init_value={"1e-6" if theirs else "0"}'
    with pytest.raises(UserError, match=remedy):
        inflate(state, ours)


def test_another_normalisation_than_the_recipes_is_refused(hub: Callable[..., None], tmp_path: Path) -> None:
    hub('me/mine', 'model.safetensors', preprocessor_config=HALF)
    imagenet = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    with pytest.raises(UserError, match=r'expects pictures with mean=\[127.5.*; the recipe has mean=\[123.675'):
        inflated('hf://me/mine', **imagenet)
    with pytest.raises(UserError, match=r'the recipe has mean=\[127\.5\], std'):
        inflated('hf://me/mine', mean=[127.5], std=[127.5])
    with pytest.raises(UserError, match=r'std=\[63.75.*; the recipe has mean=\[127.5.*std=\[58.395'):
        inflated('hf://me/mine', mean=[127.5] * 3, std=imagenet['std'])
    inflated('hf://me/mine', mean=[127.5] * 3, std=[64.1] * 3)  # as rounded by others
    with pytest.raises(UserError, match=r'the recipe has mean=\[127.5.*std=\[63.75, 63.75, 64.25'):
        inflated('hf://me/mine', mean=[127.5] * 3, std=[63.75, 63.75, 64.25])
    state, _ = of_timm('convnext_tiny', **NANO)
    torch.save(state, tmp_path / 'unknown.pth')
    inflated(str(tmp_path / 'unknown.pth'), **imagenet)
    torch.save({f'visual.trunk.{key}': value for key, value in state.items()}, tmp_path / 'clip.pth')
    with pytest.raises(
        UserError, match=r'picture tower of a CLIP .*expects .*\[122.771.*; the recipe has mean=\[123.675'
    ):
        inflated(str(tmp_path / 'clip.pth'), **imagenet)
    for part in ('mean', 'std'):
        with pytest.raises(UserError, match='mean and std together'):
            inflated('hf://me/mine', **{part: [127.5] * 3})


def test_what_a_repository_says_of_pictures_comes_before_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's names have CLIP's pictures, unless the repository has others; weights that are refused change nothing."""
    state = {f'visual.trunk.{key}': value for key, value in of_timm('convnext_tiny', **NANO)[0].items()}
    half = dict(mean=(127.5,) * 3, std=(63.75,) * 3)
    public = PublicWeights(state, 'mit', Normalisation(**half))
    monkeypatch.setattr('mmpelk.models.weights.inflation.read_public', lambda *_: public)
    ours = PeLK('convnext-tiny', **SIZES)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(UserError, match=r'expects pictures with mean=\[127.5'):
        Inflated('hf://me/mine', mean=(122.771, 116.746, 104.094), std=(68.501, 66.632, 70.323))(ours)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    Inflated('hf://me/mine', **half)(ours)
    assert torch.equal(ours.stages[0][0].norm.bias, state['visual.trunk.stages.0.blocks.0.norm.bias'])
    lines: list[str] = []
    monkeypatch.setattr('mmpelk.models.weights.inflation.print_log', lambda line, *_: lines.append(line))
    public = replace(public, normalisation=None)
    Inflated('hf://me/mine')(ours)
    assert 'expect pictures with mean=[122.771' in lines[-1]


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('timm://convnext_tiny.fb_in1k', 'cannot be downloaded, and was not before: check the network'),
        ('timm://convnext_tiny.nobody', 'Invalid pretrained tag'),
        ('timm://nothing', 'no weights of that name'),
        ('hf://nobody/nothing', 'cannot be downloaded, and was not before'),
        ('hf://../../etc/passwd', 'is no name of a repository'),
    ],
)
@pytest.mark.usefixtures('hub')
def test_weights_that_cannot_be_had(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_public(address)
    assert address in str(caught.value)


def test_the_file_that_timm_names_is_read(hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    models, name = pytest.importorskip('timm.models'), 'convnext_tiny.fb_in1k'
    named = replace(models.get_pretrained_cfg(name), hf_hub_filename='named.bin')
    monkeypatch.setattr(models, 'get_pretrained_cfg', lambda _: named)
    hub(f'timm/{name}', 'named.bin', '')
    assert read_public(f'timm://{name}').state


def test_weights_that_timm_has_elsewhere_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """At an address of their own, wrapped as their authors did, or known by name without weights."""
    models, name = pytest.importorskip('timm.models'), 'convnext_tiny.fb_in1k'
    known, state = models.get_pretrained_cfg(name), {'a.weight': torch.ones(1)}
    asked: list[str] = []
    reads = 'mmpelk.models.weights.downloads.read_checkpoint'
    monkeypatch.setattr(reads, lambda address: asked.append(address) or dict(model=state, epoch=3))
    for url in ('https://example.org/a.pth', ''):
        given = replace(known, hf_hub_id=None, url=url, license='mit', mean=(0.5,) * 3, std=(0.2,) * 3)
        monkeypatch.setattr(models, 'get_pretrained_cfg', lambda _, given=given: given)
        if url:
            public = read_public(f'timm://{name}')
            assert (dict(public.state), public.licence, asked) == (state, 'mit', [url])
            assert public.normalisation == ((127.5,) * 3, (51.0,) * 3)
            monkeypatch.setattr(models, 'get_pretrained_cfg', lambda _, given=given: replace(given, license=None))
            assert read_public(f'timm://{name}').licence.startswith('unknown')
        else:
            with pytest.raises(UserError, match='no weights of that name'):
                read_public(f'timm://{name}')


@pytest.mark.parametrize('address', ['timm://convnext_tiny', 'hf://me/mine'])
def test_key_of_an_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=f"'{address}' is one state dict: leave out key='model_ema'"):
        read_public(address, 'model_ema')


def test_gated_repository_names_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip('huggingface_hub', reason='pip install -e .[hub]')

    def refuse(*arguments: Any, **options: Any) -> None:
        gated = hub.errors.GatedRepoError
        raise gated.__new__(gated)

    monkeypatch.setattr(hub, 'hf_hub_download', refuse)
    with pytest.raises(UserError, match=r'accept its licence: do so on https://huggingface\.co/me/mine, then'):
        read_public('hf://me/mine')


def test_safe_files_come_before_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip('huggingface_hub', reason='pip install -e .[hub]')
    asked: list[str] = []

    def refuse(repository: str, file: str, revision: str | None) -> None:
        asked.append(file)
        missing = hub.errors.EntryNotFoundError
        raise missing.__new__(missing)

    monkeypatch.setattr(hub, 'hf_hub_download', refuse)
    with pytest.raises(UserError, match=r"'hf://me/mine' has none of the files model\.safetensors, "):
        read_public('hf://me/mine')
    assert asked == sorted(asked, key=lambda file: file.endswith('.bin'))
    assert len(asked) == 4


@pytest.mark.parametrize(
    ('address', 'module', 'extra'),
    [('timm://convnext_tiny', 'timm.models', 'timm'), ('hf://me/mine', 'huggingface_hub', 'hub')],
)
def test_missing_library_is_named(address: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'mmpelk\[{extra}\]'"):
        read_public(address)


def test_mixers_that_timm_does_not_have_keep_their_names() -> None:
    for mixer, name in (('peripheral', 'mixer.large'), ('conv7', 'conv_dw')):
        backbone = PeLK('convnext-atto', **SIZES, mixer=mixer)
        names = to_timm(nn.ModuleDict(dict(backbone=backbone)))
        assert names['backbone.stages.0.0.mixer.large.weight'] == f'stages.0.blocks.0.{name}.weight'


@pytest.mark.parametrize(
    ('theirs', 'ours', 'fits'),
    [((1, 1, 1, 5), (5,), True), ((5, 1, 1), (5,), True), ((6, 4, 1, 1), (6, 4), True), ((6, 4), (4, 6), False)],
)
def test_tensors_that_differ_in_dimensions_of_one_fit(
    theirs: tuple[int, ...], ours: tuple[int, ...], fits: bool
) -> None:
    assert fit_shape(torch.zeros(theirs), torch.zeros(ours)).shape == (ours if fits else theirs)


def test_inflated_form_needs_a_checkpoint() -> None:
    with pytest.raises(UserError, match="arch='inflated' takes the form of a checkpoint"):
        PeLK('inflated')
