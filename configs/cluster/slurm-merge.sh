#!/bin/bash
# After slurm-array.sh, see there: the same batch without --shard. It reads the ledgers of all tasks,
# checks every file's sha256, does what a lost task left undone or what is worth another try, and
# writes the summary.json and index.html of the whole zoo. Exit code 10 (state FAILED, ExitCode 10:0)
# when a job failed or missed its gate.
#
#SBATCH --job-name=zoo-merge
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --output=zoo-merge-%j.log
set -euo pipefail

exec quantcli batch "$1" -o "$2" \
    --threads "$SLURM_CPUS_PER_TASK" --max-memory "$((SLURM_MEM_PER_NODE * 9 / 10))MiB"
