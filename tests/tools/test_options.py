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
from tests.commands import load_tool
from tests.paths import TOOLS


@pytest.fixture
def configured(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """The config with which a tool builds its runner: a function of the tool's words, ``CONFIG`` among them."""
    monkeypatch.chdir(tmp_path)

    def run(tool: str, *words: object, config: str = '') -> Config:
        path = tmp_path / 'named.py'
        path.write_text(f'_base_ = {str(tiny_config)!r}\n{config}')
        module = load_tool(TOOLS / tool)
        monkeypatch.setattr(module, 'adapt_to_machine', lambda cfg: None)
        runner = mock.Mock()
        monkeypatch.setattr(module, 'build_runner', runner)
        monkeypatch.setattr(sys, 'argv', [tool, *(str(path) if word == 'CONFIG' else str(word) for word in words)])
        module.main()
        return runner.call_args.args[0]

    return run


def test_training(configured: Callable[..., Config], tmp_path: Path) -> None:
    cfg = configured('train.py', 'CONFIG', '--amp', config="optim_wrapper = dict(type='OptimWrapper')")
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert not cfg.auto_scale_lr.enable
    assert configured('train.py', 'CONFIG', '--auto-scale-lr').auto_scale_lr.enable
    (tmp_path / 'some.pth').touch()
    assert not configured('train.py', 'CONFIG').resume
    for words, found in ([], None), (['some.pth'], 'some.pth'):
        cfg = configured('train.py', 'CONFIG', '--resume', *words)
        assert (cfg.resume, cfg.load_from) == (True, found)

    for words, config, folder in (
        (['--work-dir', 'typed'], "work_dir = 'configured'", 'typed'),
        ([], "work_dir = 'configured'", 'configured'),
        ([], '', './work_dirs/named'),
    ):
        assert configured('train.py', 'CONFIG', *words, config=config).work_dir == folder


@pytest.mark.parametrize(
    ('scope', 'kind'), [('mmseg', 'DumpResults'), ('mmdet', 'DumpDetResults'), ('mmpretrain', 'DumpResults')]
)
def test_predictions_in_a_file(scope: str, kind: str) -> None:
    store = load_tool(TOOLS / 'test.py').store_predictions
    for name in ('all.pkl', 'all.pickle'):
        cfg = Config(dict(default_scope=scope, test_evaluator=dict(type='Metric')))
        store(cfg, name)
        assert cfg.test_evaluator == [dict(type='Metric'), dict(type=kind, out_file_path=name)]
    if scope != 'mmseg':  # which writes a folder of label maps
        with pytest.raises(ValueError, match=r"takes a \.pkl file, got 'all'"):
            store(cfg, 'all')


@pytest.mark.parametrize(
    ('scope', 'switch', 'folder'),
    [
        ('mmseg', 'draw', 'visualizer.save_dir'),
        ('mmdet', 'draw', 'default_hooks.visualization.test_out_dir'),
        ('mmpretrain', 'enable', 'default_hooks.visualization.out_dir'),
    ],
)
def test_every_picture_is_drawn(scope: str, switch: str, folder: str) -> None:
    cfg = Config(dict(default_scope=scope, default_hooks=dict(visualization=dict(type='A')), visualizer=dict(type='B')))
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
