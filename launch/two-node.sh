#!/usr/bin/env bash
# One run on two machines (or more), by torchrun. Run this on every machine at about the same time, with the same arguments:
#
#     HEAD=10.0.0.1 NODES=2 GPUS=8 launch/two-node.sh configs/theworld/stages.yaml --run=/shared/runs/stages
#
# HEAD is the address of one of the machines, where ranks meet. The run directory and the code are on storage that all of them see.
set -euo pipefail

HEAD=${HEAD:?the address of one of the machines}
NODES=${NODES:-2}
GPUS=${GPUS:-8}
RESTARTS=${RESTARTS:-3}

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # each restart gets a store of its own (pytorch#135712)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

exec torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" --max-restarts="$RESTARTS" \
  --rdzv-id="${RUN_ID:-plait}" --rdzv-backend=c10d --rdzv-endpoint="$HEAD:${PORT:-29400}" \
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout=120 \
  -m -- plait train "$@"
