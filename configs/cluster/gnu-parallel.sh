#!/bin/bash
# A zoo over machines that ssh reaches, by GNU parallel (Debian: apt install parallel):
#
#   NODES=node1,node2,node3 configs/cluster/gnu-parallel.sh zoo.toml shelf/ 3
#
# Needs: on every node quantcli on PATH, and this folder, with manifest and shelf, at the same path.
# HF_HOME may be a folder of each node. Each node works on one part at a time with all its cores, so
# take as many parts as nodes, or more where models differ in size. On one machine alone plain
# `quantcli batch` does the same: it runs as many jobs at once as cores and memory admit.
# A test runs this on one machine (NODES unset).
set -uo pipefail
manifest=$1 shelf=$2 parts=$3

# Failures are the business of the last line, which merges the ledgers: exit code 10 if any job
# failed or missed its gate.
parallel --jobs 1 --sshlogin "${NODES:-:}" --workdir . --line-buffer \
    quantcli batch {1} -o {2} --shard "{3}/$parts" ::: "$manifest" ::: "$shelf" ::: $(seq "$parts")
exec quantcli batch "$manifest" -o "$shelf"
