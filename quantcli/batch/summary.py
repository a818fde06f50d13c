"""What a batch came to: one document, of the ledger's records, for people and for scripts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from quantcli.batch.expand import BatchJob
from quantcli.batch.ledger import FAILED, FINISHED, Ledger
from quantcli.batch.retries import INTEGRITY
from quantcli.batch.task import Upload, misses
from quantcli.report.as_json import SCHEMA_VERSION

DONE, FAILED_JOB, SKIPPED = "done", "failed", "skipped"


def summary_document(
    manifest: str,
    shard: str | None,
    jobs: Sequence[BatchJob],
    uploads: Sequence[Upload],
    ledger: Ledger,
    ended: set[str],
    seconds: float,
) -> dict[str, Any]:
    """The content of summary.json; `ended` are the keys of jobs whose last record still holds.

    An upload that failed has a row like a job.
    """
    urls = {upload.repo: ledger.last(upload.key).get("url") for upload in uploads}
    rows = [
        _job(job, ledger.last(job.key) if job.key in ended else {}, urls.get(job.upload or ""))
        for job in jobs
    ]
    rows += [_upload(upload) for upload in uploads if urls[upload.repo] is None and upload.ready()]
    count = Counter(row["status"] for row in rows)
    outputs = [output for row in rows for output in row["outputs"]]
    return {
        "schema_version": SCHEMA_VERSION,
        "manifest": manifest,
        "shard": shard,
        "jobs": rows,
        "totals": {
            "jobs": len(rows),
            **{status: count[status] for status in (DONE, FAILED_JOB, SKIPPED)},
            "outputs": len(outputs),
            "size_bytes": sum(output["size_bytes"] for output in outputs),
            "seconds": round(seconds, 3),
        },
    }


def _job(job: BatchJob, record: dict[str, Any], url: str | None) -> dict[str, Any]:
    source = record.get("source", {})
    status, code, error = SKIPPED, None, None
    if record.get("event") == FAILED:
        status, code, error = FAILED_JOB, record["exit_code"], record["error"]
    elif record.get("event") == FINISHED:
        missed = misses(job.job.gate, record)
        status, code = (FAILED_JOB, INTEGRITY) if missed else (DONE, 0)
        error = "; ".join(missed) or None
    return {
        "name": job.name,
        "source": job.source,
        "revision": source.get("revision") or job.job.revision,
        "method": job.job.method,
        "recipe": job.recipe,
        "status": status,
        "exit_code": code,
        "error": error,
        "attempts": record.get("attempts", 0),
        "seconds": record.get("seconds"),
        "peak_memory_bytes": record.get("peak_memory_bytes"),
        "architecture": source.get("architecture"),
        "parameters": source.get("parameters"),
        "outputs": record.get("outputs", []),
        "reports": record.get("reports", []),
        "warnings": record.get("warnings", []),
        "published": url,
    }


def _upload(upload: Upload) -> dict[str, Any]:
    """The row of an upload that failed, or that was not begun."""
    record = upload.ledger.last(upload.key)
    return {
        **_job(upload.jobs[0], {}, None),
        "name": upload.name,
        "source": upload.repo,
        "revision": None,
        "method": "upload",
        "recipe": None,
        "status": FAILED_JOB if record else SKIPPED,
        "exit_code": record.get("exit_code"),
        "error": record.get("error"),
        "attempts": record.get("attempts", 0),
    }


def failures(summary: dict[str, Any]) -> list[str]:
    """One line for each job that did not succeed."""
    return [
        f"{row['name']}: {row['error']} (exit {row['exit_code']})"
        if row["status"] == FAILED_JOB
        else f"{row['name']}: not run"
        for row in summary["jobs"]
        if row["status"] != DONE
    ]
