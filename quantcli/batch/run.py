"""A batch from its manifest to its shelf: read `run` top to bottom.

manifest -> jobs -> leave out what is finished -> plan the rest -> check the disk -> run, lane by
lane -> summary, index.
"""

import fnmatch
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantcli.batch.board import Board
from quantcli.batch.driver import Driver
from quantcli.batch.executor import Executor
from quantcli.batch.expand import BatchJob, expand
from quantcli.batch.ledger import FAILED, Ledger
from quantcli.batch.manifest import read_manifest
from quantcli.batch.preflight import Needs, Planned, check_disk, needs, plan_all, with_threads
from quantcli.batch.retries import PERMANENT
from quantcli.batch.summary import summary_document
from quantcli.batch.task import Conversion, Task, Upload
from quantcli.errors import UsageError
from quantcli.gguf_file import write_file
from quantcli.report.index_page import index_page


@dataclass(frozen=True)
class Batch:
    """What a user asks for.

    shard: (i, n), the i-th of n parts, from 1; only: a pattern of job names as in a shell;
    cores, memory (bytes): of all jobs together; environment: of the child processes, beside ours.
    """

    manifest: Path
    root: Path
    executor: Callable[[], Executor]
    cores: int
    memory: int
    environment: dict[str, str]
    shard: tuple[int, int] | None = None
    only: str | None = None
    upload: str | None = None
    retry_failed: bool = False
    fail_fast: bool = False
    force: bool = False
    delete_source: bool = False

    @property
    def shard_name(self) -> str | None:
        """ "2/4"."""
        return "{}/{}".format(*self.shard) if self.shard else None


def run(batch: Batch, board: Board) -> dict[str, Any]:
    """Run a batch; returns its summary, which summary.json and index.html under the root show.

    Raises:
        ManifestError: before anything starts.
        ResourceError: too little disk, before anything starts; no ledger can be written.
        OutputExistsError: another process runs this batch.
    """
    began = time.monotonic()
    everything = _all_jobs(batch)
    jobs = _chosen(everything, batch)
    batch.root.mkdir(parents=True, exist_ok=True)
    with Ledger(batch.root, batch.shard_name) as ledger:
        ended = _ended(batch, jobs, ledger)
        planned, needed = plan(batch, [job for job in jobs if job.key not in ended], board)
        check_disk(needed, batch.root)
        root = batch.root.absolute()
        tasks = [Conversion(each, root, ledger, force=batch.force) for each in planned]
        uploads = _uploads(batch, jobs, everything, ledger)
        more = [upload for upload in uploads if "url" not in ledger.last(upload.key)]
        board.begin(len(jobs) + len(more), len(ended), sum(each.seconds for each in planned))
        try:
            ended |= _work(batch, _lanes(tasks, uploads, batch.delete_source), ledger, board)
        finally:
            board.finish()
        seconds = time.monotonic() - began
        name, shard = batch.manifest.name, batch.shard_name
        summary = summary_document(name, shard, jobs, uploads, ledger, ended, seconds)
    _write(summary, batch)
    return summary


def planned_jobs(batch: Batch, board: Board) -> tuple[list[Planned], Needs]:
    """The whole batch planned, whatever is finished already.

    Raises:
        ManifestError, UsageError: as `run`.
    """
    return plan(batch, _chosen(_all_jobs(batch), batch), board)


def _all_jobs(batch: Batch) -> list[BatchJob]:
    return expand(read_manifest(batch.manifest), batch.root.absolute(), batch.upload)


def _chosen(jobs: list[BatchJob], batch: Batch) -> list[BatchJob]:
    """The jobs of this shard that the pattern names."""
    if batch.only is not None:
        jobs = [job for job in jobs if fnmatch.fnmatchcase(job.name, batch.only)]
        if not jobs:
            raise UsageError(f"--only {batch.only!r} names no job of {batch.manifest.name}")
    if batch.shard is None:
        return jobs
    index, count = batch.shard
    lanes = list(dict.fromkeys(job.lane for job in jobs))
    mine = set(lanes[index - 1 :: count])
    return [job for job in jobs if job.lane in mine]


def plan(batch: Batch, jobs: Sequence[BatchJob], board: Board) -> tuple[list[Planned], Needs]:
    """Plan the jobs, and add up what they need."""
    board.planning(len(jobs))
    planned = plan_all(
        jobs, cores=batch.cores, environment=batch.environment, planned=board.planned
    )
    planned = with_threads(planned, batch.cores, batch.memory)
    return planned, needs(planned, batch.cores, batch.delete_source)


def _ended(batch: Batch, jobs: Sequence[BatchJob], ledger: Ledger) -> set[str]:
    """Keys of jobs that are not to be run: finished, or failed for good in an earlier run."""
    if batch.force:
        return set()
    ended = ledger.intact(job.key for job in jobs)
    if not batch.retry_failed:
        for job in jobs:
            record = ledger.last(job.key)
            if record.get("event") == FAILED and record["exit_code"] in PERMANENT:
                ended.add(job.key)
    return ended


def _uploads(
    batch: Batch, jobs: Sequence[BatchJob], everything: Sequence[BatchJob], ledger: Ledger
) -> list[Upload]:
    """One for each repository that a chosen job goes to, with all jobs that go there."""
    again = batch.retry_failed or batch.force
    groups: dict[str, list[BatchJob]] = defaultdict(list)
    for job in everything:
        if job.upload is not None:
            groups[job.upload].append(job)
    wanted = dict.fromkeys(job.upload for job in jobs if job.upload is not None)
    root = batch.root.absolute()
    return [Upload(repo, groups[repo], root, ledger, again) for repo in wanted]


def _lanes(
    tasks: Sequence[Conversion], uploads: Sequence[Upload], delete_source: bool
) -> list[Sequence[Task]]:
    """Tasks by source, uploads last; the longest lane first: it would be the last to end.

    Before all come plans that failed, which cost nothing to report. delete_source: whether the
    last conversion of a lane removes what was downloaded for it.
    """
    lanes: dict[object, list[Conversion]] = defaultdict(list)
    for task in tasks:
        lanes[task.planned.job.lane].append(task)
    for lane in lanes.values():
        if storing := [task for task in lane if not task.planned.job.job.stream]:
            storing[-1].delete_source = delete_source and storing[-1].planned.job.on_hub
    ends: dict[object, list[Upload]] = defaultdict(list)
    for upload in uploads:
        ends[upload.jobs[0].lane].append(upload)
    order = sorted(lanes, key=lambda lane: _urgency(lanes[lane]))
    only_uploads = [lane for lane in ends if lane not in lanes]
    return [[*lanes.get(lane, []), *ends.get(lane, [])] for lane in (*order, *only_uploads)]


def _urgency(lane: Sequence[Conversion]) -> tuple[bool, float]:
    fine = all(task.planned.failure is None for task in lane)
    return fine, -sum(task.planned.seconds for task in lane)


def _work(batch: Batch, lanes: Sequence[Sequence[Task]], ledger: Ledger, board: Board) -> set[str]:
    """Run what is to be run; keys of the tasks that came to an end."""
    if not any(task.wanted() for lane in lanes for task in lane):
        return set()
    with batch.executor() as executor:
        return Driver(executor, ledger, board, fail_fast=batch.fail_fast).run(lanes)


def _write(summary: dict[str, Any], batch: Batch) -> None:
    suffix = f"-{batch.shard_name.replace('/', '-of-')}" if batch.shard_name else ""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_file(batch.root / f"summary{suffix}.json", text.encode(), force=True)
    write_file(batch.root / f"index{suffix}.html", index_page(summary).encode(), force=True)
