"""`quantcli batch`."""

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantcli.cli import options

if TYPE_CHECKING:
    from quantcli.batch.executor import Executor
    from quantcli.batch.run import Batch

WHICH = "Which jobs"


def batch(
    manifest: Annotated[
        Path,
        typer.Argument(metavar="ZOO.toml", help="Models and what to make of them.", exists=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The shelf: outputs, reports, ledger, index.html.  [default: ./ZOO]",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="PATTERN",
            help="Jobs whose name matches, e.g. 'org/* gptq' (names: --dry-run).",
            rich_help_panel=WHICH,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="The I-th of N parts (from 1): for arrays of jobs on shared storage.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Also jobs that failed for good in an earlier run.",
            rich_help_panel=WHICH,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="All jobs anew, over finished and foreign outputs.",
            rich_help_panel=WHICH,
        ),
    ] = False,
    upload: Annotated[
        str | None,
        typer.Option(
            "--upload",
            metavar="REPO",
            help="Publish each model's files with a card and a Modelfile, e.g. 'org/{model}-GGUF'.",
        ),
    ] = None,
    delete_source: Annotated[
        bool,
        typer.Option(
            "--delete-source",
            help="Remove downloaded weights from the cache as they are used.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    fail_fast: Annotated[
        bool,
        typer.Option("--fail-fast", help="Stop at the first failure.", rich_help_panel=options.RUN),
    ] = False,
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="NAME",
            help="local, or dask (quantcli\\[dask]).",
            rich_help_panel=options.RUN,
        ),
    ] = "local",
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS",
            help="Of a Dask cluster, e.g. tls://host:8786; without it one on this machine.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    threads: options.Threads = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="For all jobs together.  [default: 85 % of the machine's]",
            show_default=False,
            rich_help_panel=options.RUN,
        ),
    ] = None,
    hub_rate: Annotated[
        int,
        typer.Option(
            "--hub-rate",
            metavar="N",
            min=1,
            help="Requests to the hub in five minutes, of all jobs together.",
            rich_help_panel=options.RUN,
        ),
    ] = 950,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show jobs, downloads, sizes, memory, disk, time; write nothing.",
            rich_help_panel=options.RUN,
        ),
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Convert a zoo of models: plan all, run what is not finished, survive any crash.

    Exit code 0 if every job succeeded and met its gate, else 10.

    Example: quantcli batch zoo.toml -o shelf/
    """
    from quantcli.batch.local import memory_limit
    from quantcli.batch.manifest import ManifestError
    from quantcli.batch.run import Batch
    from quantcli.checkpoint.rate import rate_environment
    from quantcli.planning import default_threads
    from quantcli.planning.ram import parse_size

    cores = threads or default_threads()
    memory = parse_size(max_memory, "--max-memory") if max_memory else memory_limit()
    part = _shard(shard)
    environment = rate_environment(hub_rate / (part[1] if part else 1))
    asked = Batch(
        manifest=manifest,
        root=output or Path(manifest.stem),
        executor=_executor(executor, scheduler, cores, memory, environment),
        cores=cores,
        memory=memory,
        environment=environment,
        shard=part,
        only=only,
        upload=upload,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
        force=force,
        delete_source=delete_source,
    )
    try:
        _run(asked, dry_run, quiet, as_json)
    except ManifestError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def _executor(
    name: str, scheduler: str | None, cores: int, memory: int, environment: dict[str, str]
) -> "Callable[[], Executor]":
    """What makes the executor, once there is something to run."""
    from quantcli.batch.local import Local
    from quantcli.errors import UsageError

    if name == "local":
        if scheduler is not None:
            raise UsageError("--scheduler is for --executor dask")
        return lambda: Local(cores, memory, environment)
    if name != "dask":
        raise UsageError(f"--executor {name!r}: there are local and dask")
    if find_spec("distributed") is None:
        raise UsageError("--executor dask needs distributed; pip install distributed")

    from quantcli.batch.dask_executor import Dask, check_address

    if scheduler is not None:
        check_address(scheduler)

    def make() -> "Executor":
        return Dask(scheduler, cores, memory, environment)

    return make


def _run(asked: "Batch", dry_run: bool, quiet: bool, as_json: bool) -> None:
    from quantcli.batch.run import run
    from quantcli.batch.summary import failures
    from quantcli.cli import render
    from quantcli.cli.dashboard import board_for
    from quantcli.errors import BatchError

    board = board_for(quiet)
    if dry_run:
        from quantcli.batch.dry_run import dry_run_document

        render.dry_run(dry_run_document(asked, board), as_json)
        return
    summary = run(asked, board)
    render.batch(summary, str(asked.root), as_json, quiet)
    failed = failures(summary)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    if failed:
        raise typer.Exit(BatchError.exit_code)


def _shard(text: str | None) -> tuple[int, int] | None:
    from quantcli.errors import UsageError

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text!r} is not like 2/8: a part from 1, of how many")
    return int(found[1]), int(found[2])
