#!/bin/bash
# A zoo on a Dask cluster (pip install with the extra "dask"): one scheduler, any number of workers,
# and the batch, each on a machine of its own if you like:
#
#   configs/cluster/dask.sh scheduler
#   SCHEDULER=tls://head:8786 CORES=16 MEM=64e9 configs/cluster/dask.sh worker      # on each node
#   SCHEDULER=tls://head:8786 configs/cluster/dask.sh batch zoo.toml -o /shared/shelf
#
# Needs: the same quantcli everywhere; the shelf, and models and texts in folders, at the same path
# on all machines; the hub's token (`hf auth login` or HF_TOKEN) where the batch and its workers run.
# Workers may come and go meanwhile. Unlike with shards, one process sees all jobs, so a slow node
# gets fewer, and summary.json is complete at the end.
#
# Whoever reaches a Dask scheduler can run code on its workers: quantcli refuses one on another
# machine without TLS. TLS is a folder with ca.pem, cert.pem and key.pem, of an authority of your own:
#
#   openssl req -x509 -newkey rsa:2048 -nodes -days 365 -keyout ca-key.pem -out ca.pem -subj /CN=zoo
#   openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=zoo-node
#   openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 365 \
#       -out cert.pem
# Tried with all three on one machine, with TLS as above; tests/test_batch_dask.py kills each of them.
set -euo pipefail
: "${TLS:=$HOME/.config/quantcli-dask}"
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$TLS/ca.pem
for role in SCHEDULER WORKER CLIENT; do
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$TLS/cert.pem"
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$TLS/key.pem"
done

case $1 in
scheduler)
    exec dask scheduler --protocol tls --host "${HOST:-0.0.0.0}" --port "${PORT:-8786}" --no-dashboard
    ;;
worker)
    # MEM and CORES are what jobs may use together; each worker needs both. Jobs are processes of
    # their own, so Dask's limit for its own process is switched off.
    exec dask worker "$SCHEDULER" --resources "MEM=$MEM CORES=$CORES" --nthreads "$CORES" \
        --nworkers 1 --memory-limit 0 --no-dashboard
    ;;
batch)
    shift
    exec quantcli batch "$@" --executor dask --scheduler "$SCHEDULER"
    ;;
esac
