#!/usr/bin/env bash
# The detection demo: draw the set, train a nano PeLK Mask R-CNN on two processes, draw what it sees.
#
#   [DATA=data/demo_detection] [WORK_DIR=work_dirs/demo_detection] tools/demo/run_det.sh
#
# Seeded: a second run draws the same set and trains the same network anew.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
[ $# -eq 0 ] || usage
cd "$TOOLS/.."
DATA=${DATA:-data/demo_detection}
WORK_DIR=${WORK_DIR:-work_dirs/demo_detection}
CONFIG=configs/demo/mask_rcnn_pelk_nano_synthetic.py
PROCESSES=$(demo_processes)

# The toolboxes warn about their own defaults, twice; errors still come through.
export PYTHONWARNINGS=ignore

progress() { # the lines with figures; MMEngine's whole log is in the work folder, and errors come through stderr
    grep --line-buffered -oE 'Epoch\((train|val|test)\).*' || true
}

TRUTH="$DATA/annotations/instances_val2017.json"

echo "1/4 drawing the pictures"
"$PYTHON" tools/demo/make_detection_data.py "$DATA"

echo "2/4 training on $PROCESSES processes, a few minutes; the whole log is in $WORK_DIR"
# A finished training of before must not stand in for one that fails now.
rm -f "$WORK_DIR/last_checkpoint"
tools/dist_train.sh "$CONFIG" "$PROCESSES" --work-dir "$WORK_DIR" \
    --cfg-options {train,val}_dataloader.dataset.data_root="$DATA" val_evaluator.ann_file="$TRUTH" \
    train_dataloader.batch_size=$((8 / PROCESSES)) | progress
CHECKPOINT=$(cat "$WORK_DIR/last_checkpoint")

echo "3/4 testing"
tools/dist_test.sh "$CONFIG" "$CHECKPOINT" "$PROCESSES" --work-dir "$WORK_DIR/test" \
    --cfg-options test_dataloader.dataset.data_root="$DATA" test_evaluator.ann_file="$TRUTH" | progress

echo "4/4 drawing the result"
"$PYTHON" tools/demo_image.py "$DATA/val2017" --config "$CONFIG" --checkpoint "$CHECKPOINT" \
    --out "$WORK_DIR/drawings" --score-thr 0.5
"$PYTHON" tools/demo/plot_detection.py "$WORK_DIR"
