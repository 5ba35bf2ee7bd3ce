#!/usr/bin/env bash
# Train on N processes, one per GPU; without a GPU, on N processes with gloo.
#
#   tools/dist_train.sh CONFIG N [options of tools/train.py]
#
# On several machines the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 2 ] || usage
torchrun "$2" "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"
