"""What the commands around exported files make of their options; nothing is exported, and no runner is built."""

import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.commands import load_tool
from tests.paths import TOOLS

Command = Callable[..., tuple[mock.Mock, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> Command:
    """Run a tool with words, some of its names replaced: what they were asked, and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(tool: str, words: list[object], names: str, code: int = 0) -> tuple[mock.Mock, str]:
        module, steps = load_tool(TOOLS / f'{tool}.py'), mock.MagicMock()
        for name in names.split():
            monkeypatch.setattr(module, name, getattr(steps, name))
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, words)])
        if code:
            with pytest.raises(SystemExit):
                module.main()
        else:
            module.main()
        printed = capsys.readouterr()
        return steps, printed.out + printed.err

    return run


@pytest.mark.parametrize(('words', 'opset', 'dynamic'), [([], 18, False), (['--opset', 20, '--dynamic'], 20, True)])
def test_onnx_file(words: list[object], opset: int, dynamic: bool, command: Command) -> None:
    names = 'check_opset Request export_onnx open_onnx runner_of'
    steps, _ = command('export_onnx', ['c.py', 'a.pth', 'a.onnx', *words], names)
    args, suffix = steps.Request.of.call_args.args
    request, out = steps.Request.of(), Path('a.onnx')
    assert (args.config, args.checkpoint, args.out, args.dynamic, suffix) == ('c.py', 'a.pth', out, dynamic, '.onnx')
    steps.check_opset.assert_called_once_with(opset)
    steps.export_onnx.assert_called_once_with(request.exported, request.images[0], out, opset, dynamic)
    steps.open_onnx.assert_called_once_with(out)
    request.report.assert_called_once_with(steps.runner_of(steps.open_onnx()), out, 'onnxruntime', f'opset {opset}')


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('dynamic', [False, True])
def test_program_of_torch(compiled: bool, dynamic: bool, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    save, out = mock.Mock(), Path('new/a.pt2')
    monkeypatch.setattr(torch.export, 'save', save)
    words = ['c.py', 'a.pth', out, *['--aot-inductor'] * compiled, *['--dynamic'] * dynamic]
    steps, _ = command('export_torch', words, 'Request export_program compile_program load_program')
    args, suffix = steps.Request.of.call_args.args
    request, program = steps.Request.of(), steps.export_program.return_value
    assert (args.dynamic, args.out, suffix, out.parent.is_dir()) == (dynamic, out, '.pt2', True)
    steps.export_program.assert_called_once_with(request.exported, request.images[0], dynamic)
    assert [each.args for each in steps.compile_program.mock_calls] == [(program, out)] * compiled
    assert [each.args for each in save.mock_calls] == [(program, out)] * (not compiled)
    steps.load_program.assert_called_once_with(out, compiled=compiled)
    assert request.report.call_args.args[:3] == (steps.load_program(), out, 'the file')


def test_file_of_integers(command: Command, tiny_config: Path) -> None:
    names, sizes = 'check_data calibration_images quantize_onnx', {'floats.onnx': 2**22, 'integers.onnx': 2**20}
    for name, size in sizes.items():
        Path(name).write_bytes(bytes(size))
    words = [tiny_config, *sizes, '--images', 5, '--cfg-options', 'train_dataloader.batch_size=3']
    steps, printed = command('quantize_onnx', words, names)
    ((cfg, count),) = (each.args for each in steps.calibration_images.mock_calls)
    assert (cfg.train_dataloader.batch_size, count) == (3, 5)
    steps.check_data.assert_called_once_with(cfg, ['train_dataloader'])
    images = steps.calibration_images.return_value
    steps.quantize_onnx.assert_called_once_with(Path('floats.onnx'), Path('integers.onnx'), images)
    assert 'calibrated on 5 images; 1.0 MB instead of 4.0' in printed
    for more, message in ((['--images', 0], 'at least 1, got 0'), ([], "no file 'nowhere.onnx'")):
        files = sizes if more else ['nowhere.onnx', 'integers.onnx']
        steps, printed = command('quantize_onnx', [tiny_config, *files, *more], names, code=1)
        assert message in printed
        assert not steps.quantize_onnx.mock_calls


def test_test_of_a_file(command: Command, tiny_config: Path) -> None:
    """Its weights are all: neither a checkpoint nor pretrained weights are loaded, or even looked for."""
    names = 'check_data adapt_to_machine build_runner open_onnx replace_weights'
    Path('a.onnx').touch()
    Path('c.py').write_text(
        f"_base_ = {str(tiny_config)!r}\nload_from = 'gone.pth'\n"
        "model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='gone.pth')))\n",
        encoding='utf-8',
    )
    steps, _ = command('test_onnx', ['c.py', 'a.onnx', '--work-dir', 'there'], names)
    ((cfg,),) = (each.args for each in steps.build_runner.mock_calls if each.args)
    assert (cfg.load_from, cfg.model.backbone.init_cfg, cfg.work_dir) == (None, None, 'there')
    steps.check_data.assert_called_once_with(cfg, ['test_dataloader'])
    steps.adapt_to_machine.assert_called_once_with(cfg)
    steps.open_onnx.assert_called_once_with(Path('a.onnx'))
    runner = steps.build_runner.return_value
    steps.replace_weights.assert_called_once_with(runner.model, steps.open_onnx.return_value)
    order = [name for name, *_ in steps.mock_calls]
    assert order.index('adapt_to_machine') < order.index('build_runner') < order.index('build_runner().test')
    steps, printed = command('test_onnx', ['c.py', 'b.onnx'], names, code=1)
    assert "no file 'b.onnx'" in printed
    assert not steps.build_runner.mock_calls
