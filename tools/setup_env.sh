#!/usr/bin/env bash
# Set up .venv with the tested set of requirements.txt and the project itself.
#
#   [PYTHON=python3.11] [VENV=.venv] tools/setup_env.sh
#
# Finished steps are not repeated, so a second run takes no time, and after a failure it goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
LOG=$VENV/setup.log
STEPS=6
unset PYTHONPATH PIP_USER # neither belongs into an environment of its own
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off

# Everything that was installed is a function of these.
state() { { cat requirements.txt requirements/dev.txt pyproject.toml tools/setup_env.sh && pwd; } | sha256sum | cut -d' ' -f1; }
STATE=$(state)
[ "$(cat "$VENV/setup.done" 2> /dev/null)" != "$STATE" ] || exit 0

say() { printf '%s\n' "$*" >&2; }

die() { # what failed, remedy
    say "" "FAILED: $1" "Remedy: $2"
    exit 1
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

step() { # number, sentence, remedy, command...: run it with its output in the log and the time on the terminal
    local number=$1 sentence=$2 remedy=$3 start=$SECONDS shown=0 elapsed
    shift 3
    local stamp=$VENV/setup.step$number
    # A step stands when it was done with the same command, and no step before it has been done anew. The last two install
    # what the files say.
    local key
    key=$( (printf '%s\n' "$*" && [ "$number" -lt 5 ] || echo "$STATE") | sha256sum | cut -d' ' -f1)
    if [ -z "${ANEW:-}" ] && [ "$(cat "$stamp" 2> /dev/null)" = "$key" ]; then
        say "[$number/$STEPS] $sentence: done before"
        return
    fi
    ANEW=1
    rm -f "$stamp"
    say "[$number/$STEPS] $sentence ..."
    printf '\n== %s: %s\n' "$(date)" "$*" >> "$LOG"
    set -m # a process group of its own, so that Ctrl-C ends the compilers too
    "$@" >> "$LOG" 2>&1 < /dev/null &
    local job=$!
    set +m
    trap 'kill -- -"$job" 2> /dev/null; say "stopped"; exit 130' INT TERM
    while kill -0 "$job" 2> /dev/null; do
        sleep 0.5
        elapsed=$((SECONDS - start))
        if [ -t 2 ]; then
            printf '\r      %s ' "$(clock $elapsed)" >&2
        elif [ $((elapsed / 60)) -gt "$shown" ]; then # no terminal: a line a minute
            shown=$((elapsed / 60))
            say "      $(clock $elapsed)"
        fi
    done
    trap - INT TERM
    if ! wait "$job"; then
        say "" "The last lines of $LOG:"
        tail -n 15 "$LOG" | cut -c1-200 | sed 's/^/    /' >&2
        die "$sentence" "$remedy Then run the same command again: finished steps are not repeated."
    fi
    [ ! -t 2 ] || printf '\r' >&2
    say "      done in $(clock $((SECONDS - start)))"
    printf '%s\n' "$key" > "$stamp"
}

pinned() { grep -E "^($1)==" requirements.txt; } # requirements whose names match

find_python() { # a Python that the tested set supports
    local candidate existing=
    [ ! -e "$VENV/setup.step1" ] || existing=$VENV/bin/python
    for candidate in ${PYTHON:-$existing python3.11 python3.12 python3.10 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null; then
            # The interpreter itself: the link in an environment goes when that is created anew.
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    die "no Python 3.10, 3.11 or 3.12${PYTHON:+ in PYTHON=$PYTHON}" \
        "install one (Debian 12: apt-get install python3 python3-venv python3-dev) or set PYTHON=/path/to/python3.11."
}

check_machine() { # what cannot be installed by pip
    local missing=() header
    "$PY" -c 'import venv, ensurepip' 2> /dev/null || missing+=("$PY_NAME-venv")
    command -v g++ > /dev/null || missing+=("g++")
    header=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
    [ -f "$header" ] || missing+=("$PY_NAME-dev")
    [ ${#missing[@]} -eq 0 ] || die "this machine lacks ${missing[*]}" "apt-get install ${missing[*]}, as root."
    if [ ! -e "$VENV/setup.step3" ]; then
        local free
        free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
        [ "$free" -ge 10 ] || die "$free GB free here" "torch and what it brings need 10 GB: free some, or clone elsewhere."
    fi
}

create_venv() { # $1 is there for the stamp: another version is another environment
    rm -rf "$VENV/bin" "$VENV/lib" "$VENV/lib64" "$VENV/include" "$VENV/pyvenv.cfg"
    "$PY" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --upgrade pip
}

pip_install() { "$VENV/bin/python" -m pip install "$@"; }

compile_mmcv() { # mmcv, opencv-python-headless, what else it needs...
    local mmcv=$1 headless=$2
    # -g0: debug symbols would double the time. With a GPU but no compiler for it the build would stop.
    export CFLAGS="-g0 -O2" MAX_JOBS=$JOBS
    [ -n "$NVCC" ] || export CUDA_VISIBLE_DEVICES=
    pip_install --no-build-isolation "$mmcv" "${@:3}"
    # opencv-python, which mmcv asks for, wants libGL from the system; the headless build is the same without windows. Both
    # write the same folder, so the last one stands.
    pip_install --force-reinstall --no-deps "$headless"
    # pip's cache may hold operators compiled for another torch.
    if ! "$VENV/bin/python" -c "import mmcv.ops"; then
        pip_install --no-build-isolation --no-deps --force-reinstall --no-cache-dir "$mmcv"
        "$VENV/bin/python" -c "import mmcv.ops"
    fi
}

install_project() {
    pip_install --no-build-isolation --no-deps --editable .
    "$VENV/bin/python" -c "import mmcv.ops, mmdet, mmpelk.models, mmpretrain, mmseg"
}

NETWORK="Check the network, and the proxy or mirror that pip uses (pip config list)."
PY=$(find_python)
PY_NAME=$("$PY" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
check_machine
mkdir -p "$VENV"
# A build process takes up to 2 GB.
JOBS=$(awk -v cores="$(nproc)" '/MemAvailable/ { jobs = int($2 / 2097152); print jobs < 1 ? 1 : jobs < cores ? jobs : cores }' \
    /proc/meminfo)
NVCC=$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2> /dev/null || true)
if command -v nvidia-smi > /dev/null && [ -z "$NVCC" ]; then
    say "note: a GPU but no nvcc: mmcv's operators are compiled for the CPU alone. Segmentation and classification need none" \
        "      of them on the GPU; detection does: install the CUDA toolkit, remove $VENV, and run this again."
fi
say "Setting up $VENV with $("$PY" -V); the whole output goes to $LOG"

step 1 "creating $VENV" "Remove $VENV if it is broken." create_venv "$PY_NAME"
step 2 "installing what builds the others" "$NETWORK" \
    pip_install $(pinned 'setuptools|wheel|ninja|psutil')
step 3 "installing torch, 5.5 GB on disk, about 2 minutes" "$NETWORK" \
    pip_install $(pinned 'torch|torchvision')
step 4 "compiling mmcv's operators, about $((24 / JOBS > 3 ? 24 / JOBS : 3)) minutes, once" \
    "If a line above says 'Killed', memory ran out: run this again with other programs closed. Without 'error:', it is the network." \
    compile_mmcv "$(pinned onedl-mmcv)" "$(pinned opencv-python | sed 's/==/-headless==/')" $(pinned 'numpy|opencv-python')
step 5 "installing the OpenMMLab toolboxes and the test tools, about 2 minutes" "$NETWORK" \
    pip_install --no-build-isolation --requirement requirements.txt
step 6 "installing mmpelk and importing everything once" "Look for the first 'Error' in $LOG." \
    install_project

printf '%s\n' "$STATE" > "$VENV/setup.done"
say "$VENV is ready"
