#!/bin/bash
# A zoo as a Slurm array: each task converts its share of the models. Submit it with the merge after:
#
#   array=$(sbatch --parsable configs/cluster/slurm-array.sh zoo.toml /shared/shelf)
#   sbatch --dependency=afterany:"$array" configs/cluster/slurm-merge.sh zoo.toml /shared/shelf
#
# Needs: quantcli on PATH, the manifest and the shelf in folders that all nodes share (with file
# locks, as NFS 4, Lustre with flock and BeeGFS have), and nodes that reach the hub, or models in
# shared folders. HF_HOME, the cache of downloads, may be shared or a folder of each node: a model is
# downloaded by one task only. For gated models run `hf auth login` once, or export HF_TOKEN before
# sbatch.
#
# A task that is preempted, killed or out of time loses at most the jobs it was at: submit again and
# the rest is done. Models differ in size, so take at most as many tasks as there are models.
#
# Tried on Slurm 22.05 with one node: array, merge, scancel of a task and the merge that goes on,
# exit code 10 of a missed gate. A test runs both scripts with SLURM_* set.
#
#SBATCH --job-name=zoo
#SBATCH --array=1-8
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=zoo-%A-%a.log
set -euo pipefail

# A tenth of the memory is for the process that starts and watches the jobs, and for buffers.
exec quantcli batch "$1" -o "$2" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --threads "$SLURM_CPUS_PER_TASK" --max-memory "$((SLURM_MEM_PER_NODE * 9 / 10))MiB"
