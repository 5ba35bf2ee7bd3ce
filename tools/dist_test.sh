#!/usr/bin/env bash
# Test on N processes, one per GPU; without a GPU, on N processes with gloo.
#
#   tools/dist_test.sh CONFIG CHECKPOINT N [options of tools/test.py]
#
# On several machines the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 3 ] || usage
torchrun "$3" "$TOOLS/test.py" "$1" "$2" --launcher pytorch "${@:4}"
