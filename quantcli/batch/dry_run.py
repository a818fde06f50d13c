"""What a batch would do, without doing it: `quantcli batch --dry-run`."""

from typing import Any

from quantcli.batch.board import Board
from quantcli.batch.preflight import Planned
from quantcli.batch.run import Batch, planned_jobs
from quantcli.report.as_json import SCHEMA_VERSION


def dry_run_document(batch: Batch, board: Board) -> dict[str, Any]:
    """Every job with downloads, bytes, memory and estimated seconds, and what all need together.

    The ledger is not looked at: this is the whole batch, as if nothing were done yet.

    Raises: as run.planned_jobs.
    """
    planned, needed = planned_jobs(batch, board)
    board.finish()
    seconds = sum(each.seconds * each.threads for each in planned) / batch.cores
    return {
        "schema_version": SCHEMA_VERSION,
        "manifest": batch.manifest.name,
        "jobs": [_job(each) for each in planned],
        "totals": {
            "jobs": len(planned),
            "unplannable": sum(each.failure is not None for each in planned),
            "download_bytes": needed.downloads,
            "output_bytes": needed.outputs,
            "disk_bytes": needed.outputs + needed.sources_at_once,
            "peak_memory_bytes": min(batch.memory, sum(_largest(planned, batch.cores))),
            "seconds": round(max([seconds, *(each.seconds for each in planned)]), 1),
        },
        "cores": batch.cores,
        "memory_bytes": batch.memory,
    }


def _job(planned: Planned) -> dict[str, Any]:
    job, failure = planned.job, planned.failure
    sizes = [output["size_bytes"] for output in planned.plan.get("outputs", ())]
    return {
        "name": job.name,
        "source": job.source,
        "revision": planned.plan.get("revision"),
        "method": job.job.method,
        "outputs": [
            {"path": path, "size_bytes": size}
            for path, size in zip(job.outputs, sizes or [None] * len(job.outputs), strict=True)
        ],
        "download_bytes": planned.download_bytes,
        "threads": planned.threads,
        "peak_memory_bytes": planned.memory_bytes,
        "seconds": round(planned.seconds, 1),
        "warnings": planned.plan.get("warnings", []),
        "exit_code": failure.exit_code if failure else 0,
        "error": failure.error if failure else None,
    }


def _largest(planned: list[Planned], count: int) -> list[int]:
    """Memory of the largest jobs that may run at once."""
    return sorted((each.memory_bytes or 0 for each in planned), reverse=True)[:count]
