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

echo "1/2 writing the digits"
"$PYTHON" tools/demo/make_classification_data.py "$DATA"

echo "2/2 training three networks with seeds $SEEDS, one process per core, and comparing them; the logs are in $WORK_DIR"
# shellcheck disable=SC2086
"$PYTHON" -m benchmarks.compare_classification "$WORK_DIR" --data "$DATA" --seeds $SEEDS --jobs "$(nproc)"
