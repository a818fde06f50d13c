"""Before a batch starts: every job planned from headers alone, and room for all of it on disk."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from quantcli.batch.children import Outcome, Planner
from quantcli.batch.expand import BatchJob
from quantcli.batch.orders import Order, to_line
from quantcli.errors import ResourceError
from quantcli.methods import method_info


@dataclass(frozen=True)
class Planned:
    """A job with what planning it found out, or why that failed.

    threads: how many cores it gets; seconds: a rough estimate of its conversion.
    """

    job: BatchJob
    plan: dict[str, Any] = field(default_factory=dict)
    failure: Outcome | None = None
    threads: int = 1

    @property
    def memory_bytes(self) -> int | None:
        """Planned private memory; None where planning failed."""
        return self.plan["memory"][str(self.threads)] if self.plan else None

    @property
    def output_bytes(self) -> int:
        """Size of all outputs."""
        return sum(output["size_bytes"] for output in self.plan.get("outputs", ()))

    @property
    def download_bytes(self) -> int:
        """Weights to be fetched from the hub, stored or not."""
        return self.plan.get("download_bytes", 0)

    @property
    def seconds(self) -> float:
        """Estimated time of the conversion, downloads apart."""
        return estimate(self) if self.plan else 0.0


# Seconds, measured on two cores of an AMD EPYC (see README): a rough guide before a batch has
# times of its own.
START_SECONDS = 0.6
ROUND_SECONDS = 15e-9  # per weight and type, one thread
COMPENSATE_SECONDS = 1.8e-6  # per weight and type of methods that calibrate, two threads
FLOPS = 95e9  # of the forward pass, one thread
EVALUATED_TOKENS = 24 * 512


def estimate(planned: Planned) -> float:
    """Seconds that a conversion takes, from the numbers above."""
    job, plan = planned.job.job, planned.plan
    encoded, threads = plan["weights"], planned.threads
    each = 2 * COMPENSATE_SECONDS if method_info(job.method).calibrates else ROUND_SECONDS
    flops = 0.0
    if job.text is not None and not job.calibrates:
        flops += 2 * plan["parameters"] * plan["tokens"]
    if job.evaluate is not None:
        flops += 2 * plan["parameters"] * EVALUATED_TOKENS * (1 + len(plan["outputs"]))
    return START_SECONDS + (encoded * each + flops / FLOPS) / threads


def plan_all(
    jobs: Sequence[BatchJob],
    *,
    cores: int,
    environment: dict[str, str],
    planned: Callable[[], object],
) -> list[Planned]:
    """Plan every job, by as many child processes as cores; `planned` hears of each.

    A job that cannot be planned is told with its failure; a network that fails is not one: the
    job will try again itself.
    """
    count = max(1, min(cores, len(jobs) // 4))
    planners = [Planner(environment) for _ in range(count)]

    def work(start: int) -> list[Planned]:
        found = []
        for job in jobs[start::count]:
            found.append(_plan(job, planners[start], cores))
            planned()
        return found

    try:
        with ThreadPoolExecutor(count) as pool:
            parts = list(pool.map(work, range(count)))
    finally:
        for planner in planners:
            planner.close()
    return [parts[i % count][i // count] for i in range(len(jobs))]


def _plan(job: BatchJob, planner: Planner, cores: int) -> Planned:
    # A folder that is not there yet is as good as any that is.
    order = Order("plan", job.job, cores=cores)
    outcome = planner.ask(to_line(order))
    if outcome.exit_code:
        return Planned(job, failure=outcome)
    return Planned(job, outcome.result)


def with_threads(planned: Sequence[Planned], cores: int, memory: int) -> list[Planned]:
    """The jobs with as many threads as `share` gives them and fit into the memory.

    What the manifest says comes first.
    """
    lanes = len({each.job.lane for each in planned})
    total = sum(each.seconds for each in planned)

    def threads(each: Planned) -> int:
        if each.job.job.threads > 1 or not each.plan:
            return min(cores, each.job.job.threads)
        together = min(cores, lanes, max(1, memory // each.plan["memory"]["1"]))
        wanted = share(each.seconds, total, cores, together)
        while wanted > 1 and each.plan["memory"][str(wanted)] > memory:
            wanted -= 1
        return wanted

    return [replace(each, threads=threads(each)) for each in planned]


def share(seconds: float, total: float, cores: int, together: int) -> int:
    """Cores for a job of so many seconds of one core, out of `total` for all jobs.

    All cores divided by the jobs that can run at once, as many as there are sources and as fit
    into the memory; more for one that would still run on its own when all others have ended.
    """
    return max(cores // together, min(cores, round(seconds * cores / total)))


@dataclass(frozen=True)
class Needs:
    """What a batch needs, in bytes; `downloads` of each source once, of streams for each job."""

    downloads: int
    outputs: int
    sources_at_once: int  # of the downloads that are on disk at the same time


def needs(planned: Sequence[Planned], at_once: int, delete_source: bool) -> Needs:
    """Add up: with delete_source only the largest `at_once` downloads are there together."""
    stored = {e.job.lane: e.download_bytes for e in planned if not e.job.job.stream}
    streamed = sum(each.download_bytes for each in planned if each.job.job.stream)
    downloads = sorted(stored.values(), reverse=True)
    return Needs(
        downloads=sum(downloads) + streamed,
        outputs=sum(each.output_bytes for each in planned),
        sources_at_once=sum(downloads[:at_once] if delete_source else downloads),
    )


def check_disk(found: Needs, root: Path) -> None:
    """Refuse a batch that does not fit on the disk.

    Raises:
        ResourceError: with the numbers.
    """
    cache = _existing(Path(constants.HF_HUB_CACHE).absolute())
    wanted = {root: found.outputs, cache: found.sources_at_once}
    if root.stat().st_dev == cache.stat().st_dev:
        wanted = {root: found.outputs + found.sources_at_once}
    for folder, size in wanted.items():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise ResourceError(
                f"{folder}: the batch needs {size} bytes ({found.outputs} of outputs, "
                f"{found.sources_at_once} of downloads) but {free} are free; free some space, "
                "use --delete-source, or --only for a part of the batch"
            )


def _existing(folder: Path) -> Path:
    while not folder.is_dir():
        folder = folder.parent
    return folder
