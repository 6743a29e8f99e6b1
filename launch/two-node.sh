#!/usr/bin/env bash
# One run on two machines (or more). Run this on every machine at about the same time, with the same arguments:
#
#     HEAD=10.0.0.1 NODES=2 GPUS=8 launch/two-node.sh configs/theworld/stages.yaml --run=/shared/runs/stages
#
# HEAD is the address of one of the machines, where ranks meet, at port 29400; a second run on these machines needs another PORT.
# The run directory and the code are on storage that all of them see.
set -euo pipefail

HEAD=${HEAD:?the address of one of the machines}
NODES=${NODES:-2}
GPUS=${GPUS:-8}
RESTARTS=${RESTARTS:-3}
RUN_ID=${RUN_ID:-plait-$(printf '%s\n' "$@" | cksum | cut -d ' ' -f 1)}  # a run with other arguments never joins this one

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

exec python -m plait.training.torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" --max-restarts="$RESTARTS" \
  --rdzv-id="$RUN_ID" --rdzv-backend=c10d --rdzv-endpoint="$HEAD:${PORT:-29400}" \
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout=120 \
  -m -- plait train "$@"
