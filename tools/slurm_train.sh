#!/usr/bin/env bash
# Train on a Slurm cluster.
#
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] [PORT=29500] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#
# GPUS is the number of processes on all machines together. GRES= (empty) asks for no GPU: gloo on CPUs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 3 ] || usage
slurm "$1" "$2" "$TOOLS/train.py" "$3" --launcher slurm "${@:4}"
