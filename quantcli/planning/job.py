"""What a user asks for: one conversion."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from quantcli.calibration.calibrate import METHOD_TOKENS, TOKENS
from quantcli.calibration.text import BUILTIN
from quantcli.checkpoint import AdapterRef
from quantcli.errors import UsageError
from quantcli.evaluation.gate import Gate
from quantcli.methods import method_info
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
    `lora` are adapters whose updates are merged into the weights: what is made is the sum's.
    `keep_split` gives each file of a GGUF source its own output, `allow_requantize` takes one whose
    tensors are quantized already.
    `calibrate` names a text (see calibration.text.read_text) for methods that calibrate, or else
    to make an importance matrix from, instead of one in a file, `imatrix`; at most
    `calibration_tokens` of it are used, or as many as do for that (`most_tokens`).
    `resume` goes on where a run that calibrates was killed.
    `target` takes the place of `types`: one file, whose tensors' types are measured on the same
    text; `save_recipe` is where to write them as a recipe.
    `delete_source` removes the weights of a hub model from the cache as soon as they were read.
    `stream` reads the weights of a hub model from the network, once, and stores them nowhere.
    `max_memory_bytes` refuses a conversion that may need more private memory than that.
    `gate` is what the outputs must keep to: their size before the work, their quality after it.
    `evaluate` names a text (see calibration.text.read_text) to measure the outputs' quality on.
    """

    source: str
    types: tuple[str, ...] = ("Q4_K_M",)
    output: Path = Path()
    revision: str | None = None
    lora: tuple[AdapterRef, ...] = ()
    method: str = "rtn"
    recipe: Recipe = field(default_factory=Recipe)
    imatrix: Path | None = None
    calibrate: str | None = None
    calibration_tokens: int | None = None
    override_kv: tuple[str, ...] = ()
    pre_tokenizer: str | None = None
    on_fallback: str = "warn"
    split_max_bytes: int | None = None
    allow_requantize: bool = False
    keep_split: bool = False
    evaluate: str | None = None
    threads: int = field(default_factory=default_threads)
    max_memory_bytes: int | None = None
    force: bool = False
    resume: bool = False
    target: Target | None = None
    save_recipe: Path | None = None
    delete_source: bool = False
    stream: bool = False
    gate: Gate = field(default_factory=Gate)

    @property
    def has_imatrix(self) -> bool:
        """Whether there will be an importance matrix."""
        return self.imatrix is not None or (self.text is not None and not self.calibrates)

    @property
    def text(self) -> str | None:
        """What to calibrate on, if anything is to be calibrated."""
        return self.calibrate or (BUILTIN if self.calibrates or self.target else None)

    @property
    def most_tokens(self) -> int:
        """How much of the text to use at most."""
        return self.calibration_tokens or (METHOD_TOKENS if self.calibrates else TOKENS)

    @property
    def calibrates(self) -> bool:
        """Whether the method itself runs a text through the model."""
        return method_info(self.method).calibrates


def check_stream(job: Job) -> None:
    """What comes over the network comes once.

    Raises:
        UsageError: naming what would read weights again.
    """
    again = {
        f"--method {job.method}": job.calibrates,
        "a target": job.target is not None,
        "--imatrix auto": job.text is not None,
        "--evaluate": job.evaluate is not None,
        "--delete-source": job.delete_source,
    }
    for what in (name for name, wanted in again.items() if job.stream and wanted):
        why = "there is nothing to delete" if what == "--delete-source" else "it reads them again"
        raise UsageError(f"--stream reads the weights once, leave out {what}: {why}")
