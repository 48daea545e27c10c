#!/usr/bin/env bash
# A search on the nodes of a SLURM job, which requeues itself until the search has finished:
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/cluster/slurm.sh search.yaml /scratch/me/run --workers 32 --device cuda
#
# All arguments go to `heterosis evolve CONFIG --run-dir RUN_DIR`. Activate your environment before, or set ACTIVATE.
#SBATCH --job-name=heterosis
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Before the end SIGTERM goes to this script alone, so that the documents being scored are finished.
#SBATCH --signal=B:TERM@300
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: sbatch $0 CONFIG RUN_DIR [options of heterosis evolve]" >&2; exit 2; }
config=$1 run=$2
shift 2
[ -z "${ACTIVATE:-}" ] || source "$ACTIVATE"

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
address="${nodes[0]}:${RAY_PORT:-6379}"
for node in "${nodes[@]}"; do
  if [ "$node" = "${nodes[0]}" ]; then role=(--head --port "${address##*:}"); else role=(--address "$address"); fi
  srun --nodes=1 --ntasks=1 --overlap -w "$node" ray start "${role[@]}" --disable-usage-stats --block &
  [ "$node" != "${nodes[0]}" ] || sleep "${RAY_SECONDS:-20}"  # the others look for it
done

heterosis evolve "$config" --run-dir "$run" --ray-address "$address" "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM
# A signal ends `wait`, not what it waits for.
while kill -0 "$driver" 2>/dev/null; do wait "$driver" || true; done
code=0
wait "$driver" || code=$?

# 130: stopped in time, to be continued. Anything else but 0 is for a person to look at.
if [ "$code" = 130 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
