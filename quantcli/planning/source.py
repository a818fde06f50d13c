"""What is converted: a checkpoint seen through its family, or a GGUF file of any architecture."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantcli import __version__
from quantcli.architectures import OutputTensor, find
from quantcli.checkpoint import (
    Adapter,
    Checkpoint,
    GgufOnlyError,
    gguf_choice,
    open_checkpoint,
)
from quantcli.checkpoint.files import show
from quantcli.checkpoint.merged import merge
from quantcli.checkpoint.source_tensor import WEIGHT_DTYPES
from quantcli.errors import UnsupportedError, UsageError
from quantcli.gguf_source import GgufSource, is_gguf, open_gguf, open_hub_gguf
from quantcli.planning.file import PlannedTensor
from quantcli.planning.job import Job
from quantcli.planning.lora import check_places, lora_metadata, lora_warnings, open_adapters
from quantcli.planning.metadata import QUANTIZATION_VERSION, common_metadata, source_keys
from quantcli.progress import Progress
from quantcli.recipes import file_type
from quantcli.recipes.mixes import block_of
from quantcli.tensor_types import decoded_names
from quantcli.transformer.layout import EMBEDDING, HEAD, OUTPUT_NORM

Metadata = dict[str, Any]

KEPT = "MXFP4"
KEPT_FILE_TYPE = 38  # LLAMA_FTYPE_MOSTLY_MXFP4_MOE, what the converter says of F32 and BF16 files


@dataclass(frozen=True)
class Source:
    """An opened source and all that its outputs share, but for what an imatrix adds.

    `stored` are the types of a GGUF file's tensors, None of a checkpoint; `split_counts` how many
    tensors each output file gets, where the files of the source are kept; `kept` are tensors of a
    checkpoint that are quantized and stay as they are, in KEPT.
    """

    checkpoint: Checkpoint
    architecture: str
    origins: list[OutputTensor]
    metadata: Metadata
    warnings: list[str]
    stored: dict[str, str] | None = None
    split_counts: tuple[int, ...] | None = None
    adapters: Sequence[Adapter] = ()
    kept: frozenset[str] = frozenset()


def open_source(job: Job, *, weights: bool, progress: Progress | None) -> Source:
    """Open what the job names; with weights=False a hub model is not downloaded.

    Raises:
        QuantcliError: see open_checkpoint, open_gguf; for flags that do not suit the source.
    """
    source = _opened(job, weights, progress)
    if job.delete_source and source.checkpoint.revision is None:
        raise UsageError(
            f"--delete-source is for downloads in the hub's cache; {job.source!r} is a local "
            f"{'file' if source.stored else 'folder'}"
        )
    return source


def _opened(job: Job, weights: bool, progress: Progress | None) -> Source:
    if is_gguf(job.source):
        _check_flags(job)
        if job.revision is not None:
            raise UsageError(f"--revision is for hub models, but {job.source!r} is a GGUF file")
        return _gguf(job, open_gguf(Path(job.source)))
    chosen, for_gguf = gguf_choice(job.source), job.keep_split or job.allow_requantize
    if chosen is None and for_gguf and Path(job.source).exists():
        option = "--keep-split" if job.keep_split else "--allow-requantize"
        raise UsageError(f"{option} is for GGUF files; {job.source!r} is none")
    if chosen is None and not for_gguf:
        try:
            return _checkpoint(job, weights, progress)
        except GgufOnlyError:
            pass
    _check_flags(job)
    repo_id, choice = chosen or (job.source, None)
    check = partial(_check_kind, job)
    found = open_hub_gguf(
        repo_id, choice, job.revision, weights=weights, check=check, progress=progress
    )
    return _gguf(job, found)


def _check_kind(job: Job, found: GgufSource) -> None:
    """Raises UnsupportedError for what check_requantized will refuse, before it is downloaded."""
    kind = source_type(found.checkpoint)
    kept = job.target is None and not job.calibrates and kind in map(_base, job.types)
    if kind not in WEIGHT_DTYPES and not job.allow_requantize and not kept:
        raise UnsupportedError(
            f"{show(job.source)}: its tensors are {kind} already: name its F16, BF16 or F32 file, "
            "or quantize twice with --allow-requantize"
        )


def _base(name: str) -> str:
    return file_type(name).base


def _checkpoint(job: Job, weights: bool, progress: Progress | None) -> Source:
    checkpoint = open_checkpoint(
        job.source, job.revision, weights=weights, progress=progress, stream=job.stream
    )
    adapters = open_adapters(job.lora, checkpoint, progress)
    checkpoint = merge(checkpoint, adapters)
    architecture = find(checkpoint.config)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    origins = architecture.tensors(checkpoint.config, shapes)
    for origin in origins:
        for source in origin.sources:
            checkpoint.weight(source)
    if job.stream:
        _check_streamed(architecture.name, origins)
    check_places(adapters, origins)
    metadata, warnings = common_metadata(job, checkpoint, architecture, origins)
    metadata |= lora_metadata(adapters)
    warnings += [*_left_out(checkpoint, architecture.towers), *_twice(checkpoint)]
    kept = frozenset(o.name for o in origins if stored_kind(o, checkpoint) == KEPT)
    warnings += [*_said_of_kept(kept), *lora_warnings(adapters, checkpoint)]
    return Source(
        checkpoint, architecture.name, origins, metadata, warnings, adapters=adapters, kept=kept
    )


def stored_kind(origin: OutputTensor, checkpoint: Checkpoint) -> str | None:
    """The one type that all tensors have which it is made of; None for several or none."""
    kinds = {checkpoint.tensors[source].dtype for source in origin.sources}
    return kinds.pop() if len(kinds) == 1 else None


def _said_of_kept(kept: Collection[str]) -> list[str]:
    """Tensors that the publisher quantized, so that no type asked for can be better."""
    if not kept:
        return []
    return [
        f"kept: {len(kept)} tensors ({min(kept)!r} first) are {KEPT} in the source, and in every"
        " file, whatever its type"
    ]


def _check_streamed(family: str, origins: list[OutputTensor]) -> None:
    """Raises UnsupportedError unless each tensor of the source is in one place of the output."""
    if max(Counter(source for o in origins for source in o.sources).values()) > 1:
        raise UnsupportedError(
            f"--stream is not there for tensors that are split yet ({family}): leave it out"
        )


def _left_out(checkpoint: Checkpoint, towers: tuple[str, ...]) -> list[str]:
    """Tensors of models that see or hear, which a file of the language model has no place for."""
    found = [t for t in checkpoint.tensors.values() if any(part in t.name for part in towers)]
    if not found:
        return []
    megabytes = sum(tensor.nbytes for tensor in found) / 1e6
    parts = sorted(part.rstrip(".") for part in towers if any(part in t.name for t in found))
    many = "s" if len(found) > 1 else ""
    return [
        f"left out: {len(found)} tensor{many}, {megabytes:,.1f} MB, of {', '.join(parts)}: the file"
        " is the language model alone; llama.cpp's convert_hf_to_gguf.py --mmproj makes the other"
        " one"
    ]


def _twice(checkpoint: Checkpoint) -> list[str]:
    """A source that is quantized already."""
    if checkpoint.quantized is None:
        return []
    return [
        f"the source is quantized already ({checkpoint.quantized}): its errors stay, those of"
        " another quantization come on top; convert the original if there is one"
    ]


def _check_flags(job: Job) -> None:
    """Raises UsageError for what does not suit a GGUF file."""
    if job.pre_tokenizer is not None:
        raise UsageError(
            "--pre-tokenizer is for checkpoints; a GGUF file has one, which --override-kv "
            "tokenizer.ggml.pre=str:NAME replaces"
        )
    if job.stream:
        raise UsageError(f"--stream is for safetensors on the hub; {job.source!r} is GGUF")
    if job.lora:
        raise UsageError("--lora is merged into checkpoints; llama.cpp takes a GGUF file's apart")
    if job.keep_split and job.split_max_bytes is not None:
        raise UsageError("--split-max-size excludes --keep-split; leave one out")
    if job.keep_split and job.calibrates:
        raise UsageError(
            f"--keep-split excludes --method {job.method}, which writes tensors in the order in "
            "which they are computed; --split-max-size cuts such files"
        )


def _gguf(job: Job, opened: GgufSource) -> Source:
    origins = opened.origins(job.keep_split)
    if job.calibrates:
        origins.sort(key=lambda origin: _as_computed(origin.name))
    metadata = dict(opened.metadata)
    keys = dict(reversed(file_keys().items()))  # in llama-quantize's order, at the end
    keys |= {"quantcli.version": __version__, "quantcli.method": job.method}
    keys |= source_keys(opened.checkpoint)
    for key in (*keys, "quantcli.calibration.sha256"):
        metadata.pop(key, None)
    counts = tuple(map(len, opened.files))
    return Source(
        opened.checkpoint,
        opened.architecture,
        origins,
        metadata | keys,
        [],
        stored=opened.types,
        split_counts=counts if job.keep_split and len(counts) > 1 else None,
    )


def _as_computed(name: str) -> tuple[float, bool, str]:
    """Sorts tensors in the order of a forward pass: methods that calibrate write as they go."""
    if name in (OUTPUT_NORM, HEAD):
        return math.inf, name == HEAD, name
    return block_of(name), name != EMBEDDING, name


def check_requantized(job: Job, source: Source, tensors: Iterable[PlannedTensor]) -> list[str]:
    """A warning where `tensors` quantize what is quantized already.

    Raises:
        UnsupportedError: where that is not allowed, or values are of a type that has no decoder.
    """
    if source.stored is None:
        return []
    twice: dict[str, str] = {}
    measured = job.calibrates or job.target is not None
    for tensor in tensors:
        kind = source.stored[tensor.name]
        if kind in WEIGHT_DTYPES or (kind == tensor.type.name and not measured):
            continue
        where = f"{show(job.source)}: tensor {show(tensor.name)}"
        if kind not in decoded_names():
            raise UnsupportedError(
                f"{where} is {kind}, which cannot be decoded here to become {tensor.type.name}: "
                "convert a file of F16, BF16 or F32"
            )
        if not job.allow_requantize:
            raise UnsupportedError(
                f"{where} is {kind} already: convert the F16, BF16 or F32 file, or quantize twice "
                "with --allow-requantize"
            )
        twice[tensor.name] = kind
    if not twice:
        return []
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(twice.values()).most_common())
    return [
        f"quantized twice: tensors of {Path(job.source).name} are quantized already ({kinds}), "
        "and errors add up; its F16, BF16 or F32 file gives a better result"
    ]


def source_type(checkpoint: Checkpoint) -> str:
    """The type that most of the source's matrices have: what --leave-output-tensor keeps."""
    kinds = Counter(t.dtype for t in checkpoint.tensors.values() if len(t.shape) > 1)
    return kinds.most_common(1)[0][0] if kinds else "F32"


def file_keys() -> Metadata:
    """The keys of a quantized file; the first has another value in each output."""
    return {
        "general.file_type": np.uint32(0),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
    }
