"""Batches as tables for a person at a terminal: what will be done, and what was."""

from pathlib import PurePosixPath
from typing import Any

from rich.console import Console
from rich.text import Text

from quantcli.report.terminal import table
from quantcli.report.words import count, duration, plain, size

MOST_ROWS = 60  # of a table: the rest is in summary.json and index.html


def show_dry_run(document: dict[str, Any], console: Console) -> None:
    """Jobs with their sizes, then the totals."""
    shown = table(
        f"{document['manifest']}: {document['totals']['jobs']} jobs",
        ("Job", "left"),
        ("Files", "right"),
        ("Download", "right"),
        ("Output", "right"),
        ("Memory", "right"),
        ("Time", "right"),
    )
    for job in document["jobs"][:MOST_ROWS]:
        if job["error"]:
            shown.add_row(plain(job["name"]), "", "", "", "", f"exit {job['exit_code']}")
            continue
        shown.add_row(
            plain(job["name"]),
            str(len(job["outputs"])),
            size(job["download_bytes"]),
            size(sum(output["size_bytes"] for output in job["outputs"])),
            size(job["peak_memory_bytes"]),
            duration(job["seconds"]),
        )
    console.print(shown)
    _left_out(len(document["jobs"]), console)
    totals = document["totals"]
    for job in document["jobs"]:
        if job["error"]:
            line = f"{plain(job['name'])}: {plain(job['error'])} (exit {job['exit_code']})"
            console.print(Text(line), overflow="fold")
    console.print(
        f"downloads {size(totals['download_bytes'])} · outputs {size(totals['output_bytes'])} · "
        f"disk {size(totals['disk_bytes'])} · peak memory {size(totals['peak_memory_bytes'])} of "
        f"{size(document['memory_bytes'])} · about {duration(totals['seconds'])} on "
        f"{document['cores']} cores, downloads apart",
        highlight=False,
    )


def show_summary(summary: dict[str, Any], root: str, console: Console) -> None:
    """One row per output or failure, then the totals."""
    totals = summary["totals"]
    shown = table(
        "",
        ("File", "left"),
        ("Method", "left"),
        ("Size", "right"),
        ("bpw", "right"),
        ("KLD", "right"),
        ("Top-1", "right"),
        ("Time", "right"),
    )
    shown.title = None
    rows = [row for job in summary["jobs"] for row in _rows(job)]
    for row in rows[:MOST_ROWS]:
        shown.add_row(*row)
    if rows:
        console.print(shown)
    _left_out(len(rows), console)
    parts = [f"{totals['done']} of {totals['jobs']} jobs done"]
    parts += [f"{totals[name]} {name}" for name in ("failed", "skipped") if totals[name]]
    parts += [f"{count(totals['outputs'])} files", size(totals["size_bytes"])]
    console.print(" · ".join([*parts, duration(totals["seconds"])]), highlight=False)
    console.print(Text(f"{root}/index.html", style="dim"))


def _rows(job: dict[str, Any]) -> list[list[str]]:
    time = "" if job["seconds"] is None else duration(job["seconds"])
    if not job["outputs"]:
        state = f"exit {job['exit_code']}" if job["exit_code"] is not None else "not run"
        return [[plain(job["name"]), "", "", "", "", "", state]]
    return [_row(job, output, time if i == 0 else "") for i, output in enumerate(job["outputs"])]


def _row(job: dict[str, Any], output: dict[str, Any], time: str) -> list[str]:
    quality = output["quality"] or {}
    kld, top1 = quality.get("kld_mean"), quality.get("top1_agreement")
    return [
        plain(PurePosixPath(output["path"]).name),
        job["method"] + (" !" if job["status"] == "failed" else ""),
        size(output["size_bytes"]),
        f"{output['bpw']:.2f}",
        "" if kld is None else f"{kld:.5f}",
        "" if top1 is None else f"{100 * top1:.1f} %",
        time,
    ]


def _left_out(rows: int, console: Console) -> None:
    if rows > MOST_ROWS:
        console.print(Text(f"and {rows - MOST_ROWS} more", style="dim"))
