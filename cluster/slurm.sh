#!/usr/bin/env bash
#SBATCH --job-name=raybench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --output=raybench-%j.log
#
# A suite on Slurm: Ray on every node of the job, raybench on the first. From the checkout:
#
#   sbatch cluster/slurm.sh suites/table1.yaml --data-dir ~/cifar10
#
# What follows the script's name goes to `raybench run`. The home directory is shared by the nodes: raybench is
# installed there (RAYBENCH_VENV, by default .venv in the checkout), and Ray's token lies there. Three minutes before
# the time is up the running trials let go; the same sbatch line goes on from there.

set -euo pipefail

export PATH="${RAYBENCH_VENV:-$PWD/.venv}/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
if [ ! -e ~/.ray/auth_token ]; then
  (umask 077 && ray get-auth-token --generate > /dev/null)
fi

head=${SLURMD_NODENAME:-$(hostname)}
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node do not meet
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
# Ray talks much: into a file of its own, beside the table.
step=(srun --overlap --cpus-per-task="$cpus" --output="ray-%j.log" --open-mode=append)
start=(ray start --block --num-cpus="$cpus" --num-gpus="$gpus" --temp-dir="/tmp/raybench-$SLURM_JOB_ID")
nodes=()

# shellcheck disable=SC2329 # it is invoked, by the trap
finish() {
  kill "${nodes[@]}" 2> /dev/null || true
  wait
  srun --overlap --ntasks-per-node=1 rm -rf "/tmp/raybench-$SLURM_JOB_ID" || true
}
trap finish EXIT

wait_for_nodes() {
  python - "$head:$port" "$1" << 'PYTHON'
import socket
import sys
import time

import ray

address, wanted, alive = sys.argv[1], int(sys.argv[2]), 0
until = time.monotonic() + 300
while alive < wanted:
    if time.monotonic() > until:
        sys.exit(f"slurm.sh: {alive} of {wanted} nodes joined at {address}")
    time.sleep(1)
    try:
        host, port = address.split(":")
        socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself would try for minutes
        ray.init(address, ignore_reinit_error=True, logging_level="ERROR", log_to_driver=False)
        alive = sum(node["Alive"] for node in ray.nodes())
    except (OSError, RuntimeError):  # the head listens before it takes anyone in
        pass
PYTHON
}

"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" \
  "${start[@]}" --head --port="$port" --dashboard-host=127.0.0.1 --ray-client-server-port="$((port + 10000))" &
nodes+=($!)
wait_for_nodes 1
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  others=$((SLURM_JOB_NUM_NODES - 1))
  "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" \
    "${start[@]}" --address="$head:$port" &
  nodes+=($!)
  # raybench runs as many trials at once as fit on the nodes that are there when it starts.
  wait_for_nodes "$SLURM_JOB_NUM_NODES"
fi

raybench run "$@" --address "$head:$port" &
driver=$!
trap 'kill -TERM "$driver"' TERM
status=0
wait "$driver" || status=$?
if kill -0 "$driver" 2> /dev/null; then # the signal ended only the first wait
  status=0
  wait "$driver" || status=$?
fi
exit "$status"
