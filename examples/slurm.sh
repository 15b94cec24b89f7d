#!/usr/bin/env bash
# Predict a folder of pictures with SLURM: an array of N tasks, one shard each, which need a common file system.
#
#     sbatch --array=1-100 examples/slurm.sh MODEL PICTURES OUT 100
#     rcnn merge OUT                                                   # when all tasks have ended
#
# The first command also continues shards that ended early, and `--array=3,17` those two; N stays the same.

#SBATCH --job-name=rcnn
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=06:00:00
# A task that is preempted, or whose node fails, starts again and continues its shard.
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM a minute before the time is up: `rcnn predict` keeps all finished pictures and ends.
#SBATCH --signal=B:TERM@60

set -euo pipefail
if [ $# != 4 ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
  echo "usage: sbatch --array=1-N $0 MODEL PICTURES OUT N" >&2
  exit 2
fi
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec rcnn predict "$1" "$2" --shard "$SLURM_ARRAY_TASK_ID/$4" --out "$3" --resume
