"""The plan: shapes and types fix every byte, so all that can be known is known before the work.

Nothing that could be refused here may fail after an hour of work.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.architectures import OutputTensor, embeds
from quantcli.calibration import Imatrix, Text, blank_imatrix, read_imatrix, read_text, unreached
from quantcli.checkpoint import Adapter, Checkpoint
from quantcli.checkpoint.source_tensor import WEIGHT_DTYPES
from quantcli.errors import BadInputError, UnsupportedError, UsageError
from quantcli.gguf_file import Slot, encode_header
from quantcli.methods import method_info
from quantcli.methods.awq import left_out
from quantcli.methods.pieces import PIECE_WEIGHTS
from quantcli.model import CheckpointModel, stacked
from quantcli.planning.file import PlannedFile, PlannedTensor
from quantcli.planning.held import held_bytes
from quantcli.planning.job import Job, check_stream
from quantcli.planning.lora import lora_memory
from quantcli.planning.memory import (
    calibration_memory,
    measuring_memory,
    peak_memory,
    sequence_memory,
    stream_memory,
)
from quantcli.planning.metadata import count_parameters, imatrix_metadata
from quantcli.planning.names import check_distinct, output_path
from quantcli.planning.overrides import apply_overrides
from quantcli.planning.ram import vocabulary_size
from quantcli.planning.source import (
    KEPT,
    KEPT_FILE_TYPE,
    Source,
    check_requantized,
    file_keys,
    open_source,
    source_type,
    stored_kind,
)
from quantcli.planning.target import NEAREST, file_for
from quantcli.progress import Progress
from quantcli.recipes import (
    Choice,
    FileType,
    check_fallbacks,
    choose_types,
    file_type,
    unused_patterns,
)
from quantcli.tensor_types import TensorType, stored
from quantcli.transformer.hyperparameters import read_hyperparameters
from quantcli.transformer.layout import EMBEDDING, HEAD, head_name

Metadata = dict[str, Any]
ON_THE_FLY = "auto"  # the name of an imatrix that is in no file
FEW_TOKENS = 8192
OPTIONAL_IN_IMATRIX = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Plan:
    """All of a job that is known before a weight is read; `warnings` are about the source.

    Where there is a text to calibrate on, the imatrix has no values yet.
    """

    job: Job
    checkpoint: Checkpoint
    architecture: str
    parameters: int
    files: list[PlannedFile]
    imatrix: Imatrix | None
    calibration: Text | None
    tokens: int  # of it that are used
    warnings: list[str]
    adapters: Sequence[Adapter] = ()  # merged into the checkpoint

    @property
    def peak_memory_bytes(self) -> int:
        """Upper estimate of private memory."""
        packed = 0.0
        for versions in zip(*(file.tensors for file in self.files), strict=True):
            sizes = {tensor.type.name: tensor.nbytes for tensor in versions}
            share = min(1.0, PIECE_WEIGHTS / versions[0].weights)
            packed = max(packed, share * sum(sizes.values()))
        vocabulary = vocabulary_size(self.files[0].metadata)
        needed = peak_memory(self.job.threads, math.ceil(packed), vocabulary, self.job.has_imatrix)
        merging = lora_memory(self.adapters, self.job.threads)
        if self.job.stream:
            merging += stream_memory(self.job.threads, self.weights)
            merging += held_bytes(self.origins, self.checkpoint.tensors)
        if self.calibration is None:
            return needed + merging
        shapes = {origin.name: origin.shape for origin in self.origins}
        running = calibration_memory(
            shapes, self.tokens, self.job.threads, vocabulary, experts_used=self.experts_used
        )
        needed = max(needed, running)
        if self.job.target:
            needed += measuring_memory(
                shapes, self.tokens, self.job.threads, experts_used=self.experts_used
            )
        if self.job.calibrates:
            needed += sequence_memory(shapes, self.tokens, len(self.files), self.job.threads)
        return needed + merging

    @property
    def experts_used(self) -> int:
        """How many experts a token sees at most, 0 without."""
        metadata = self.files[0].metadata
        used = metadata.get(f"{metadata['general.architecture']}.expert_used_count", 0)
        return int(np.max(used))  # some files have a number for each block

    @property
    def weights(self) -> int:
        """Number of weights to be encoded, each once per output."""
        return sum(tensor.weights for file in self.files for tensor in file.tensors)

    @property
    def origins(self) -> list[OutputTensor]:
        """The tensors in file order: the same for every output."""
        return [tensor.origin for tensor in self.files[0].tensors]

    @property
    def all_warnings(self) -> list[str]:
        """About the source, then about each output."""
        return self.warnings + [line for file in self.files for line in file.warnings]

    @property
    def disk_bytes(self) -> int:
        """Space that all outputs need, and beside them what is kept for --resume."""
        outputs = sum(file.size_bytes for file in self.files)
        if not self.job.calibrates:
            return outputs
        n_embd = next(o.shape[-1] for o in self.origins if o.name == EMBEDDING)
        states = 4 * self.tokens * n_embd * (1 + len(self.files))
        return outputs + sum(t.nbytes for f in self.files for t in f.tensors) + 2 * states

    @property
    def sources(self) -> list[Path]:
        """Files that are read: no output may be one of them."""
        root = self.checkpoint.side_files.root
        imatrix = [self.job.imatrix] if self.job.imatrix else []
        lora = [a.side_files.root / name for a in self.adapters for name in a.side_files.names]
        return [*(root / name for name in self.checkpoint.source_files), *imatrix, *lora]

    @property
    def snapshots(self) -> Path:
        """The folder that keeps what --resume needs, beside the first output."""
        first = self.files[0].path
        return first.with_name(f".{first.name}.resume")

    def versions(self, index: int) -> list[PlannedTensor]:
        """The tensor of that place in every file."""
        return [file.tensors[index] for file in self.files]

    def importance(self, origin: OutputTensor, types: Iterable[TensorType]) -> np.ndarray | None:
        """Float32 [n] that weights the columns' errors, where there is an imatrix to use.

        One row for each matrix where there are several.
        """
        if self.imatrix is None or not any(kind.quantized for kind in types):
            return None
        return self.imatrix.importance(origin.name, origin.shape[-1], stacked(origin.shape))

    def is_copied(self, tensor: PlannedTensor) -> bool:
        """Whether a tensor keeps its bytes, as what is quantized already can."""
        kind = stored_kind(tensor.origin, self.checkpoint)
        return kind == tensor.type.name and kind not in WEIGHT_DTYPES


def make_plan(job: Job, *, weights: bool = True, progress: Progress | None = None) -> Plan:
    """Open the source and decide everything; with weights=False a hub model is not downloaded.

    Raises:
        QuantcliError: whatever can be known to be wrong before weights are read.
    """
    names = job.types if job.target is None else NEAREST
    kinds = list(dict.fromkeys(file_type(name) for name in names))
    if not kinds:
        raise UsageError("no file type was asked for; `quantcli list types` names them")
    if job.imatrix and (job.calibrates or job.target):
        who = job.target.option if job.target else f"--method {job.method}"
        raise UsageError(f"{who} makes its own statistics; leave --imatrix out")
    check_stream(job)
    imatrix = read_imatrix(job.imatrix) if job.imatrix else None
    calibration = read_text(job.text) if job.text else None
    source = open_source(job, weights=weights, progress=progress)
    metadata, warnings = source.metadata, source.warnings
    _check_embedding(job, source)
    if job.target and source.kept:
        raise UnsupportedError(
            f"{job.target.option} is not there for models whose experts stay {KEPT}; give a --type"
        )
    tokens = 0
    if calibration is not None:
        model = CheckpointModel(source.checkpoint, source.origins, metadata)
        read_hyperparameters(metadata, model.shapes)  # refuses what has no forward pass
        made = blank_imatrix(model, calibration, tokens=job.most_tokens, name=ON_THE_FLY)
        metadata["quantcli.calibration.sha256"] = calibration.sha256
        tokens = made.chunks * made.chunk_size
        warnings += _few_tokens(job, tokens) + _unfolded(job, model)
        imatrix = None if job.calibrates else made
    if imatrix is not None:
        warnings += unreached(imatrix, "make the imatrix from more text")
        # A GGUF source may tell of another one.
        kept = {k: v for k, v in metadata.items() if not k.startswith("quantize.imatrix.")}
        metadata = kept | imatrix_metadata(imatrix)
    files = _plan_files(job, kinds, replace(source, metadata=metadata))
    check_distinct([file.path for file in files])
    warnings += check_requantized(job, source, (t for file in files for t in file.tensors))
    if imatrix is not None:
        warnings += _check_imatrix(imatrix, files, source)
    return Plan(
        job=job,
        checkpoint=source.checkpoint,
        architecture=source.architecture,
        parameters=count_parameters(source.origins),
        files=files,
        imatrix=imatrix,
        calibration=calibration,
        tokens=tokens,
        warnings=warnings,
        adapters=source.adapters,
    )


def _check_embedding(job: Job, source: Source) -> None:
    """What is measured by predictions has no meaning for a model that embeds.

    Raises:
        UsageError: for a gate of quality.
        UnsupportedError: for a target.
    """
    if not embeds(source.metadata.get("general.architecture")):
        return
    if job.gate.needs_quality:
        name = "--max-kld" if job.gate.max_kld is not None else "--min-top1"
        raise UsageError(
            f"{name} is for models that predict tokens, but {source.checkpoint.id} embeds texts;"
            " leave it out and read the cosine similarity that --evaluate reports"
        )
    if job.target:
        raise UnsupportedError(
            f"{job.target.option} is not there for models that embed texts yet; give a --type, "
            "`quantcli plan` shows how large each one is"
        )


def _few_tokens(job: Job, tokens: int) -> list[str]:
    """A correction that is told from few tokens does more harm than good at 2 bits."""
    if not job.calibrates or tokens >= FEW_TOKENS:
        return []
    return [
        f"{job.method}: {tokens} tokens to calibrate on are few, small types may come out worse "
        f"than by rtn: give a text of {FEW_TOKENS} or more"
    ]


def _unfolded(job: Job, model: CheckpointModel) -> list[str]:
    """Inputs that a method that folds has to leave as they are."""
    if not method_info(job.method).folds:
        return []
    sizes = read_hyperparameters(model.metadata, model.shapes)
    return [
        f"{job.method}: the input of {site!r} is not scaled: {reason}"
        for site, reason in left_out(sizes, tied=head_name(model) != HEAD)
    ]


def _plan_files(job: Job, kinds: list[FileType], source: Source) -> list[PlannedFile]:
    metadata = {**source.metadata, **file_keys()}
    # Only the value of general.file_type and the ids of tensor types differ: one length fits all.
    overridden = apply_overrides(metadata, job.override_kv)
    slots = [Slot(origin.name, origin.shape, 0) for origin in source.origins]
    head_bytes = len(encode_header(overridden, slots))
    policy = replace(job, on_fallback="allow") if job.target else job
    source = replace(source, metadata=metadata)
    files = [_plan_file(policy, kind, source, head_bytes) for kind in kinds]
    if job.target is None:
        return files
    # The types of its tensors are a guess of the right size until weights are measured.
    file = file_for(job.target, files, name_it=job.output.is_dir())
    return [replace(file, warnings=_type_warnings(job, file.file_type, file.choices))]


def _plan_file(job: Job, kind: FileType, source: Source, head_bytes: int) -> PlannedFile:
    choices = choose_types(
        [(origin.name, origin.shape) for origin in source.origins],
        source.metadata,
        replace(job.recipe, file_type=kind.name),
        has_imatrix=job.has_imatrix,
        unquantized=source_type(source.checkpoint),
        stored=source.stored,
        in_order=job.keep_split,
    )
    choices = [Choice(c.name, KEPT, KEPT) if c.name in source.kept else c for c in choices]
    tensors = [
        PlannedTensor(origin, stored(choice.type), choice)
        for origin, choice in zip(source.origins, choices, strict=True)
    ]
    number = KEPT_FILE_TYPE if source.kept and not kind.quantized else kind.id
    metadata = {**source.metadata, "general.file_type": np.uint32(number)}
    metadata = apply_overrides(metadata, job.override_kv)
    return PlannedFile(
        file_type=kind,
        path=output_path(job.output, metadata, kind.name, source.checkpoint.id),
        metadata=metadata,
        tensors=tensors,
        warnings=_type_warnings(job, kind, choices),
        head_bytes=head_bytes,
        split_max_bytes=job.split_max_bytes,
        split_counts=source.split_counts,
    )


def _check_imatrix(imatrix: Imatrix, files: list[PlannedFile], source: Source) -> list[str]:
    """Every quantized matrix needs its entry, except the embedding and the output tensor.

    A GGUF file may hold others that no matrix product of the model sees: a warning names them.

    Raises:
        BadInputError: naming the first tensor that the imatrix does not fit.
    """
    quantized = {
        t.name: t
        for file in files
        for t in file.tensors
        if t.type.quantized and t.name not in source.kept
    }
    missing = [
        t.name
        for t in quantized.values()
        if imatrix.importance(t.name, t.shape[-1], stacked(t.shape)) is None
        and t.name not in OPTIONAL_IN_IMATRIX
    ]
    if not missing:
        return []
    needed = any(file.file_type.wants_imatrix for file in files)
    if source.stored is None or needed or len(missing) == len(quantized):
        raise BadInputError(
            f"{imatrix.name!r} has no entry for {missing[0]!r}; it was made for another "
            "model: calibrate on this one, or convert without --imatrix"
        )
    return [
        f"{imatrix.name!r} has no entry for {len(missing)} tensors ({missing[0]!r} first): they "
        "are rounded without it"
    ]


def _type_warnings(job: Job, kind: FileType, choices: list[Choice]) -> list[str]:
    found = [f"{kind.name}: {line}" for line in check_fallbacks(choices, job.on_fallback)]
    found += [
        f"{kind.name}: --tensor-type {pattern!r} decides no tensor's type"
        for pattern in unused_patterns(job.recipe, choices)
    ]
    if kind.wants_imatrix and not (job.has_imatrix or job.calibrates):
        found.append(
            f"{kind.name} is poor without an importance matrix; give one with --imatrix, "
            "or --imatrix auto"
        )
    return found
