"""The description of the machine that every measured figure is published with."""

import platform
import re
from datetime import date
from pathlib import Path
from typing import Any

import torch


def environment_info(device: str) -> dict[str, Any]:
    """Device, instructions that torch uses of the CPU, threads, versions, precision settings and date of a run."""
    processor = platform.processor() or platform.machine()
    if (info := Path('/proc/cpuinfo')).exists() and (
        name := re.search(r'model name\s*:\s*(.+)', info.read_text(encoding='utf-8'))
    ):
        processor = name.group(1)
    return {
        'device': torch.cuda.get_device_name() if device == 'cuda' else processor,
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'tf32_matmul': torch.backends.cuda.matmul.allow_tf32,
        'tf32_conv': torch.backends.cudnn.allow_tf32,
        'date': date.today().isoformat(),
    }
