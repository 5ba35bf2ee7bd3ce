#!/usr/bin/env bash
# The segmentation demo: draw the set, train a nano PeLK on two processes, test it, draw the result.
#
#   [DATA=data/demo_segmentation] [WORK_DIR=work_dirs/demo_segmentation] tools/demo/run_seg.sh [KEY=VALUE ...]
#
# KEY=VALUE changes the config, such as "model.backbone.kernel_sizes=(7,7)".
# Seeded: a second run finds the set already there, and trains the same network anew.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
for option in "$@"; do
    [[ $option == *=* ]] || usage
done
cd "$TOOLS/.."
DATA=${DATA:-data/demo_segmentation}
WORK_DIR=${WORK_DIR:-work_dirs/demo_segmentation}
CONFIG=configs/demo/upernet_pelk_nano_synthetic.py
PROCESSES=$(demo_processes)
# The toolboxes warn about their own defaults, twice; errors still come through.
export PYTHONWARNINGS=ignore

progress() { # the lines with figures; MMEngine's whole log is in the work folder, and errors come through stderr
    grep --line-buffered -oE 'Iter\((train|val|test)\).*' || true
}

echo "1/4 drawing the pictures"
"$PYTHON" tools/demo/make_segmentation_data.py --out "$DATA"

echo "2/4 training on $PROCESSES processes, a few minutes; the whole log is in $WORK_DIR"
# A finished training of before must not stand in for one that fails now.
rm -f "$WORK_DIR/last_checkpoint"
tools/dist_train.sh "$CONFIG" "$PROCESSES" --work-dir "$WORK_DIR" \
    --cfg-options {train,val}_dataloader.dataset.data_root="$DATA" train_dataloader.batch_size=$((8 / PROCESSES)) "$@" | progress

echo "3/4 testing"
tools/dist_test.sh "$CONFIG" "$(cat "$WORK_DIR/last_checkpoint")" "$PROCESSES" --work-dir "$WORK_DIR/test" \
    --out "$WORK_DIR/predictions" --cfg-options test_dataloader.dataset.data_root="$DATA" "$@" | progress

echo "4/4 drawing the result"
"$PYTHON" tools/demo/plot_segmentation.py "$CONFIG" --data "$DATA" --work-dir "$WORK_DIR" \
    --predictions "$WORK_DIR/predictions" --out "$WORK_DIR/demo.png"
