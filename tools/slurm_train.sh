#!/usr/bin/env bash
# Train on a Slurm cluster.
#
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] [PORT=29500] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#
# GPUS is the number of processes on all machines together. GRES= (empty) asks for no GPU: gloo on CPUs.
# SIGTERM, SIGUSR1 (sbatch --signal=B:USR1@120) and Ctrl-C let the training save and exit with code 75.
# REQUEUE=1 inside a batch job: it is queued again then. A job that Slurm has restarted resumes by itself.
# A batch script starts it with exec: B: signals the script's shell alone, which would end the job unsaved.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 3 ] || usage
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || set -- "$@" --resume
heard=
hand_on() { # signal: to what runs in the background
    heard=$1
    [ -z "${!:-}" ] || kill -"$1" "$!" || true
}
# Before the start, which a signal may follow at once.
trap 'hand_on TERM' TERM INT # a process in the background ignores Ctrl-C
trap 'hand_on USR1' USR1
# In the background: bash hears signals while it waits, and srun sends what it gets to every process.
slurm "$1" "$2" "$TOOLS/train.py" "$3" --launcher slurm "${@:4}" &
srun=$!
[ -z "$heard" ] || kill -"$heard" "$srun" || true # which may have come before there was anything to hand it to
while kill -0 "$srun" 2> /dev/null; do
    wait "$srun" || true
done
code=0
wait "$srun" || code=$?
# A signal ends a training that does not listen yet. Nothing is lost then, so that it is tried again, too.
case $code in
    138) code=75 ;; # by SIGUSR1, which a scheduler alone sends
    130 | 143) [ -z "$heard" ] || code=75 ;;
esac
if [ "$code" -eq 75 ] && [ -n "${REQUEUE:-}" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
