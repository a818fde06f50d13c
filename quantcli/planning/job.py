"""What a user asks for: one conversion."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from quantcli.calibration.calibrate import TOKENS
from quantcli.planning.target import Target
from quantcli.recipes import Recipe


def default_threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Job:
    """One source, any number of file types.

    `output` is a file (one type only) or a folder; a folder gets GGUF-convention names.
    `split_max_bytes` cuts each output into shards of at most that many bytes of tensor data.
    `calibrate` names a text (see calibration.text.read_text) to make an importance matrix from,
    instead of one in a file, `imatrix`; at most `calibration_tokens` of it are used.
    `target` takes the place of `types`: one file, whose tensors' types are measured on the text
    that `calibrate` names; `save_recipe` is where to write them as a recipe.
    `evaluate` names a text (see calibration.text.read_text) to measure the outputs' quality on.
    """

    source: str
    types: tuple[str, ...] = ("Q4_K_M",)
    output: Path = Path()
    revision: str | None = None
    method: str = "rtn"
    recipe: Recipe = field(default_factory=Recipe)
    imatrix: Path | None = None
    calibrate: str | None = None
    calibration_tokens: int = TOKENS
    override_kv: tuple[str, ...] = ()
    pre_tokenizer: str | None = None
    on_fallback: str = "warn"
    split_max_bytes: int | None = None
    evaluate: str | None = None
    threads: int = field(default_factory=default_threads)
    force: bool = False
    target: Target | None = None
    save_recipe: Path | None = None

    @property
    def has_imatrix(self) -> bool:
        """Whether there will be an importance matrix."""
        return self.imatrix is not None or self.calibrate is not None
