"""What the options of ``tools/train.py`` and ``tools/test.py`` make of a config; no runner is built."""

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from unittest import mock

import pytest
from mmengine.config import Config
from mmengine.registry import RUNNERS

from mmpelk.engine.command_line import build_runner
from mmpelk.engine.progress import VISUALIZERS
from tests.commands import load_tool
from tests.paths import TOOLS


class Pictures(list):
    """A data set of which the first sample has no file."""

    def __init__(self) -> None:
        super().__init__([{}, dict(img_path='/a/1.jpg'), dict(img_path='/b/1.jpg')])

    get_data_info = list.__getitem__


@pytest.fixture
def configured(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """The config with which a tool builds its runner: a function of the tool's words, ``CONFIG`` among them."""
    monkeypatch.chdir(tmp_path)

    def run(tool: str, *words: object, config: str = '') -> Config:
        path = tmp_path / 'named.py'
        path.write_text(f'_base_ = {str(tiny_config)!r}\n{config}')
        module, steps = load_tool(TOOLS / tool), mock.MagicMock()
        for step in ('check_operators', 'adapt_to_machine', 'build_runner', 'build_data'):
            monkeypatch.setattr(module, step, getattr(steps, step))
        adapted: list[str] = []
        steps.adapt_to_machine.side_effect = lambda cfg: adapted.append(repr(cfg.to_dict()))
        runner, drawn = steps.build_runner.return_value, []
        runner.visualizer.visualize_cls = lambda name, data_sample, out_file: drawn.append(out_file)
        runner.test_loop.dataloader.dataset = Pictures()
        monkeypatch.setattr(sys, 'argv', [tool, *(str(path) if word == 'CONFIG' else str(word) for word in words)])
        module.main()
        (cfg,) = steps.build_runner.call_args.args
        splits = ('train', 'val') if tool == 'train.py' else ('test',)
        steps.check_operators.assert_called_once_with(cfg)
        steps.adapt_to_machine.assert_called_once_with(cfg)
        steps.build_data.assert_called_once_with(runner, *splits)
        getattr(runner, splits[0]).assert_called_once_with()
        assert adapted == [repr(cfg.to_dict())], 'after every option'
        if '--show-dir' in words:  # where pictures of one name have a folder each
            runner.visualizer.visualize_cls('x', data_sample=Namespace(img_path='/b/1.jpg'), out_file='out/1.jpg')
            assert drawn == ['out/b/1.jpg']
        # What fails from here on is ours, and shows where.
        getattr(runner, splits[0]).side_effect = TypeError
        with pytest.raises(TypeError):
            module.main()
        return cfg

    return run


def test_training(configured: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VISUALIZERS, 'wandb', ('WandbVisBackend', ('numpy',), {}))  # of packages that are here
    cfg = configured('train.py', 'CONFIG', '--amp', config="optim_wrapper = dict(type='OptimWrapper')")
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    cfg = configured('train.py', 'CONFIG', '--amp', config='optim_wrapper = dict(loss_scale=512.0)')
    assert cfg.optim_wrapper.loss_scale == 512, 'the scale that the config names'
    assert not cfg.auto_scale_lr.enable
    (backend,) = configured('train.py', 'CONFIG', '--visualize', 'wandb').visualizer.vis_backends[1:]
    assert backend['type'] == 'WandbVisBackend'
    assert configured('train.py', 'CONFIG', '--auto-scale-lr').auto_scale_lr.enable
    (tmp_path / 'some.pth').touch()
    assert not configured('train.py', 'CONFIG').resume
    assert configured('train.py', 'CONFIG', config="load_from = 'some.pth'").load_from == 'some.pth'
    for words, found in ([], None), (['some.pth'], 'some.pth'):
        for config in '', "load_from = 'weights.pth'":  # from which training began
            cfg = configured('train.py', 'CONFIG', '--resume', *words, config=config)
            assert (cfg.resume, cfg.load_from) == (True, found)

    for words, config, folder in (
        (['--work-dir', 'typed'], "work_dir = 'configured'", 'typed'),
        ([], "work_dir = 'configured'", 'configured'),
        ([], '', './work_dirs/named'),
    ):
        assert configured('train.py', 'CONFIG', *words, config=config).work_dir == folder


def test_testing(configured: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / 'some.pth').touch()
    assert configured('test.py', 'CONFIG', 'some.pth').load_from == 'some.pth'
    cfg = configured('test.py', 'CONFIG', 'some.pth', '--tta', config='tta_model = dict(tta_cfg=dict(max_per_img=7))')
    assert (cfg.model.type, cfg.model.module.type) == ('SegTTAModel', 'EncoderDecoder')
    assert cfg.model.tta_cfg == dict(max_per_img=7)
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline
    cfg = configured('test.py', 'CONFIG', 'some.pth', '--out', 'maps')
    assert (cfg.test_evaluator.output_dir, cfg.test_evaluator.keep_results) == ('maps', True)
    for words in ['--show'], ['--show', '--show-dir', 'a']:
        hook = configured('test.py', 'CONFIG', 'some.pth', '--wait-time', '0.5', *words).default_hooks.visualization
        assert (hook.draw, hook.show, hook.wait_time) == (True, True, 0.5)


@pytest.mark.parametrize(
    ('words', 'config', 'message'),
    [
        ('train.py CONFIG', "load_from = 'gone.pth'", "'gone.pth' does not exist"),
        (
            'train.py CONFIG',
            "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='gone.pth')))",
            "weights 'gone.pth' do not exist",
        ),
        *(
            (f'{words}', f"{split}_dataloader = dict(dataset=dict(data_root='gone'))", f'{split}_dataloader.dataset')
            for words, split in (
                ('train.py CONFIG', 'train'),
                ('train.py CONFIG', 'val'),
                ('test.py CONFIG some.pth', 'test'),
            )
        ),
        ('train.py CONFIG --auto-scale-lr', 'auto_scale_lr = None', 'needs auto_scale_lr=dict(base_batch_size=...)'),
        ('test.py CONFIG gone.pth', '', "'gone.pth' does not exist"),
        *(
            ('test.py CONFIG some.pth --tta', f'_base_.pop("{key}")', f'--tta needs {key} in the config')
            for key in ('tta_pipeline', 'tta_model')
        ),
        *(
            (
                f'test.py CONFIG some.pth {option}',
                f'default_{entry}=None' + ')' * entry.count('('),
                '--show and --show-dir need',
            )
            for option, entry in (('--show', 'scope'), ('--show-dir a', 'hooks = dict(visualization'))
        ),
    ],
)
def test_what_is_missing_is_refused_before_a_runner_is_built(
    words: str,
    config: str,
    message: str,
    configured: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / 'some.pth').touch()
    with pytest.raises(SystemExit, match='1'):
        configured(*words.split(), config=config)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('scope', 'kind'), [('mmseg', 'DumpResults'), ('mmdet', 'DumpDetResults'), ('mmpretrain', 'DumpResults')]
)
def test_predictions_in_a_file(scope: str, kind: str) -> None:
    store = load_tool(TOOLS / 'test.py').store_predictions
    for name in ('all.pkl', 'all.pickle'):
        cfg = Config(dict(default_scope=scope, test_evaluator=dict(type='Metric')))
        store(cfg, name)
        dump = dict(type=kind, out_file_path=name)
        assert cfg.test_evaluator == [dict(type='Metric'), dump]
        cfg.test_evaluator = [dict(type='A'), dict(type='B')]
        store(cfg, name)
        assert cfg.test_evaluator == [dict(type='A'), dict(type='B'), dump]
    if scope != 'mmseg':  # which writes a folder of label maps
        with pytest.raises(ValueError, match=r"takes a \.pkl file, got 'all'"):
            store(cfg, 'all')
    else:
        cfg.test_evaluator = [dict(type='A'), dict(type='B')]
        store(cfg, 'all')
        assert cfg.test_evaluator == [dict(type=kind, output_dir='all', keep_results=True) for kind in 'AB']


@pytest.mark.parametrize(
    ('scope', 'switch', 'folder'),
    [
        ('mmseg', 'draw', 'visualizer.save_dir'),
        ('mmdet', 'draw', 'default_hooks.visualization.test_out_dir'),
        ('mmpretrain', 'enable', 'default_hooks.visualization.out_dir'),
    ],
)
def test_every_picture_is_drawn(scope: str, switch: str, folder: str) -> None:
    cfg = Config(
        dict(
            default_scope=scope,
            default_hooks=dict(visualization=dict(type='A', interval=50)),
            visualizer=dict(type='B'),
        )
    )
    load_tool(TOOLS / 'test.py').show_predictions(cfg, Namespace(show=False, show_dir='out'))
    hook = cfg.default_hooks.visualization
    assert (hook[switch], hook.interval, hook.get('show')) == (True, 1, None)
    *owner, name = folder.split('.')
    assert reduce(getattr, owner, cfg)[name] == str(Path('out').resolve())


def test_another_runner() -> None:
    class Other:
        from_cfg = classmethod(lambda cls, cfg: cls())

    RUNNERS.register_module('mmpelk_tests_runner', force=True, module=Other)
    assert isinstance(build_runner(Config(dict(runner_type='mmpelk_tests_runner'))), Other)
