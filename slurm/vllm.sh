#!/bin/bash
# One vLLM server, started by hand, for the runs that name it in agents.endpoints:
#   MODEL=/path/or/hub-name sbatch --gpus=1 slurm/vllm.sh
# Its log, asiarch-vllm-<job>.log, begins with the settings to give to `asiarch explore`. Further variables:
#   NAME=main          what agents call the model (default: the last part of MODEL)
#   CONTEXT=32768      tokens of prompt and reply
#   ARGS="…"           further words of vLLM's command line
#   VLLM=path          vLLM's command (default: vllm)
#   KEY_FILE=file      a file of mode 600 with the API key that the server asks for; the runs need it in
#                      agents.api_key_file. Without it everybody who reaches the port may use the server
#   DRAIN=120          seconds for replies under way when it ends; 0 for vLLM before 0.18, which has no such option
# `scancel --batch --signal=TERM <job>` ends it after the replies under way; a plain scancel cuts them off. The same
# happens before its time limit; DRAIN above 150 needs an earlier warning: sbatch --signal=B:TERM@<seconds>.
#SBATCH --job-name=asiarch-vllm
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --no-requeue
#SBATCH --output=asiarch-vllm-%j.log

set -eu
: "${MODEL:?give the weights: MODEL=/path sbatch --gpus=1 slurm/vllm.sh}"
: "${SLURM_JOB_ID:?start this with sbatch}"
NAME=${NAME:-$(basename "$MODEL")}
DRAIN=${DRAIN:-120}

# The first address of this node that is not the loopback's; the port is free at this moment.
host=$({ getent ahostsv4 "$(uname -n)" || true; hostname -I | tr ' ' '\n'; } 2> /dev/null | awk '$1 ~ /^[0-9.]+$/ && !/^127\./ { print $1; exit }')
host=${host:-127.0.0.1}
port=$((20000 + SLURM_JOB_ID % 10000))
while (: < "/dev/tcp/$host/$port") 2> /dev/null; do port=$((port + 1)); done

unset VLLM_API_KEY
if [ -n "${KEY_FILE:-}" ]; then
    mode=$(stat -Lc %a "$KEY_FILE")
    case $mode in
    600 | 400) ;;
    *)
        echo "KEY_FILE=$KEY_FILE: its mode is $mode, others may read the key; expected 600: chmod 600 $KEY_FILE" >&2
        exit 1
        ;;
    esac
    VLLM_API_KEY=$(cat "$KEY_FILE")
    export VLLM_API_KEY # a command line can be read by everybody on the node
fi
export VLLM_NO_USAGE_STATS=${VLLM_NO_USAGE_STATS:-1} DO_NOT_TRACK=${DO_NOT_TRACK:-1}

words=(--served-model-name "$NAME" --host "$host" --port "$port" --max-model-len "${CONTEXT:-32768}")
gpus=${SLURM_GPUS_ON_NODE:-1}
if [ "$gpus" -gt 1 ]; then words+=(--tensor-parallel-size "$gpus"); fi
if [ "$DRAIN" != 0 ]; then words+=(--shutdown-timeout "$DRAIN"); fi

echo "agents.endpoints=[http://$host:$port/v1] agents.model=$NAME${KEY_FILE:+ agents.api_key_file=$(realpath "$KEY_FILE")}"
echo "(it answers when the model is loaded: curl http://$host:$port/health)"
# exec: the signals for the batch script reach vLLM itself.
# shellcheck disable=SC2086  # ARGS holds several words
exec "${VLLM:-vllm}" serve "$MODEL" "${words[@]}" ${ARGS:-}
