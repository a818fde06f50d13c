"""Converts a LoRA adapter alone: see planning.adapter for what the file is."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack

from quantcli import blas
from quantcli.errors import BadInputError
from quantcli.gguf_file import Writer, WrittenFile, check_output, check_space, commit, plan_shards
from quantcli.methods.encoded import Cost
from quantcli.methods.pieces import PIECE_WEIGHTS
from quantcli.methods.rtn import quantize
from quantcli.model import matrix_shape
from quantcli.planning import Job
from quantcli.planning.adapter import AdapterFile, AdapterPlan, Factor, plan_adapter
from quantcli.planning.memory import PeakMemory
from quantcli.progress import Progress, Silent
from quantcli.report import Output, Report, TensorReport


def convert_adapter(job: Job, progress: Progress | None = None) -> Report:
    """Convert the one adapter of `job.lora`, for the base `job.source`, to a GGUF file per type.

    Raises:
        QuantcliError: one of its subclasses; no output is left behind.
    """
    began, memory, progress = time.monotonic(), PeakMemory(), progress or Silent()
    plan = plan_adapter(job, progress)
    paths = [file.path for file in plan.files]
    check_output(*paths, force=job.force, sources=plan.sources)
    shards = [plan_shards(file.path, plan.metadata, file.slots) for file in plan.files]
    check_space(paths[0].parent, sum(shard.size for (shard,) in shards))
    with ExitStack() as open_files:
        open_files.enter_context(blas.one_thread())
        writers = [
            open_files.enter_context(Writer(f.path, plan.metadata, f.slots, force=job.force))
            for f in plan.files
        ]
        costs = _encode(plan, writers, memory, progress)
        written = commit(writers)
    return Report(
        source_id=plan.adapter.id,
        revision=plan.adapter.revision,
        architecture=f"LoRA adapter of {plan.architecture}",
        parameters=sum(math.prod(factor.shape) for factor in plan.factors),
        outputs=[_output(plan, *facts) for facts in zip(plan.files, written, costs, strict=True)],
        seconds=time.monotonic() - began,
        peak_memory_bytes=memory.peak,
        warnings=plan.warnings,
    )


def _encode(
    plan: AdapterPlan, writers: list[Writer], memory: PeakMemory, progress: Progress
) -> list[list[Cost]]:
    """Write every tensor in every type; costs per file and tensor."""
    costs = [[Cost()] * len(plan.factors) for _ in plan.files]
    progress.start("Converting", sum(4 * math.prod(f.shape) for f in plan.factors))
    for index, factor in enumerate(plan.factors):
        types = {file.types[index].name: file.types[index] for file in plan.files}
        for rows in _pieces(factor):
            w = factor.rows(plan.adapter, rows)
            try:
                encoded = quantize(w, None, types.values(), first_row=rows.start)
            except BadInputError as error:
                label = f"{plan.adapter.id}: tensor {factor.name!r}"
                raise BadInputError(f"{label}: {error}") from None
            for file, writer, cost in zip(plan.files, writers, costs, strict=True):
                part = encoded[file.types[index].name]
                writer.write(factor.slot, part.packed)
                cost[index] += part.cost
            progress.advance(w.nbytes)
        memory.sample()
    progress.finish()
    return costs


def _pieces(factor: Factor) -> Iterator[slice]:
    n_rows, n_columns = matrix_shape(factor.shape)
    step = max(1, PIECE_WEIGHTS // n_columns)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _output(
    plan: AdapterPlan, file: AdapterFile, written: list[WrittenFile], costs: list[Cost]
) -> Output:
    facts = zip(file.slots, file.types, file.fallbacks, costs, strict=True)
    return Output(
        paths=[str(part.path) for part in written],
        sha256=[part.sha256 for part in written],
        file_type=file.kind.name,
        method="rtn",
        size_bytes=sum(part.size_bytes for part in written),
        bpw=8 * sum(s.nbytes for s in file.slots) / sum(math.prod(s.shape) for s in file.slots),
        tensors=[
            TensorReport(slot.name, kind.name, slot.shape, slot.nbytes, cost, fallback)
            for slot, kind, fallback, cost in facts
        ],
        metadata=plan.metadata,
    )
