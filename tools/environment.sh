# Sourced by the launchers: the Python to run, and the project on its path when it is not installed.
TOOLS=$(cd -P "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then
    # The active environment first, then the one that `make` sets up.
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$TOOLS/../.venv/bin/python" ]; then
        PYTHON=$TOOLS/../.venv/bin/python
    else
        PYTHON=python
    fi
fi
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

usage() { # the comment at the head of the script
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

torchrun() { # processes per machine, script, its arguments
    local processes=$1
    shift
    # torchrun gives each process one thread. Without GPUs the processes share the cores instead.
    if [ -z "${OMP_NUM_THREADS:-}" ] && ! command -v nvidia-smi > /dev/null; then
        export OMP_NUM_THREADS=$(($(nproc) > processes ? $(nproc) / processes : 1))
    fi
    local rendezvous=(--standalone) # one machine: any free port
    if [ "${NNODES:-1}" -gt 1 ] || [ -n "${PORT:-}" ]; then
        rendezvous=(--nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}"
            --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
    fi
    exec "$PYTHON" "$TOOLS/torchrun.py" "${rendezvous[@]}" --nproc-per-node "$processes" "$@"
}

demo_processes() { # two, as the demos are meant, but not more than there are GPUs; on CPUs two
    "$PYTHON" -c 'import torch; print(min(2, torch.cuda.device_count() or 2))'
}

slurm() { # partition, job name, script, its arguments
    local gpus=${GPUS:-8}
    # As many processes on a machine as it has GPUs to lend, 8 by default, and never more than there are.
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    local gres=${GRES-gpu:$per_node}
    export MASTER_PORT=${PORT:-${MASTER_PORT:-29500}}
    local partition=$1 job_name=$2
    shift 2
    # SRUN_ARGS is a list of options in one variable: split at spaces, as users of the MM tools expect.
    # shellcheck disable=SC2086
    exec srun --partition "$partition" --job-name "$job_name" ${gres:+--gres "$gres"} --ntasks "$gpus" \
        --ntasks-per-node "$per_node" --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "$PYTHON" -u "$@"
}
