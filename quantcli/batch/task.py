"""What the driver runs: conversions, and the upload of what they made."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any, Protocol

from quantcli.batch.children import Outcome
from quantcli.batch.expand import BatchJob
from quantcli.batch.ledger import FAILED, FINISHED, Ledger
from quantcli.batch.orders import Order, Publication, to_line
from quantcli.batch.preflight import Planned
from quantcli.batch.retries import PERMANENT
from quantcli.errors import IntegrityError, OutputExistsError, ResourceError
from quantcli.evaluation.gate import Gate
from quantcli.evaluation.quality import Quality

UPLOAD_BYTES = 256 << 20  # of memory


class Task(Protocol):
    """`key` tells it apart in the ledger; attempts and the share of memory are the driver's."""

    outputs: tuple[str, ...]
    cores: int
    attempt: int
    memory_factor: int

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    def wanted(self) -> bool:
        """Whether there is anything to do, now that it is its turn."""

    def refusal(self, memory: int) -> Outcome | None:
        """Why it must not be begun; memory: bytes that it can have at most."""

    def line(self) -> str:
        """The order for a child process."""

    def memory(self, limit: int) -> int:
        """Bytes that it needs, of at most `limit`."""

    def facts(self, outcome: Outcome) -> dict[str, Any]:
        """What the ledger keeps of a success."""

    def misses(self) -> list[str]:
        """Limits of the gate that its outputs do not keep to."""


@dataclass
class Conversion:
    """A planned job."""

    planned: Planned
    root: Path
    ledger: Ledger
    force: bool = False
    delete_source: bool = False
    attempt: int = 0
    memory_factor: int = 1
    outputs: tuple[str, ...] = field(init=False)
    cores: int = field(init=False)

    def __post_init__(self) -> None:
        self.outputs, self.cores = self.planned.job.outputs, self.planned.threads

    @property
    def name(self) -> str:
        return self.planned.job.name

    @property
    def key(self) -> str:
        return self.planned.job.key

    def wanted(self) -> bool:
        return True

    def refusal(self, memory: int) -> Outcome | None:
        """A plan that failed for good or needs too much, an output that was there before."""
        failure, needed = self.planned.failure, self.planned.memory_bytes
        if failure is not None and failure.exit_code in PERMANENT:
            return failure
        if needed is not None and needed > memory:
            return Outcome(
                ResourceError.exit_code,
                f"may need {needed} bytes of memory, but a job can have {memory}; give --max-memory"
                " or fewer `threads`, or take another machine",
            )
        if large := self._too_large():
            return Outcome(IntegrityError.exit_code, "; ".join(large))
        for output in self.outputs:
            if not self.force and not self.ledger.knows(output):
                found = next(_present(self.root / output), None)
                if found is not None:
                    return Outcome(
                        OutputExistsError.exit_code,
                        f"{found}: the output exists, and no run of this batch made it; move it "
                        "away or use --force",
                    )
        return None

    def _too_large(self) -> list[str]:
        """Outputs that will miss their gate whatever they hold."""
        planned, gate = self.planned.plan.get("outputs", ()), self.planned.job.job.gate
        pairs = zip(self.outputs, planned, strict=False)
        return [line for name, it in pairs for line in gate.too_large(name, it["size_bytes"])]

    def line(self) -> str:
        job = self.planned.job
        reports = tuple(self.root / name for name in job.reports)
        run = replace(job.job, threads=self.cores, delete_source=self.delete_source)
        return to_line(Order("convert", run, reports=reports))

    def memory(self, limit: int) -> int:
        return min(limit, self.memory_factor * (self.planned.memory_bytes or limit))

    def facts(self, outcome: Outcome) -> dict[str, Any]:
        """The report without tensors, paths below the root; the files with their sha256."""
        report = outcome.result
        outputs, files = [], []
        for output in report["outputs"]:
            shards = output.pop("shards", None) or [
                {"path": output["path"], "sha256": output["sha256"]}
            ]
            for shard in shards:
                size = Path(shard["path"]).stat().st_size
                path = Path(shard["path"]).relative_to(self.root).as_posix()
                files.append({"path": path, "size_bytes": size, "sha256": shard["sha256"]})
            path = Path(output["path"]).relative_to(self.root).as_posix()
            outputs.append(output | {"path": path})
        return {
            **{key: report[key] for key in ("source", "seconds", "peak_memory_bytes", "warnings")},
            "outputs": outputs,
            "files": files,
            "reports": list(self.planned.job.reports),
        }

    def misses(self) -> list[str]:
        return misses(self.planned.job.job.gate, self.ledger.last(self.key))


@dataclass
class Upload:
    """The publication of what jobs of one source made, once all of them have met their gates."""

    repo: str
    jobs: list[BatchJob]
    root: Path
    ledger: Ledger
    again: bool  # even if it failed for good in an earlier run
    attempt: int = 0
    memory_factor: int = 1
    outputs: tuple[str, ...] = ()
    cores: int = 1

    @property
    def name(self) -> str:
        return f"upload {self.repo}"

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the ledger has of the jobs."""
        return [self.ledger.last(job.key) for job in self.jobs]

    @property
    def key(self) -> str:
        """Other content, or another place: another publication."""
        digests = [file["sha256"] for record in self.records for file in record.get("files", ())]
        text = " ".join([self.repo, *sorted(digests)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def ready(self) -> bool:
        """Whether all jobs are done and have met their gates."""
        pairs = zip(self.jobs, self.records, strict=True)
        return all(r.get("event") == FINISHED and not misses(job.job.gate, r) for job, r in pairs)

    def wanted(self) -> bool:
        if not self.ready():
            return False
        last = self.ledger.last(self.key)
        if last.get("event") == FAILED and last["exit_code"] in PERMANENT:
            return self.again
        return last.get("event") != FINISHED

    def refusal(self, memory: int) -> Outcome | None:
        return None

    def line(self) -> str:
        return to_line(Publication("publish", self.repo, self.root, tuple(self.records)))

    def memory(self, limit: int) -> int:
        return min(limit, self.memory_factor * UPLOAD_BYTES)

    def facts(self, outcome: Outcome) -> dict[str, Any]:
        """Where it is."""
        return {"url": outcome.result["url"], "files": []}

    def misses(self) -> list[str]:
        return []


def misses(gate: Gate, record: dict[str, Any]) -> list[str]:
    """Limits that the outputs of a finished job's record do not keep to."""
    return [
        line
        for output in record.get("outputs", ())
        for line in gate.misses(
            output["path"],
            output["size_bytes"],
            Quality(**output["quality"]) if output["quality"] else None,
        )
    ]


def _present(path: Path) -> Iterator[Path]:
    """The output itself, or shards of it."""
    if path.exists() or path.is_symlink():
        yield path
    yield from path.parent.glob(f"{escape(path.stem)}-*-of-*.gguf")
