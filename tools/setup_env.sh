#!/usr/bin/env bash
# Set up .venv with the tested set of requirements.txt and the project itself, as far as it is needed:
#
#   [PYTHON=python3.11] [VENV=.venv] tools/setup_env.sh [base|det|test]
#
#   base   segmentation and classification (the default)
#   det    mmcv's operators, too, which detection needs
#   test   what the tests need, too
#
# Finished steps are not repeated, so a second run takes no time, and after a failure, Ctrl-C or a kill it goes on where it
# stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
LOG=$VENV/setup.log
STAGE=${1:-base}
case $STAGE in
    base) STEPS=5 ;;
    det) STEPS=6 ;;
    test) STEPS=7 ;;
    *)
        sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0" >&2
        exit 2
        ;;
esac
unset PYTHONPATH PIP_USER # neither belongs into an environment of its own
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off

# Everything that was installed is a function of these.
STATE=$( (cat requirements.txt requirements/{dev,export,hub,timm}.txt pyproject.toml tools/setup_env.sh tools/mmcv_operators.py && pwd) |
    sha256sum | cut -d' ' -f1)
finished() { [ "$(cat "$VENV/setup.$STAGE" 2> /dev/null)" = "$STATE" ]; }
! finished || exit 0

exec 3>&2 # the terminal, for steps whose output goes to the log
say() { printf '%s\n' "$@" >&3; }

die() { # what failed, remedy
    say "" "FAILED: $1" "Remedy: $2"
    exit 1
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

forget() { # step: neither it nor what came after it stands
    local number
    for ((number = $1; number <= 7; number++)); do rm -f "$VENV/setup.step$number"; done
    rm -f "$VENV"/setup.{base,det,test}
}

stop() { # what ran in the background before this step, if anything did
    [ "${!:-}" = "$1" ] || { kill -- -"$!" 2> /dev/null && wait "$!" || true; }
    say "stopped"
    exit 130
}

step() { # number, sentence, remedy, command...: run it with its output in the log and the time on the terminal
    local number=$1 sentence=$2 remedy=$3 start=$SECONDS shown=0 elapsed
    shift 3
    local stamp=$VENV/setup.step$number
    # A step stands when it was done with the same command, and no step before it has been done anew. Steps 4, 5 and 7
    # install what the files say.
    local key=$*
    case $number in 4 | 5 | 7) key+=$STATE ;; esac
    if [ "$(cat "$stamp" 2> /dev/null)" = "$key" ]; then
        say "[$number/$STEPS] $sentence: done before"
        return
    fi
    forget "$number"
    say "[$number/$STEPS] $sentence ..."
    printf '\n== %s: %s\n' "$(date)" "$*" >> "$LOG"
    # Before the job starts, which a signal may follow at once.
    trap "stop '${!:-}'" INT TERM HUP
    set -m # a process group of its own, so that Ctrl-C ends the compilers too
    "$@" >> "$LOG" 2>&1 < /dev/null &
    local job=$!
    set +m
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
    trap - INT TERM HUP
    if ! wait "$job"; then
        say "" "The last lines of $LOG:"
        tail -n 15 "$LOG" | cut -c1-200 | sed 's/^/    /' >&2
        ! grep -q 'No space left on device' <(tail -n 50 "$LOG") || remedy=$SPACE
        die "$sentence" "$remedy Then run the same command again: finished steps are not repeated."
    fi
    [ ! -t 2 ] || printf '\r' >&2
    say "      done in $(clock $((SECONDS - start)))"
    printf '%s\n' "$key" > "$stamp"
}

pinned() { grep -E "^($1)==" requirements.txt; } # requirements whose names match

find_python() { # a Python that the tested set supports
    local candidate found candidates=(python3.11 python3.12 python3.10 python3 python)
    [ ! -e "$VENV/setup.step1" ] || candidates=("$VENV/bin/python" "${candidates[@]}")
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null; then
            # The interpreter itself: the link in an environment goes when that is created anew.
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    found=$("${PYTHON:-python3}" -V 2> /dev/null || true)
    die "no Python 3.10, 3.11 or 3.12: ${PYTHON:+PYTHON=}${PYTHON:-python3} is ${found:-not there}" \
        "install one (Debian 12: apt-get install python3 python3-venv python3-dev) or set PYTHON=/path/to/python3.11."
}

check_machine() { # what cannot be installed by pip
    local missing=() header
    "$PY" -c 'import venv, ensurepip' 2> /dev/null || missing+=("$PY_NAME-venv")
    command -v g++ > /dev/null || missing+=("g++")
    header=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
    [ -f "$header" ] || missing+=("$PY_NAME-dev")
    [ ${#missing[@]} -eq 0 ] || die "this machine lacks ${missing[*]}" "apt-get install ${missing[*]}, as root."
    local disk free need=1
    [ -e "$VENV/setup.step3" ] || need=10 # torch and what it brings: 6 GB, and what was downloaded twice, by pip and its cache
    disk=$VENV && [ -e "$disk" ] || disk=.
    free=$(gigabytes_free "$disk")
    [ "$free" -ge "$need" ] || die "$free GB free for $VENV, and the set-up needs $need GB" "$SPACE"
    disk=${TMPDIR:-/tmp} && [ -d "$disk" ] || disk=/tmp
    free=$(gigabytes_free "$disk")
    [ "$need" = 1 ] || [ "$free" -ge 3 ] ||
        die "$free GB free in $disk, and pip needs 3 GB there" "TMPDIR=FOLDER names another folder for what it downloads."
}

gigabytes_free() { df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }'; } # folder

take_lock() { # one set-up at a time; what a killed one was doing may still be at work, and holds the lock, too
    exec 9> "$VENV/setup.lock"
    flock -n 9 && return
    say "another set-up is at work in $VENV, or what a killed one had begun: waiting for its end"
    flock 9
}

sweep() { # pip takes a package for installed that a kill left without RECORD, but can neither replace nor remove it
    local info
    for info in "$VENV"/lib/python*/site-packages/{*.dist-info,'~'*}; do
        [ -e "$info/RECORD" ] && [[ $info != */'~'* ]] || rm -rf "$info"
    done
}

create_venv() { # $1 is there for the stamp: another version is another environment
    rm -rf "$VENV/bin" "$VENV/lib" "$VENV/lib64" "$VENV/include" "$VENV/pyvenv.cfg"
    "$PY" -m venv "$VENV"
}

pip_install() { "$VENV/bin/python" -m pip install "$@"; }

check_network() { # pip alone would try again for minutes, at every step; its own settings decide where it asks
    local number missing= answer
    for ((number = 2; number <= STEPS; number++)); do [ -e "$VENV/setup.step$number" ] || missing=1; done
    [ -n "$missing" ] || return 0
    if ! answer=$("$VENV/bin/python" -m pip download --quiet --retries 0 --timeout 20 --no-cache-dir --no-deps \
        --dest "$VENV/probe" "$(pinned wheel)" 2>&1); then
        say "" "$(tail -n 3 <<< "$answer" | cut -c1-200 | sed 's/^/    /')"
        die "pip cannot download from its package index" "$NETWORK"
    fi
    rm -rf "$VENV/probe"
}

install_builders() {
    pip_install --upgrade pip
    pip_install "$@"
}

install_openmmlab() { # mmcv, opencv-python-headless, what mmcv needs...
    # Built in isolation mmcv does not see torch and leaves its operators out. Without the cache, which may hold a wheel that has
    # operators, compiled for another torch.
    pip_install --constraint requirements.txt "${@:3}"
    pip_install --constraint requirements.txt --no-cache-dir "$1"
    # opencv-python, which mmcv asks for, wants libGL from the system; the headless build is the same without windows. Both
    # write the same folder, so the last one stands.
    pip_install --force-reinstall --no-deps "$2"
    pip_install --no-build-isolation --requirement requirements.txt
}

operators_work() { "$VENV/bin/python" tools/mmcv_operators.py check; }

joined_wheel() { # folder, mmcv: mmcv with its operators, their C++ files joined into a few
    "$VENV/bin/python" -m pip download --no-build-isolation --no-deps --no-binary onedl-mmcv --dest "$1" "$2" &&
        tar -xzf "$1"/*.tar.gz -C "$1" &&
        "$VENV/bin/python" tools/mmcv_operators.py join "$1"/*/ &&
        "$VENV/bin/python" -m pip wheel --no-build-isolation --no-deps --no-cache-dir --wheel-dir "$1" "$1"/*/
}

compile_operators() { # mmcv
    # -g0: debug symbols would double the time. With a GPU but no compiler for it the build would stop.
    export CFLAGS="-g0 -O2" MAX_JOBS=$JOBS
    [ -n "$NVCC" ] || export CUDA_VISIBLE_DEVICES=
    ! operators_work || return 0 # there, and for this torch
    local build=$VENV/mmcv-build stamp
    stamp=$(cat "$VENV/setup.step4")
    rm -rf "$build"
    if [ -n "$NVCC" ] && { [ "${FORCE_CUDA:-0}" = 1 ] || command -v nvidia-smi > /dev/null; }; then
        say "      for the GPU, from every file: about half an hour"
    elif joined_wheel "$build" "$1"; then
        # Stopped here there may be no mmcv, which step 4 installs.
        rm "$VENV/setup.step4"
        pip_install --force-reinstall --no-deps "$build"/*.whl
        printf '%s\n' "$stamp" > "$VENV/setup.step4"
        rm -rf "$build"
        ! operators_work || return 0
        say "      compiled from joined files they do not work here: from every file, about $((24 / JOBS > 3 ? 24 / JOBS : 3)) minutes"
    else
        say "      joined files do not compile here: from every file, about $((24 / JOBS > 3 ? 24 / JOBS : 3)) minutes"
    fi
    rm "$VENV/setup.step4"
    pip_install --no-build-isolation --no-deps --force-reinstall --no-cache-dir "$1"
    printf '%s\n' "$stamp" > "$VENV/setup.step4"
    operators_work
}

install_operators() { # mmcv
    compile_operators "$1"
    "$VENV/bin/python" -c "import mmdet.models"
}

install_project() {
    pip_install --no-build-isolation --no-deps --editable .
    "$VENV/bin/python" -c "import mmpelk.models, mmpretrain.models, mmseg.models"
}

NETWORK="Check the network. Behind a proxy: export https_proxy=http://HOST:PORT. A mirror: export PIP_INDEX_URL=URL."
SPACE="Free some (pip cache purge), or put $VENV on another disk: rm -rf $VENV && mkdir -p FOLDER && ln -s FOLDER $VENV."
PY=$(find_python)
PY_NAME=$("$PY" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
check_machine
mkdir -p "$VENV"
take_lock
! finished || exit 0
sweep
[ -e "$VENV/setup.step2" ] || forget 1 # pip replaces itself in step 2
# A build process takes up to 2 GB.
JOBS=$(awk -v cores="$(nproc)" '/MemAvailable/ { jobs = int($2 / 2097152); print jobs < 1 ? 1 : jobs < cores ? jobs : cores }' \
    /proc/meminfo)
NVCC=$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2> /dev/null || true)
say "Setting up $VENV with $("$PY" -V); the whole output goes to $LOG"

step 1 "creating $VENV" "Remove $VENV if it is broken." create_venv "$PY_NAME"
check_network
step 2 "installing what builds the others" "$NETWORK" \
    install_builders $(pinned 'setuptools|wheel|ninja|psutil')
step 3 "installing torch, 5.5 GB on disk, about 2 minutes" "$NETWORK" \
    pip_install $(pinned 'torch|torchvision')
step 4 "installing the OpenMMLab toolboxes, about a minute" "$NETWORK" \
    install_openmmlab "$(pinned onedl-mmcv)" "$(pinned opencv-python | sed 's/==/-headless==/')" $(pinned 'numpy|opencv-python')
step 5 "installing mmpelk and importing everything once" "Look for the first 'Error' in $LOG." \
    install_project
if [ "$STEPS" -ge 6 ]; then
    if command -v nvidia-smi > /dev/null && [ -z "$NVCC" ]; then
        say "note: a GPU but no nvcc: mmcv's operators are compiled for the CPU alone. Detection needs them on the GPU: install the" \
            "      CUDA toolkit, remove $VENV, and run this again."
    fi
    step 6 "compiling mmcv's operators, 1 to 3 minutes, once" \
        "If a line above says 'Killed', memory ran out: run this again with other programs closed. Without 'error:', it is the network." \
        install_operators "$(pinned onedl-mmcv)"
fi
if [ "$STEPS" -ge 7 ]; then
    step 7 "installing the test tools" "$NETWORK" \
        pip_install --constraint requirements.txt --requirement requirements/dev.txt --requirement requirements/export.txt \
        --requirement requirements/hub.txt --requirement requirements/timm.txt
fi

for stage in base det test; do
    printf '%s\n' "$STATE" > "$VENV/setup.$stage"
    [ "$stage" != "$STAGE" ] || break
done
say "$VENV is ready"
