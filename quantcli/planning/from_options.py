"""From what a user writes, flags or a manifest's keys, to a Job: flags extend the recipe file."""

from pathlib import Path
from typing import Any

from quantcli.calibration.text import BUILTIN
from quantcli.errors import UsageError
from quantcli.evaluation.gate import Gate
from quantcli.methods import method_info
from quantcli.planning.job import Job, default_threads
from quantcli.planning.ram import parse_size
from quantcli.planning.target import Target
from quantcli.recipes import Recipe, read_recipe, recipe_from_flags

DEFAULT_TYPE = "Q4_K_M"
AUTO = Path("auto")
MOST_BPW = 32


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
    target: Target | None = None,
    save_recipe: Path | None = None,
    on_fallback: str,
    evaluate: str | None = None,
    gate: Gate | None = None,
    **rest: Any,
) -> Job:
    """Build the job; `types` is the comma-separated --type value, None for the default.

    Raises:
        UsageError: for values that no job can have.
    """
    recipe = read_recipe(recipe_file) if recipe_file else Recipe()
    _check_target(target, save_recipe, types, recipe, flags["pure"])
    if types is None:
        types = recipe.file_type or DEFAULT_TYPE
    return Job(
        source=source,
        types=tuple(name for name in types.split(",") if name),
        recipe=recipe.merged_with(recipe_from_flags(**flags)),
        method=method,
        on_fallback=on_fallback,
        threads=threads or default_threads(),
        target=target,
        save_recipe=save_recipe,
        evaluate=evaluate or (BUILTIN if gate and gate.needs_quality else None),
        gate=gate or Gate(),
        **_statistics(method, imatrix, calibration, calibration_tokens, target),
        **rest,
    )


def _statistics(
    method: str,
    imatrix: Path | None,
    calibration: str | None,
    tokens: int | None,
    target: Target | None,
) -> dict[str, Any]:
    """The job's fields for what calibrates, or for an importance matrix."""
    if imatrix == AUTO or method_info(method).calibrates or target is not None:
        if imatrix not in (None, AUTO):
            who = target.option if target else f"--method {method}"
            raise UsageError(f"{who} makes its own statistics; leave --imatrix out")
        limit = {"calibration_tokens": tokens} if tokens else {}
        return {"calibrate": calibration or BUILTIN, **limit}
    if calibration or tokens:
        raise UsageError(
            "--calibration and --calibration-tokens are for --imatrix auto, for targets, and for "
            "methods that calibrate (`quantcli list methods`)"
        )
    return {"imatrix": imatrix}


def make_target(size: str | None, bpw: float | None, ram: str | None) -> Target | None:
    """What the one given of --target-size, --target-bpw and --fit-ram means.

    Raises:
        UsageError: for several of them, or for what is no size.
    """
    given = {"--target-size": size, "--target-bpw": bpw, "--fit-ram": ram}
    options = [f"{name} {value}" for name, value in given.items() if value is not None]
    if len(options) > 1:
        raise UsageError(f"{' and '.join(options)} exclude each other; keep one")
    if size is not None:
        return Target(options[0], size_bytes=parse_size(size, "--target-size"))
    if ram is not None:
        return Target(options[0], ram_bytes=parse_size(ram, "--fit-ram"))
    if bpw is None:
        return None
    if not 0 < bpw <= MOST_BPW:
        raise UsageError(f"--target-bpw {bpw} is not a number of bits above 0, at most {MOST_BPW}")
    return Target(options[0], bpw=bpw)


def make_gate(max_kld: float | None, min_top1: float | None, max_size: str | None) -> Gate:
    """What --max-kld, --min-top1 and --max-size mean.

    Raises:
        UsageError: for what is no size.
    """
    return Gate(max_kld, min_top1, parse_size(max_size, "--max-size") if max_size else None)


def _check_target(
    target: Target | None, save_recipe: Path | None, types: str | None, recipe: Recipe, pure: bool
) -> None:
    if target is None:
        if save_recipe is not None:
            raise UsageError(
                "--save-recipe is for --target-size, --target-bpw and --fit-ram; "
                "a fixed --type is its own recipe"
            )
        return
    others = {"--type": types, "--pure": pure, "the recipe's type": recipe.file_type or recipe.pure}
    for name, given in others.items():
        if given:
            raise UsageError(
                f"{target.option} chooses the types itself; leave out {name} "
                "(--tensor-type and a recipe's [tensors] are kept)"
            )
    if save_recipe is not None and save_recipe.suffix != ".toml":
        raise UsageError(f"--save-recipe {str(save_recipe)!r}: the name must end in .toml")
