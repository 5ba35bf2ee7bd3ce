#!/usr/bin/env bash
# Use the wheel of dist/ in an environment of OpenMMLab's stock line, the versions of requirements/stock.txt. It is made
# once, in .venv-stock, 7 GB: mmcv of that line needs its operators, which are compiled from joined files in about three
# minutes on two cores.
#
#   [PYTHON=python3.11] [VENV=.venv-stock] tests/packaging/stock_line.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROOT=$PWD
VENV=${VENV:-.venv-stock}
STATE=$(cat requirements/stock.txt tests/packaging/stock_line.sh | sha256sum)
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1
pinned() { grep -E "^($1)==" requirements/stock.txt; }
pip() { "$VENV/bin/python" -m pip "$@"; }

if [ "$(cat "$VENV/installed" 2> /dev/null)" != "$STATE" ]; then
    if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))'; then
        echo "torch 2.1 needs Python 3.10 or 3.11: set PYTHON=/path/to/python3.11" >&2
        exit 1
    fi
    echo "installing OpenMMLab's stock line in $VENV, once"
    rm -rf "$VENV/mmcv"
    "${PYTHON:-python3}" -m venv "$VENV"
    # What builds mmcv has to be there before it.
    pip install -q $(pinned 'torch|torchvision|numpy|setuptools|wheel|ninja|psutil')
    pip download -q --no-build-isolation --no-deps --no-binary mmcv --dest "$VENV/mmcv" "$(pinned mmcv)"
    tar -xzf "$VENV"/mmcv/*.tar.gz -C "$VENV/mmcv"
    "$VENV/bin/python" tools/mmcv_operators.py join "$VENV"/mmcv/*/
    CUDA_VISIBLE_DEVICES='' MMCV_WITH_OPS=1 CFLAGS="-g0 -O2" MAX_JOBS=${MAX_JOBS:-2} \
        pip install -q --no-build-isolation --no-cache-dir "$VENV"/mmcv/*/
    pip install -q -r requirements/stock.txt
    rm -rf "$VENV/mmcv"
    printf '%s\n' "$STATE" > "$VENV/installed"
fi
pip install -q --no-deps --force-reinstall dist/*.whl
cd "$(mktemp -d)" # away from the checkout
PYTHONWARNINGS=ignore "$ROOT/$VENV/bin/python" "$ROOT/tests/packaging/use_wheel.py" mmseg mmdet mmpretrain
