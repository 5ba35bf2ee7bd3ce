#!/usr/bin/env bash
# Train on a Slurm cluster.
#
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] [PORT=29500] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#
# GPUS is the number of processes on all machines together. GRES= (empty) asks for no GPU: gloo on CPUs.
# REQUEUE=1 inside a batch job: a training that was preempted (exit code 75) is queued again; give it --resume.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 3 ] || usage
code=0
(slurm "$1" "$2" "$TOOLS/train.py" "$3" --launcher slurm "${@:4}") || code=$?
if [ "$code" -eq 75 ] && [ -n "${REQUEUE:-}" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
