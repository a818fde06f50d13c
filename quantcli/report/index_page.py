"""The index of a batch as one HTML file: what failed and why, then every model with its files.

It links to the files and reports beside it and to what was published, and loads nothing. It shows
no time of day and no folder of a machine. A shelf may hold 10,000 models: markup is kept short.
"""

import re
from collections import Counter, defaultdict
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from quantcli.report.loss_by_type import Measured, loss_by_type
from quantcli.report.page_parts import asset, render
from quantcli.report.quality import ACTIVATIONS
from quantcli.report.words import count, duration, plain, size

# What an exit code means, and what to do about it.
FAILURES: dict[int | None, tuple[str, str]] = {
    None: ("no answer", "The process or its machine ended before it could say why."),
    2: ("usage", "The job asks for something that makes no sense: correct the manifest."),
    3: ("bad input", "The input is broken: trying again will not help."),
    4: ("unsupported", "quantcli does not know how to convert this."),
    5: ("missing, gated or not authorised", "Check the name, the licence and HF_TOKEN."),
    6: ("network", "Worth a retry: run the batch again."),
    7: ("out of disk or memory", "Make room, or run it on a larger machine."),
    8: ("integrity or quality gate", "What was read or made is not what it should be."),
    9: ("output exists", "It exists already or is being written by another process."),
    130: ("interrupted", "Run the batch again."),
    143: ("interrupted", "Run the batch again."),
    -9: ("killed", "By the system, most often for want of memory."),
    137: ("killed", "By the system, most often for want of memory."),
}
BUG = ("a bug of quantcli", "Please report it, with the error line.")
MOST_FAILURES = 12  # shown at once of those with one exit code; others on demand
MOST_WARNINGS = 10  # of a job; its report has all
# A folder in front of a name, in quotes (where it may hold blanks) or bare; not inside a URL.
QUOTED_FOLDER = re.compile(r"""(['"])(?:~|[A-Za-z]:)?[/\\][^'"]*[/\\]([^'"]*)\1""")
FOLDER = re.compile(r"(?<![\w:/.~-])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"]+)+[/\\](?=[^\s/\\'\"])")


def index_page(summary: dict[str, Any]) -> str:
    """The page of a batch from the document that summary.json holds."""
    jobs = [_job(job) for job in summary["jobs"]]
    shelf = [job for job in jobs if job["outputs"]]
    failed = [job for job in jobs if job["status"] == "failed"]
    qualities = [q for job in jobs for output in job["outputs"] if (q := output["quality"])]
    manifest = _name(summary["manifest"])
    return render(
        "index.html",
        (asset("page.css"), asset("index.css")),
        ("sort.js", "index.js"),
        title=manifest,
        headline=_headline(shelf, summary["totals"]),
        facts=_facts(manifest, summary, jobs),
        totals=summary["totals"],
        failures=_failures(failed),
        most_failures=MOST_FAILURES,
        overview=_overview(shelf),
        shelf=shelf,
        rest=[job for job in jobs if not job["outputs"] and job["status"] != "failed"],
        measured=bool(qualities),
        evaluations=_evaluations(qualities),
    )


def without_folders(text: str) -> str:
    """A line without the folders of a machine: of an absolute path, only the last part stays."""
    return FOLDER.sub("", QUOTED_FOLDER.sub(r"\1\2\1", text))


def link(path: str) -> str | None:
    """A relative path as the address of a link; None for any that leaves the page's folder."""
    parts = path.split("/")
    if not path.isprintable() or not {"", ".", ".."}.isdisjoint(parts) or "\\" in path:
        return None
    return quote(path)  # a colon too: "javascript:" is a file's name like any other


def _name(source: str) -> str:
    """A hub id or relative path as it is; of an absolute path its last part."""
    anywhere = re.match(r"[/~\\.]|[A-Za-z]:[/\\]", source)
    return plain(re.split(r"[/\\]", source.rstrip("/\\"))[-1] if anywhere else source)


def _line(text: str) -> str:
    return plain(without_folders(text))


def _job(job: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of one model with one method."""
    warnings = [_line(warning) for warning in job["warnings"][:MOST_WARNINGS]]
    return {
        "name": _name(job["source"]),
        "status": job["status"],
        "exit_code": job["exit_code"],
        "error": _line(job["error"]) if job["error"] else None,
        "attempts": job["attempts"],
        "method": plain(job["method"]),
        "seconds": round(job["seconds"] or 0, 1),
        "memory": job["peak_memory_bytes"],
        "parameters": job["parameters"],
        "facts": _facts_of_job(job),
        "revision": plain(job["revision"]) if job["revision"] else None,
        "outputs": [_output(output) for output in job["outputs"]],
        "reports": [_report(path) for path in job["reports"]],
        "warnings": warnings,
        "more_warnings": len(job["warnings"]) - len(warnings),
        "published": _published(job["published"]) if job["published"] else None,
    }


def _facts_of_job(job: dict[str, Any]) -> list[str]:
    found = [
        job["status"] if job["status"] not in ("done", "failed") else None,
        plain(job["method"]),
        plain(job["recipe"]) if job["recipe"] else None,
        plain(job["architecture"]) if job["architecture"] else None,
        f"{count(job['parameters'])} parameters" if job["parameters"] else None,
        duration(job["seconds"]) if job["seconds"] is not None else None,
        f"{size(job['peak_memory_bytes'])} of memory" if job["peak_memory_bytes"] else None,
        f"{job['attempts']} attempts" if job["attempts"] > 1 else None,
    ]
    return [fact for fact in found if fact]


def _output(output: dict[str, Any]) -> dict[str, Any]:
    names = {"name": plain(output["path"].rsplit("/", 1)[-1]), "href": link(output["path"])}
    plains = {"file_type": plain(output["file_type"]), "sha256": plain(output["sha256"])}
    return output | names | plains


def _report(path: str) -> dict[str, Any]:
    kind = path.rsplit(".", 1)[-1].upper() if "." in path else "file"
    return {"kind": plain(kind), "href": link(path)}


def _published(address: str) -> dict[str, Any]:
    """An address of the web as a link, any other as text."""
    shown = plain(address)
    found = re.fullmatch(r"https?://([^\s\"'<>\\]+)", shown) if shown == address else None
    text = found[1].removeprefix("huggingface.co/") if found else shown
    return {"href": shown if found else None, "text": text}


def _plural(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def _headline(shelf: list[dict[str, Any]], totals: dict[str, Any]) -> str:
    if not totals["outputs"]:
        return "No files yet"
    models = _plural(len({job["name"] for job in shelf}), "model")
    return f"{models} in {_plural(totals['outputs'], 'file')}, {size(totals['size_bytes'])}"


def _facts(
    manifest: str, summary: dict[str, Any], jobs: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    totals = summary["totals"]
    peak = max((job["memory"] or 0 for job in jobs), default=0)
    found = [
        ("Manifest", manifest),
        ("Shard", plain(summary["shard"]) if summary["shard"] else None),
        ("Jobs done", f"{totals['done']:,} of {totals['jobs']:,}" if totals["jobs"] else None),
        ("Skipped", f"{totals['skipped']:,}" if totals["skipped"] else None),
        ("Time", duration(totals["seconds"]) if totals["seconds"] else None),
        ("Most memory of a job", size(peak) if peak else None),
    ]
    return [(name, value) for name, value in found if value]


def _failures(failed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failed jobs by exit code; bugs, which no user can mend, last."""
    groups: dict[int | None, list[dict[str, Any]]] = defaultdict(list)
    for job in failed:
        groups[job["exit_code"]].append(job)
    return [
        {"code": code, "meaning": meaning, "remedy": remedy, "jobs": groups[code]}
        for code in sorted(groups, key=lambda code: (code not in FAILURES, code or 0))
        for meaning, remedy in [FAILURES.get(code, BUG)]
    ]


def _overview(shelf: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Loss by file type over the whole shelf, where it was measured."""
    found = loss_by_type(
        Measured(output["file_type"], job["method"], output["bpw"], q["kld_mean"], top1)
        for job in shelf
        for output in job["outputs"]
        if (q := output["quality"]) and q["kld_mean"] is not None
        for top1 in [q["top1_agreement"]]
    )
    if found is None:
        return None
    return {
        "rows": [(row, Markup(row.strip)) for row in found.rows],
        "axis": Markup(found.axis),
        "lossless": found.lossless,
        "methods": len({row.method for row in found.rows}) > 1,
    }


def _evaluations(qualities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How quality was measured, most used first; figures compare only within one way."""
    keys = ("text_sha256", "context", "chunks", "activations")
    ways = Counter(tuple(quality[key] for key in keys) for quality in qualities)
    return [
        dict(zip(keys, way, strict=True))
        | {
            "files": files,
            "text_sha256": plain(way[0]),
            "activations": ACTIVATIONS.get(way[3], plain(way[3])),
        }
        for way, files in ways.most_common()
    ]
