"""Plans and surveys: what would be written, as tables and as JSON."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantcli.planning import Plan, PlannedFile
from quantcli.planning.survey import Survey
from quantcli.planning.target import possible_sizes
from quantcli.report.as_json import SCHEMA_VERSION
from quantcli.report.terminal import table
from quantcli.report.words import count, shape, size


def plan_document(plan: Plan) -> dict[str, Any]:
    """The document that `convert --dry-run --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": _source(plan),
        "outputs": [_file(file) for file in plan.files],
        **_download(plan),
        "disk_bytes": plan.disk_bytes,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "warnings": plan.all_warnings,
        **({"target": _target(plan)} if plan.job.target else {}),
    }


def survey_document(survey: Survey) -> dict[str, Any]:
    """The document that `plan --json` prints."""
    plan = survey.plan
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "source": _source(plan),
        "types": [_type(survey, file) for file in plan.files],
        "outputs": [_file(file) for file in survey.chosen],
        **_download(plan),
        "peak_memory_bytes": survey.to_convert.peak_memory_bytes,
        "warnings": survey.warnings,
    }
    if survey.running is not None:
        recommended = survey.recommended
        document["running"] = {
            "context": survey.running.context,
            "budget_bytes": survey.budget,
            "kv_cache_bytes": survey.running.kv_cache,
            "overhead_bytes": survey.running.overhead,
            "recommended": recommended.file_type.name if recommended else None,
        }
    return document


def show_plan(plan: Plan, console: Console) -> None:
    """What `convert --dry-run` would do."""
    console.print(_title(plan))
    for file in plan.files:
        console.print(_tensors(file))
        console.print(f"would write {file.path}: {_size(file)}", highlight=False)
    if plan.job.target is not None:
        console.print(_target_line(plan), highlight=False)
    _needs(plan, plan.disk_bytes, console)


def show_survey(survey: Survey, console: Console) -> None:
    """Every file type side by side, the chosen ones tensor by tensor, and advice."""
    console.print(_title(survey.plan))
    for file in survey.chosen:
        console.print(_tensors(file))
    console.print(_types(survey))
    if survey.budget is not None:
        console.print(advice(survey), highlight=False)
    _needs(survey.to_convert, sum(file.size_bytes for file in survey.chosen), console)


def advice(survey: Survey) -> str:
    """Which type to take on the machine at hand, in plain words."""
    needs, budget = survey.running, survey.budget
    if needs is None or budget is None:
        return ""
    where = f"{size(budget)} with {needs.context} tokens of context"
    best = survey.recommended
    if best is None:
        smallest = min(survey.plan.files, key=lambda file: file.size_bytes)
        least = size(survey.ram_bytes(smallest) or 0)
        return (
            f"No file type runs in {where}: the smallest, {smallest.file_type.name}, needs "
            f"{least}. Try a shorter --context or a smaller model."
        )
    spare = size(budget - (survey.ram_bytes(best) or 0))
    return (
        f"Take {best.file_type.name} for {where}: {best.file_type.note}; "
        f"{spare} stay free. The KV cache takes {size(needs.kv_cache)}."
    )


def _download(plan: Plan) -> dict[str, int]:
    """Bytes of the source's weights: all of them, and what is not yet here."""
    source = plan.checkpoint
    return {"source_bytes": source.source_bytes, "download_bytes": source.missing_bytes}


def _target(plan: Plan) -> dict[str, Any]:
    least, most = possible_sizes(plan.files[0])
    target = plan.job.target
    return {
        "option": target.option if target else "",
        "budget_bytes": target.file_bytes(plan.files[0]) if target else 0,
        "smallest_bytes": least,
        "largest_bytes": most,
    }


def _target_line(plan: Plan) -> str:
    facts = _target(plan)
    return (
        f"{facts['option']}: at most {size(facts['budget_bytes'])}; types make between "
        f"{size(facts['smallest_bytes'])} and {size(facts['largest_bytes'])}. The types above are "
        "a guess: what each costs is measured before quantizing."
    )


def _title(plan: Plan) -> Text:
    facts = f"{plan.architecture} · {count(plan.parameters)} parameters"
    return Text(f"{plan.checkpoint.id} · {facts}", style="bold")


def _size(file: PlannedFile) -> str:
    return f"{size(file.size_bytes)}, {file.bpw:.2f} bits per weight"


def _needs(plan: Plan, disk: int, console: Console) -> None:
    line = f"peak memory at most {size(plan.peak_memory_bytes)} with {plan.job.threads} threads"
    needs = {"download": plan.checkpoint.missing_bytes, "disk": disk}
    first = "".join(f"{what} {size(nbytes)} · " for what, nbytes in needs.items() if nbytes)
    console.print(first + line, style="dim", highlight=False)


def _types(survey: Survey) -> Table:
    columns = [("Type", "left"), ("Size", "right"), ("bpw", "right")]
    if survey.running:
        columns += [("RAM", "right"), ("Fits", "left")]
    shown = table("", *columns, ("Note", "left"))
    shown.title = None
    for file in survey.plan.files:
        cells = [file.file_type.name, size(file.size_bytes), f"{file.bpw:.2f}"]
        if survey.running:
            cells += [size(survey.ram_bytes(file) or 0), "yes" if survey.fits(file) else "no"]
        best = survey.recommended is file
        shown.add_row(*cells, file.file_type.note, style="bold" if best else None)
    return shown


def _tensors(file: PlannedFile) -> Table:
    shown = table(
        f"{file.file_type.name}: {_size(file)}",
        ("Tensor", "left"),
        ("Type", "left"),
        ("Shape", "right"),
        ("Size", "right"),
        ("Fallback", "left"),
    )
    for tensor in file.tensors:
        shown.add_row(
            tensor.name,
            tensor.type.name,
            shape(tensor.shape),
            size(tensor.nbytes),
            f"wanted {tensor.choice.wanted}" if tensor.fallback else "",
        )
    return shown


def _source(plan: Plan) -> dict[str, Any]:
    return {
        "id": plan.checkpoint.id,
        "revision": plan.checkpoint.revision,
        "architecture": plan.architecture,
        "parameters": plan.parameters,
    }


def _type(survey: Survey, file: PlannedFile) -> dict[str, Any]:
    return {
        "name": file.file_type.name,
        "size_bytes": file.size_bytes,
        "bpw": round(file.bpw, 4),
        "ram_bytes": survey.ram_bytes(file),
        "fits": survey.fits(file),
        "fallbacks": sum(t.fallback is not None for t in file.tensors),
        "note": file.file_type.note,
    }


def _file(file: PlannedFile) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "file_type": file.file_type.name,
        "size_bytes": file.size_bytes,
        "bpw": round(file.bpw, 4),
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.type.name,
                "shape": list(reversed(tensor.shape)),
                "size_bytes": tensor.nbytes,
                "fallback": tensor.fallback,
            }
            for tensor in file.tensors
        ],
    }
