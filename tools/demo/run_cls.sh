#!/usr/bin/env bash
# Classification: three mixers at equal parameters on handwritten digits, three seeds each, and a figure of what came out.
#
#   [DATA=data/demo_classification] [WORK_DIR=work_dirs/demo_classification] [SEEDS="0 1 2"] tools/demo/run_cls.sh
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/../.."
source tools/environment.sh
DATA=${DATA:-data/demo_classification}
WORK_DIR=${WORK_DIR:-work_dirs/demo_classification}
SEEDS=${SEEDS:-0 1 2}
[ $# -eq 0 ] || usage
export OMP_NUM_THREADS=1

train() { # name of the network, seed
    local work=$WORK_DIR/$1/seed_$2
    rm -rf "$work" # a training of before must not stand in for one that fails now
    mkdir -p "$work"
    if ! "$PYTHON" tools/train.py "configs/demo/$1_nano_digits.py" --work-dir "$work" --cfg-options \
        randomness.seed="$2" {train,val,test}_dataloader.dataset.data_root="$DATA" > "$work/log" 2>&1; then
        tail -n 20 "$work/log" >&2
        return 255 # which stops xargs
    fi
    echo "$1, seed $2: $(grep -oE 'accuracy/top1: [0-9.]+' "$work/log" | tail -n 1)"
}
export -f train
export DATA WORK_DIR PYTHON

echo "1/3 writing the digits"
"$PYTHON" tools/demo/make_classification_data.py "$DATA"

echo "2/3 training three networks with seeds $SEEDS, one process per core; the logs are in $WORK_DIR"
# shellcheck disable=SC2086
for seed in $SEEDS; do printf '%s\n' "pelk $seed" "conv7 $seed" "stripe $seed"; done |
    xargs -P "$(nproc)" -L 1 bash -c 'train "$0" "$1"'

echo "3/3 drawing the result"
"$PYTHON" tools/demo/compare_classification.py "$WORK_DIR"
