"""The plan of a LoRA adapter as a GGUF file of its own, which llama.cpp applies while it runs.

Names, shapes and types are those of llama.cpp's convert_lora_to_gguf.py, but for scales: the file
has one alpha for all modules, so that other ones (rsLoRA, patterns) go into lora_b, and the SCALE
of --lora multiplies alpha.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from quantcli import __version__
from quantcli.architectures import OutputTensor, find
from quantcli.checkpoint import Adapter, open_adapter, open_checkpoint
from quantcli.errors import UnsupportedError, UsageError
from quantcli.gguf_file import Slot
from quantcli.planning.job import Job
from quantcli.planning.lora import check_places, lora_metadata, lora_warnings
from quantcli.planning.metadata import QUANTIZATION_VERSION
from quantcli.planning.names import check_distinct, output_path
from quantcli.planning.overrides import apply_overrides
from quantcli.planning.provenance import adapter_metadata
from quantcli.progress import Progress
from quantcli.recipes import FileType, file_type
from quantcli.tensor_types import TensorType, get

TYPES = ("F32", "F16", "BF16", "Q8_0")
# What a job may ask for; anything else is about models.
_ALLOWED = ("source", "lora", "types", "output", "revision", "override_kv", "threads", "force")


@dataclass(frozen=True, eq=False)
class Factor:
    """One tensor of the file, `name` in the adapter's: rows in the order `order`, times `factor`.

    transposed: the rows are its columns.
    """

    slot: str
    name: str
    shape: tuple[int, ...]
    factor: float = 1.0
    order: np.ndarray | None = None
    transposed: bool = False

    def rows(self, adapter: Adapter, rows: slice) -> np.ndarray:
        """Float32 [m, n]."""
        if self.transposed:
            return adapter.columns(self.name, rows)
        w = adapter.float32(self.name, rows if self.order is None else self.order[rows])
        return w if self.factor == 1.0 else w * np.float32(self.factor)


@dataclass(frozen=True)
class AdapterFile:
    """One output; `types` and `fallbacks` (why it is not the wanted type) are those of factors."""

    kind: FileType
    path: Path
    types: list[TensorType]
    fallbacks: list[str | None]
    slots: list[Slot]


@dataclass(frozen=True)
class AdapterPlan:
    """All of the job that is known before it is done."""

    adapter: Adapter
    architecture: str
    factors: list[Factor]
    metadata: dict[str, Any]
    files: list[AdapterFile]
    sources: list[Path]
    warnings: list[str]


def plan_adapter(job: Job, progress: Progress | None = None) -> AdapterPlan:
    """Open the one adapter of `job.lora`, and of the base, `job.source`, the headers only.

    Raises:
        QuantcliError: whatever can be known to be wrong.
    """
    kinds = _kinds(job)
    base = open_checkpoint(job.source, job.revision, weights=False, progress=progress)
    adapter = open_adapter(job.lora[0], base, progress)
    architecture = find(base.config)
    shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
    origins = architecture.tensors(base.config, shapes)
    check_places([adapter], origins)
    if adapter.replaced:
        raise UnsupportedError(
            f"{adapter.id}: replaces {min(adapter.replaced)!r} as a whole, which a GGUF adapter"
            " cannot: merge it, without --lora-only"
        )
    if experts := adapter.updates.keys() & {name for o in origins for name in o.stack}:
        raise UnsupportedError(
            f"{adapter.id}: changes {min(experts)!r}, one of several experts, which a GGUF adapter"
            " here cannot: merge it, without --lora-only"
        )
    factors = list(_factors(adapter, origins))
    updated = sum(math.prod(base.tensors[name].shape) for name in adapter.updates)
    general, warnings = adapter_metadata(adapter, updated)
    metadata = {
        "general.architecture": architecture.gguf,
        **general,
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(adapter.config.alpha * adapter.scale),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
        "quantcli.version": __version__,
        **lora_metadata([adapter]),
    }
    metadata = apply_overrides(metadata, job.override_kv)
    files = [_file(kind, job, metadata, factors) for kind in kinds]
    check_distinct([file.path for file in files])
    folders = (adapter.side_files, base.side_files)
    return AdapterPlan(
        adapter=adapter,
        architecture=architecture.name,
        factors=factors,
        metadata=metadata,
        files=files,
        sources=[folder.root / name for folder in folders for name in folder.names],
        warnings=warnings + lora_warnings([adapter], base),
    )


def _kinds(job: Job) -> list[FileType]:
    if len(job.lora) != 1:
        raise UsageError(f"--lora-only converts one adapter, not {len(job.lora)}: give one --lora")
    nothing = Job(job.source)
    for field in fields(Job):
        if field.name not in _ALLOWED and getattr(job, field.name) != getattr(nothing, field.name):
            name = "calibration" if field.name == "calibrate" else field.name.replace("_", "-")
            raise UsageError(f"--lora-only converts the adapter alone: leave out the {name}")
    kinds = list(dict.fromkeys(file_type(name) for name in job.types))
    for kind in kinds:
        if kind.name not in TYPES:
            raise UsageError(f"--lora-only --type {kind.name}: adapters are {', '.join(TYPES)}")
    if not kinds:
        raise UsageError(f"no file type was asked for: {', '.join(TYPES)}")
    return kinds


def _factors(adapter: Adapter, origins: Sequence[OutputTensor]) -> Iterator[Factor]:
    """The tensors of the file, in the order of the base's."""
    for origin in origins:
        update = adapter.updates.get(origin.source or "")
        if update is None:
            continue
        a, b = (adapter.file.header.tensors[name].shape for name in (update.a, update.b))
        # The runtime multiplies by alpha / rank.
        factor = update.scaling * update.rank / adapter.config.alpha
        if update.embedding:  # looked up by token, so lora_a is [n_vocab, rank]
            yield Factor(f"{origin.name}.lora_a", update.a, a[::-1], transposed=True)
        else:
            yield Factor(f"{origin.name}.lora_a", update.a, a)
        b = b if origin.rows is None else (len(origin.rows), *b[1:])
        yield Factor(f"{origin.name}.lora_b", update.b, b, factor, origin.rows)


def _file(kind: FileType, job: Job, metadata: dict[str, Any], factors: list[Factor]) -> AdapterFile:
    types, fallbacks = [], []
    for factor in factors:
        wanted, columns = get(kind.base), factor.shape[-1]
        fits = columns % wanted.block_size == 0
        types.append(wanted if fits else get("F16"))
        fallbacks.append(
            None if fits else f"{columns} columns, not a multiple of {wanted.block_size}"
        )
    slots = [Slot(f.slot, f.shape, t.ggml_id) for f, t in zip(factors, types, strict=True)]
    path = output_path(job.output, metadata, kind.name, str(metadata["general.name"]))
    return AdapterFile(kind, path, types, fallbacks, slots)
