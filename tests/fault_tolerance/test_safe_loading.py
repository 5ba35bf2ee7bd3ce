"""No file runs code: not in the loader, not through mmengine, and in no tool."""

import ast
import functools
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.infer import BaseInferencer
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from mmengine.runner import load_checkpoint as load_into
from safetensors.torch import save_file
from torch import nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance import safe_loading
from mmpelk.fault_tolerance.safe_loading import CheckpointError, load_data
from mmpelk.sparsity.publish import save_safetensors
from tests.commands import load_tool, mim, run, without_instances
from tests.fault_tolerance.malicious import payloads, write
from tests.paths import CONFIGS, ROOT
from tests.tools.own_data.pictures import write_pairs

COMMAND_FOLDERS = ('tools', 'reproduction', 'benchmarks')
CLASSIFIER = str(CONFIGS / 'cls' / 'pelk_t_in1k.py')


@pytest.mark.parametrize('zipped', [True, False])
def test_what_mmengine_writes_is_read(tmp_path: Path, zipped: bool) -> None:
    hub = MessageHub('reliability')
    for value in (1.0, 3.0):
        hub.update_scalar('train/loss', value)
    hub.update_info('array', np.arange(3))
    hub.update_info('number', np.float32(0.5))
    meta = {'dataset_meta': ConfigDict(classes=('a', 'b'), palette=[[1, 2, 3]]), 'seed': 3}
    weights = {'w': torch.ones(2, dtype=torch.bfloat16), 'v': torch.ones(2, requires_grad=True)}
    short = HistoryBuffer(max_length=3)
    written = {'meta': meta, 'message_hub': hub.state_dict(), 'state_dict': weights, 'short': short}
    torch.save(written, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    methods = dict(HistoryBuffer._statistics_methods)
    content = load_data(tmp_path / 'a.pth')
    buffer = content['message_hub']['log_scalars']['train/loss']
    assert type(buffer) is HistoryBuffer
    assert buffer.mean() == 2.0
    assert HistoryBuffer._statistics_methods == methods, 'a buffer brings no functions'
    assert content['meta']['dataset_meta']['classes'] == ('a', 'b')
    assert torch.equal(content['state_dict']['w'], weights['w'])
    assert [value.requires_grad for value in content['state_dict'].values()] == [False, True]
    content['message_hub']['runtime_info']['array'][0] = 5  # it can be changed, as one that was not read
    for value in range(5):
        content['short'].update(value)
    assert content['short'].data[0].tolist() == [2, 3, 4]


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kind', sorted(payloads(Path())))
def test_code_is_refused_by_name(tmp_path: Path, kind: str, zipped: bool) -> None:
    marker = tmp_path / 'ran'
    path = write(tmp_path / 'a.pth', payloads(marker)[kind], _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'a.pth. is refused: it wants [\w.]+, .*MMPELK_TRUST_CHECKPOINT=1'):
        load_data(path)
    assert not marker.exists()


def test_ones_own_files_can_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / 'a.pth', payloads(tmp_path)['module'])
    for word in ('0', '', 'true'):
        monkeypatch.setenv('MMPELK_TRUST_CHECKPOINT', word)
        with pytest.raises(CheckpointError, match='is refused'):
            load_data(path)
    monkeypatch.setenv('MMPELK_TRUST_CHECKPOINT', '1')
    assert isinstance(load_data(path)['meta']['note'], nn.Linear)
    assert load_data(path, 'meta')['meta']['note'].weight.is_meta


@pytest.fixture
def installed() -> Iterator[None]:
    """Safe loading behind mmengine's loader, which is as before afterwards."""
    with mock.patch.object(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy()):
        safe_loading.install_safe_loading()
        yield


def test_a_loader_of_the_users_that_wraps_mmengines_stays(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.pth', dict(a=1))
    wrapped = CheckpointLoader._schemes['']

    @functools.wraps(wrapped)
    def load(*args: Any, **kwargs: Any) -> Any:
        return wrapped(*args, **kwargs) | dict(by='the user')

    with mock.patch.object(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy()):
        CheckpointLoader.register_scheme('', load, force=True)
        safe_loading.install_safe_loading()
        assert CheckpointLoader._schemes[''] is load
        assert safe_loading.read_checkpoint(path)['by'] == 'the user'


@pytest.mark.usefixtures('installed')
def test_every_way_through_mmengine(tmp_path: Path) -> None:
    loaders = {loader.__module__ for loader in CheckpointLoader._schemes.values()}
    assert loaders == {safe_loading.__name__}
    marker = tmp_path / 'ran'
    path = str(write(tmp_path / 'a.pth', payloads(marker)['open']))
    network = BaseModule(init_cfg=dict(type='Pretrained', checkpoint=path))
    for read in (
        lambda: CheckpointLoader.load_checkpoint(path),
        lambda: load_into(nn.Linear(1, 1), path),
        network.init_weights,
    ):
        with pytest.raises(CheckpointError, match='is refused'):
            read()
    assert not marker.exists()


@pytest.mark.usefixtures('installed')
def test_safetensors_stand_in_for_pth(tmp_path: Path) -> None:
    network, other, path = nn.Linear(2, 2), nn.Linear(2, 2), tmp_path / 'a.safetensors'
    meta = {'sparsity': {}, 'dataset_meta': {'classes': ['a']}}
    save_safetensors({'meta': meta, 'state_dict': network.state_dict()}, path)
    load_into(other, str(path), strict=True)
    assert torch.equal(other.weight, network.weight)
    assert CheckpointLoader.load_checkpoint(str(path))['meta']['dataset_meta'] == {'classes': ['a']}
    places: list[tuple[Any, str]] = [(None, 'cpu'), ('cpu', 'cpu'), ('meta', 'meta'), (torch.device('meta'), 'meta')]
    for where, device in (*places, (lambda storage, place: storage, 'cpu'), ({'cuda:0': 'cpu'}, 'cpu')):
        weight = load_data(path, where)['state_dict']['weight']
        assert (weight.device.type, weight.shape, weight.dtype) == (device, (2, 2), torch.float32)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match='incomplete'):
        load_data(path)
    # Versions of modules, by which torch knows what an older one lacks.
    save_file({'w': torch.ones(1)}, str(path), metadata=dict(state_dict_metadata='{"norm": {"version": 2}}'))
    assert load_data(path)['state_dict']._metadata == {'norm': {'version': 2}}
    texts = [
        (key, text) for key in ('dataset_meta', 'state_dict_metadata') for text in ('[' * 100_000, '{', '[]', '"a"')
    ]
    for key, text in (*texts, ('state_dict_metadata', '{"norm": 2}')):
        save_file({'w': torch.ones(1)}, str(path), metadata={key: text})
        with pytest.raises(CheckpointError, match=r'a\.safetensors'):
            load_data(path)


@pytest.mark.usefixtures('installed')
def test_configs_in_checkpoints_do_not_reach_mmengine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inferencers run them where they are given weights alone."""
    path, text = str(tmp_path / 'a.pth'), f'open({str(tmp_path / "ran")!r}, "w")'
    configs = dict(cfg=text, config=text)  # as the inferencers and the runner call it
    torch.save(dict(meta=configs, message_hub=dict(runtime_info=dict(x=1, **configs)), state_dict={}), path)
    for content in (CheckpointLoader.load_checkpoint(path), CheckpointLoader.load_checkpoint(path, 'cpu')):
        assert content['meta'] == {}
        assert content['message_hub']['runtime_info'] == dict(x=1)
    assert load_data(path)['meta'] == safe_loading.read_checkpoint(path)['meta'] == configs
    with pytest.raises(ValueError, match='Cannot find the config in the checkpoint'):
        BaseInferencer._init_model(mock.Mock(), {}, path, 'cpu')
    assert not (tmp_path / 'ran').exists()
    monkeypatch.setenv('MMPELK_TRUST_CHECKPOINT', '1')
    assert CheckpointLoader.load_checkpoint(path)['meta'] == configs


@pytest.mark.parametrize('part', ['meta', 'state_dict', 'message_hub'])
def test_parts_of_another_type_end_in_a_sentence(part: str, tmp_path: Path) -> None:
    torch.save({part: [1]}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=f'its {part} is of type list, not dict'):
        load_data(tmp_path / 'a.pth')
    inner = dict(meta=['dataset_meta'], message_hub=['log_scalars', 'runtime_info', 'resumed_keys']).get(part, [])
    for key in inner:
        torch.save({part: {key: [1]}}, tmp_path / 'a.pth')
        with pytest.raises(CheckpointError, match=f'its {part}.{key} is of type list, not dict'):
            load_data(tmp_path / 'a.pth')
        torch.save({part: {key: None}}, tmp_path / 'a.pth')
        assert load_data(tmp_path / 'a.pth') == {part: {key: None}}, 'nothing is no other type'


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_of_a_gpu_where_there_is_none(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    monkeypatch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
    torch.save({'state_dict': {'a': torch.ones(3)}}, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="was saved on a GPU, which is not here: give map_location='cpu'"):
        load_data(tmp_path / 'a.pth')
    assert load_data(tmp_path / 'a.pth', 'cpu')['state_dict']['a'].tolist() == [1, 1, 1]


class Internet:
    """Addresses, each of which has a checkpoint with its own name as the weights' or some bytes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fetched: list[str] = []
        self.page: bytes | None = None
        monkeypatch.setattr(safe_loading, 'get_dir', lambda: str(folder))
        monkeypatch.setattr(safe_loading, 'download_url_to_file', self.download)

    def download(self, url: str, path: str) -> None:
        self.fetched.append(url)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if self.page is not None:
            Path(path).write_bytes(self.page)
        else:
            torch.save({'state_dict': {url: torch.ones(1)}}, path)


@pytest.fixture
def internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Internet:
    return Internet(tmp_path, monkeypatch)


def weights_of(url: str) -> str:
    (name,) = safe_loading.read_checkpoint(url)['state_dict']
    return name


@pytest.mark.parametrize(('local_rank', 'downloads'), [('0', True), ('1', False)])
def test_the_first_process_of_each_machine_downloads(
    local_rank: str, downloads: bool, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the second machine, whose ranks begin at eight."""
    monkeypatch.setenv('LOCAL_RANK', local_rank)
    monkeypatch.setattr(safe_loading, 'get_rank', lambda: 8 + int(local_rank))
    path = str(safe_loading._cached('https://host/a.pth'))

    def gather(fault: str) -> list[str]:
        if not internet.fetched:  # where the others read, the first process of the machine has been here
            internet.download('other', path)
        return [fault]

    monkeypatch.setattr(safe_loading, 'all_gather_object', gather)
    weights_of('https://host/a.pth')
    assert internet.fetched == (['https://host/a.pth'] if downloads else ['other'])


def test_addresses_with_one_name_are_two_files(internet: Internet, tmp_path: Path) -> None:
    urls = ['https://a/x.pth', 'https://b/x.pth', 'https://a/x.pth?version=2']
    for _ in range(2):
        assert [weights_of(url) for url in urls] == urls
    assert internet.fetched == urls
    # Of torch's own cache, only what has the checksum that its name says.
    torch.save({'state_dict': {'torch': torch.ones(1)}}, tmp_path / 'here.pth')
    whole = hashlib.sha256((tmp_path / 'here.pth').read_bytes()).hexdigest()
    digest = whole[:8]
    assert weights_of(f'https://a/y-{digest}.pth') == f'https://a/y-{digest}.pth', 'which is not there'
    for name, found in (
        (f'x-{digest}.pth', 'torch'),
        (f'x-{whole}.pth', 'torch'),
        ('x-01234567.pth', 'https://a/x-01234567.pth'),
        (f'x-{digest[:7]}.pth', f'https://a/x-{digest[:7]}.pth'),  # too short for one
        (f'x-{digest}', f'https://a/x-{digest}'),
        ('x.pth', urls[0]),
    ):
        shutil.copy(tmp_path / 'here.pth', tmp_path / 'checkpoints' / name)
        assert weights_of(f'https://a/{name}') == found


def test_what_stands_behind_a_name_in_an_address_is_no_suffix(internet: Internet, tmp_path: Path) -> None:
    save_file({'w': torch.ones(1)}, str(tmp_path / 'a.safetensors'))
    internet.page = (tmp_path / 'a.safetensors').read_bytes()
    state = safe_loading.read_checkpoint('https://a/x.safetensors?download=true')['state_dict']
    assert state['w'].tolist() == [1]


def test_backbones_of_mmengines_list(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {
        'backbone.conv.weight': torch.ones(1),
        'backbone.norm.backbone.bias': torch.ones(1),
        'head.fc': torch.ones(1),
    }
    read = {'https://a/x.pth': dict(state_dict=state)}
    monkeypatch.setattr(safe_loading, 'load_from_http', lambda url, map_location: read[url])
    monkeypatch.setattr(safe_loading, 'get_mmcls_models', lambda: {'vgg': 'https://a/x.pth'})
    found = safe_loading.read_checkpoint('mmcls://vgg')
    assert {part: [*names] for part, names in found.items()} == {'state_dict': ['conv.weight', 'norm.backbone.bias']}


def test_addresses_of_mmengines_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that its lists have given up lead where their new ones do."""
    monkeypatch.setattr(safe_loading, 'load_from_http', lambda url, map_location: url)
    deprecated = safe_loading.get_deprecated_model_names()
    known = safe_loading.get_external_models()
    assert known.keys() & deprecated.values()
    for scheme in ('open-mmlab', 'openmmlab'):
        for old, new in deprecated.items():
            if new in known:
                assert safe_loading.read_checkpoint(f'{scheme}://{old}') == known[new]
    monkeypatch.setattr(safe_loading, 'torchvision_models', lambda: dict(net='https://t/net.pth'))
    for scheme in ('torchvision', 'modelzoo'):
        assert safe_loading.read_checkpoint(f'{scheme}://net') == 'https://t/net.pth'


def test_a_checkpoint_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(dict(a=1), tmp_path / 'a.pth')
    assert safe_loading.read_checkpoint('~/a.pth') == dict(a=1)
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/b.pth' does not exist"):
        safe_loading.read_checkpoint('~/b.pth')


def test_a_store_names_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = mock.Mock(**{'get.return_value': b'no checkpoint'})
    monkeypatch.setattr(safe_loading, 'get_file_backend', lambda url, backend_args: backend)
    with pytest.raises(CheckpointError, match=r"^'s3://bucket/x\.pth' is not a checkpoint"):
        safe_loading.read_checkpoint('s3://bucket/x.pth')
    backend.get.assert_called_once_with('s3://bucket/x.pth')


def test_schedulers_of_several_optimizers() -> None:
    first, second = dict(last_step=1), dict(last_step=2)
    for schedulers in ([first, 'x', second], dict(a=[first], b=[second], c=None)):
        assert safe_loading.scheduler_states(schedulers) == [first, second]


def test_files_of_before_the_archives_are_whole_or_refused(tmp_path: Path) -> None:
    torch.save(dict(w=torch.ones(9)), tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    safe_loading.check_integrity(tmp_path / 'a.pth')
    (tmp_path / 'a.pth').write_bytes((tmp_path / 'a.pth').read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r'a\.pth'):
        safe_loading.check_integrity(tmp_path / 'a.pth')


def test_pages_are_no_downloads(internet: Internet) -> None:
    for internet.page in (b'<html>log in first</html>', b'PK\3\4 and no end', b''):
        with pytest.raises(UserError, match='gives a page or a part of a file'):
            safe_loading.read_checkpoint('https://a/new.pth')
    internet.page = None
    assert weights_of('https://a/new.pth') == 'https://a/new.pth'


@pytest.mark.usefixtures('installed')
@pytest.mark.parametrize('name', [
    *('{folder}/a.pth', 'https://a/a.pth', 's3://bucket/a.pth', 'torchvision://net', 'open-mmlab://net', 'mmcls://net'),
])  # fmt: skip
def test_the_place_that_is_asked_for_reaches_every_reader(
    name: str, internet: Internet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / 'a.pth', dict(state_dict={'backbone.w': torch.ones(1)}))
    internet.page = path.read_bytes()
    backend = mock.Mock(**{'get.return_value': internet.page})
    monkeypatch.setattr(safe_loading, 'get_file_backend', lambda url, backend_args: backend)
    for known in ('torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(safe_loading, known, lambda: dict(net='https://a/net.pth'))
    for read in (safe_loading.read_checkpoint, CheckpointLoader.load_checkpoint):
        for place in ('meta', 'cpu'):
            (weight,) = read(name.format(folder=tmp_path), place)['state_dict'].values()
            assert weight.device.type == place


def test_addresses_of_the_users_own_are_read_by_their_loader() -> None:
    with mock.patch.object(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy()):
        CheckpointLoader.register_scheme('mine://', lambda name, map_location: (name, map_location))
        assert safe_loading.read_checkpoint('mine://a', 'meta') == ('mine://a', 'meta')


def test_a_download_without_a_network_is_one_sentence(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_loading, 'download_url_to_file', mock.Mock(side_effect=URLError('no route')))
    with pytest.raises(UserError, match=r'cannot be downloaded: .*no route.*or put it at'):
        safe_loading.read_checkpoint('https://a/a.pth')


def test_the_checksum_is_that_of_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / 'a').write_bytes(bytes(2**22) + b'end')
    assert safe_loading._checksum(tmp_path / 'a') == hashlib.sha256(bytes(2**22) + b'end').hexdigest()


@pytest.mark.parametrize('faults', [['', 'no network'], ['no network', '']])
def test_a_download_that_fails_on_one_machine_ends_all(faults: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setattr(safe_loading, 'all_gather_object', lambda fault: faults)
    with pytest.raises(UserError, match='no network'):
        safe_loading.read_checkpoint('https://host/a.pth')


@pytest.mark.parametrize('name', ['torchvision://resnet51', 'mmcls://resnet51', 'open-mmlab://detectron/resnet51'])
def test_names_that_mmengine_does_not_know_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is not in mmengine's list"):
        safe_loading.read_checkpoint(name)


def test_nothing_else_unpickles() -> None:
    """One loader: no other source of ours calls what runs code from a file."""
    calls = {('torch', 'load'), ('pickle', 'load'), ('pickle', 'loads'), ('hub', 'load')}
    found = []
    for folder in ('mmpelk', *COMMAND_FOLDERS):
        for path in (ROOT / folder).rglob('*.py'):
            if path == Path(safe_loading.__file__) or '.mim' in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                function = node.func if isinstance(node, ast.Call) else None
                if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
                    continue
                # numpy reads pickles only with this argument.
                unpickles = function.attr == 'load' and any(word.arg == 'allow_pickle' for word in node.keywords)
                if unpickles or (function.value.id, function.attr) in calls:
                    found.append(f'{path}:{node.lineno}')
    assert not found


def commands(config: Path, evil: Path, folder: Path) -> dict[str, list[list[object]]]:
    """Command lines of everything that reads a checkpoint, by file."""
    out, settings = folder / 'out.pth', ['--work-dir', folder / 'work']
    return {
        'tools/train.py': [
            [config, '--resume', evil, *settings],
            [config, *settings, '--cfg-options', f'load_from={evil}'],
            [folder / 'pretrained.py', *settings],
        ],
        'tools/test.py': [[config, evil, *settings]],
        'tools/convert_checkpoint.py': [[mode, CLASSIFIER, evil, out] for mode in ('import', 'inflate', 'export')],
        'tools/export_dense.py': [[evil, out]],
        'tools/export_onnx.py': [[config, evil, folder / 'out.onnx']],
        'tools/export_torch.py': [[config, evil, folder / 'out.pt2']],
        'tools/new_project.py': [
            ['mine', '--task', 'seg', '--data', folder / 'data', '--yes', '--weights', evil],
        ],
        'tools/reparameterize_model.py': [[config, evil, out]],
        'tools/get_flops.py': [[config, '--shape', '64', '64', '--checkpoint', evil]],
        'tools/demo_image.py': [[folder / 'image.png', '--config', config, '--checkpoint', evil, '--device', 'cpu']],
        'tools/analysis/erf.py': [
            ['--model', 'network', config, evil, '--images', folder, '--out', folder],
        ],
        'tools/analysis/plot_kernels.py': [[what, evil, '--config', config] for what in ('kernel', 'embedding')],
    }


@pytest.fixture
def evil(tmp_path: Path, tiny_config: Path) -> Path:
    cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((64, 64, 3), np.uint8))
    write_pairs(tmp_path / 'data', [0, 1])
    path = write(tmp_path / 'evil.pth', payloads(tmp_path / 'ran')['open'])
    weights = dict(_delete_=True, type='Pretrained', checkpoint=str(path), prefix='backbone.')
    text = f'_base_ = {str(tiny_config)!r}\nmodel = dict(backbone=dict(init_cfg={weights}))\n'
    (tmp_path / 'pretrained.py').write_text(text)
    return path


# Commands that read no checkpoint of a user's: none at all, what they have trained themselves, or by other commands.
WITHOUT_CHECKPOINT = {
    *('tools/mmcv_operators.py', 'tools/own_data/convert.py', 'tools/quantize_onnx.py', 'tools/test_onnx.py'),
    *('tools/torchrun.py', 'tools/demo/make_classification_data.py', 'tools/demo/make_detection_data.py'),
    *('tools/demo/make_segmentation_data.py', 'tools/demo/plot_detection.py', 'tools/demo/plot_segmentation.py'),
    *('reproduction/__main__.py', 'reproduction/ablations.py', 'reproduction/collect_ablations.py'),
    *('reproduction/mixers.py', 'reproduction/run_ablations.py', 'reproduction/scaling.py', 'reproduction/shares.py'),
    *('benchmarks/backbone.py', 'benchmarks/compare_classification.py', 'benchmarks/cpu_costs.py'),
    *('benchmarks/gpu_check.py', 'benchmarks/gpu_host.py'),
    *('benchmarks/inflation.py', 'benchmarks/mixer_comparison.py', 'benchmarks/peripheral_conv.py'),
    *('benchmarks/reliability.py', 'benchmarks/runtimes.py', 'benchmarks/sparsity_accuracy.py'),
    *('benchmarks/sparsity_overhead.py', 'benchmarks/sparsity_speed.py', 'benchmarks/throughput.py'),
    # It reads --weights, late and by `read_checkpoint`, beside which no loader is called: see the test above.
    'benchmarks/real_pictures/__main__.py',
}
READERS = sorted(commands(Path(), Path(), Path()))


def test_every_command_is_known() -> None:
    files = [path for folder in COMMAND_FOLDERS for path in (ROOT / folder).rglob('*.py')]
    found = {path.relative_to(ROOT).as_posix() for path in files if "__name__ == '__main__'" in path.read_text()}
    assert found == WITHOUT_CHECKPOINT | {*READERS}, 'does it read a checkpoint? Then say in `commands` how to call it'


@pytest.mark.slow
@pytest.mark.parametrize('tool', READERS)
def test_every_tool_refuses(
    tool: str,
    tiny_config: Path,
    evil: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(tiny_config, evil, tmp_path)[tool]:
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, words)])
        main: Callable[[], None] = load_tool(ROOT / tool).main
        # Runs of one config within a second would share mmengine's scope and logger.
        with without_instances(), pytest.raises(SystemExit) as stopped:
            main()
        printed = capfd.readouterr()
        assert stopped.value.code == 1
        assert f"error: '{evil}' is refused: it wants io.open" in printed.err, printed.err[-2000:]
        assert not (tmp_path / 'ran').exists()


@pytest.mark.slow
def test_toolboxes_own_tool_refuses(tiny_config: Path, evil: Path, tmp_path: Path) -> None:
    printed = run(mim(), 'test', 'mmsegmentation', tiny_config, '--checkpoint', evil, cwd=tmp_path, code=1)
    assert 'is refused: it wants io.open' in printed
    assert not (tmp_path / 'ran').exists()
