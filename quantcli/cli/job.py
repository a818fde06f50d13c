"""From command-line values to a Job: flags extend and override the recipe file."""

from pathlib import Path
from typing import Any

from quantcli.calibration.text import BUILTIN
from quantcli.errors import UsageError
from quantcli.methods import method_info
from quantcli.planning import Job, default_threads
from quantcli.recipes import Recipe, read_recipe, recipe_from_flags

DEFAULT_TYPE = "Q4_K_M"
AUTO = Path("auto")


def make_job(
    source: str,
    types: str | None,
    recipe_file: Path | None,
    flags: dict[str, Any],
    *,
    imatrix: Path | None,
    calibration: str | None,
    calibration_tokens: int | None,
    threads: int | None,
    method: str = "rtn",
    on_fallback: str,
    **rest: Any,
) -> Job:
    """Build the job; `types` is the comma-separated --type value, None for the default.

    Raises:
        UsageError: for values that no job can have.
    """
    recipe = read_recipe(recipe_file) if recipe_file else Recipe()
    if types is None:
        types = recipe.file_type or DEFAULT_TYPE
    return Job(
        source=source,
        types=tuple(name for name in types.split(",") if name),
        recipe=recipe.merged_with(recipe_from_flags(**flags)),
        method=method,
        on_fallback=on_fallback,
        threads=threads or default_threads(),
        **_statistics(method, imatrix, calibration, calibration_tokens),
        **rest,
    )


def _statistics(
    method: str, imatrix: Path | None, calibration: str | None, tokens: int | None
) -> dict[str, Any]:
    """The job's fields for a method that calibrates, or for an importance matrix."""
    if imatrix == AUTO or method_info(method).calibrates:
        if imatrix not in (None, AUTO):
            raise UsageError(f"--method {method} makes its own statistics; leave --imatrix out")
        limit = {"calibration_tokens": tokens} if tokens else {}
        return {"calibrate": calibration or BUILTIN, **limit}
    if calibration or tokens:
        raise UsageError(
            "--calibration and --calibration-tokens are for --imatrix auto and for "
            "methods that calibrate (`quantcli list methods`)"
        )
    return {"imatrix": imatrix}
