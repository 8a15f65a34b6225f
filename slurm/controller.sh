#!/bin/bash
# The controller as a Slurm job of one core: `sbatch slurm/controller.sh`
#   RUN=name CONFIG=file RESULTS=folder ARGS="group.key=value …" sbatch slurm/controller.sh
# It submits all other jobs, and puts itself back into the queue before its time limit; the run goes on where it was.
#SBATCH --job-name=asiarch-controller
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=asiarch-controller-%j.log

set -u
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
if [ ! -f slurm/controller.sh ]; then
    echo "start this from the project's folder: cd asiarch-hpc && sbatch slurm/controller.sh (found $PWD)" >&2
    exit 1
fi
make --silent env || exit 1

# shellcheck disable=SC2086  # ARGS holds several words
.venv/bin/asiarch explore --results "${RESULTS:-results}" ${RUN:+--run "$RUN"} --config "${CONFIG:-laptop}" executor.kind=slurm ${ARGS:-} &
controller=$!

requeue() {
    echo "time limit near: the controller ends, its jobs go on, and it goes back into the queue"
    kill -TERM "$controller" 2> /dev/null
    wait "$controller"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1
trap 'kill -TERM "$controller" 2> /dev/null; wait "$controller"; exit 143' TERM

wait "$controller"
