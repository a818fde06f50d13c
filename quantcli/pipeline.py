"""The one pipeline: plan, then stream every tensor through its types into the output files.

Read `convert` first; `encoding.quantize` is where the weights flow.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from quantcli import encoding, sequence
from quantcli.calibration import Text, calibrate, cut_windows, read_text, unreached
from quantcli.calibration.calibrate import CONTEXT
from quantcli.errors import IntegrityError, QuantcliError, ResourceError
from quantcli.evaluation import Quality, Similarity
from quantcli.evaluation.evaluate import evaluate
from quantcli.evaluation.exam import set_exam
from quantcli.gguf_file import Writer, WrittenFile, check_output, check_space, commit, has_part
from quantcli.methods.encoded import Cost
from quantcli.methods.pieces import PIECE_WEIGHTS
from quantcli.methods.sensitivity import TOKENS, divergences
from quantcli.model import CheckpointModel
from quantcli.planning import Job, Plan, PlannedFile, make_plan
from quantcli.planning.memory import PeakMemory
from quantcli.planning.plan import ON_THE_FLY
from quantcli.planning.ram import running
from quantcli.planning.target import candidates, fitted, recipe_of
from quantcli.progress import Progress, Silent
from quantcli.recipes.write import write_recipe
from quantcli.report import Output, Report, TensorReport
from quantcli.streaming import heads_differ
from quantcli.transformer import Transformer

MORE_TOKENS = "give more --calibration-tokens"


def convert(job: Job, progress: Progress | None = None) -> Report:
    """Convert a checkpoint to one GGUF file per type and report what it cost.

    Raises:
        QuantcliError: one of its subclasses; no output is left behind, unless it is the finished
            outputs that cannot be evaluated.
    """
    began = time.monotonic()
    progress = progress or Silent()
    plan = make_plan(job, weights=False, progress=progress)
    check_outputs(plan)
    check_memory(plan)
    text = check_evaluation(plan)
    if not plan.checkpoint.has_weights:
        plan = make_plan(job, progress=progress)
    check_heads(plan)
    memory = PeakMemory()
    plan = _allocated(_calibrated(plan, progress), progress)
    memory.sample()
    with ExitStack() as open_files:
        writers = [open_files.enter_context(_writer(plan, file)) for file in plan.files]
        quantize = sequence.quantize if plan.job.calibrates else encoding.quantize
        try:
            costs = quantize(plan, writers, memory, progress)
            written = _commit(plan, writers, progress)
        except QuantcliError:  # a full disk, above all, gets its space back
            sequence.forget(plan)
            raise
        sequence.forget(plan)
    if job.save_recipe is not None:
        write_recipe(recipe_of(plan.files[0]), job.save_recipe, force=job.force)
    qualities = _evaluate(plan, written, text, progress)
    memory.sample()
    kept = _delete_source(plan)
    facts = zip(plan.files, written, costs, qualities, strict=True)
    return Report(
        source_id=plan.checkpoint.id,
        revision=plan.checkpoint.revision,
        architecture=plan.architecture,
        parameters=plan.parameters,
        outputs=[_output(plan, *each) for each in facts],
        seconds=time.monotonic() - began,
        peak_memory_bytes=memory.peak,
        warnings=plan.all_warnings
        + _flushed_warnings(plan, costs)
        + _unreached_warnings(costs)
        + _flattered(plan, text)
        + kept,
    )


def check_outputs(plan: Plan) -> None:
    """Clear what dead runs left; refuse outputs that exist, are an input or are too large.

    Raises:
        OutputExistsError, UsageError, ResourceError: see gguf_file.check_output, check_space.
        IntegrityError: an output that will be too large for its gate.
    """
    for file in plan.files:
        for line in plan.job.gate.too_large(file.path.name, file.size_bytes):
            raise IntegrityError(line)
    paths = [shard.path for file in plan.files for shard in file.shards]
    if has_part(paths[0]):  # the last to be published: that run had all it was to do
        sequence.forget(plan)
    check_output(*paths, force=plan.job.force, sources=plan.sources)
    if plan.job.save_recipe is not None:
        check_output(plan.job.save_recipe, force=plan.job.force, sources=plan.sources)
    check_space(paths[0].parent, plan.disk_bytes - sequence.reusable_bytes(plan))


def check_memory(plan: Plan) -> None:
    """Refuse a conversion that may need more memory than is allowed.

    Raises:
        ResourceError: naming what it needs, what is allowed, and whether fewer threads would do.
    """
    allowed, needed, threads = plan.job.max_memory_bytes, plan.peak_memory_bytes, plan.job.threads
    if allowed is None or needed <= allowed:
        return
    least = replace(plan, job=replace(plan.job, threads=1)).peak_memory_bytes
    remedy = (
        f"use fewer --threads (one needs {least})"
        if least <= allowed
        else f"allow at least the {least} that --threads 1 needs"
    )
    raise ResourceError(
        f"{plan.checkpoint.id}: --threads {threads} may need {needed} bytes of memory, "
        f"--max-memory allows {allowed}; {remedy}"
    )


def check_heads(plan: Plan) -> None:
    """Where llama.cpp reads another tensor than transformers does, both must hold the same.

    Raises:
        BadInputError: naming both tensors.
    """
    for origin in plan.origins if plan.checkpoint.stream is None else ():  # see streaming
        if origin.source is not None and origin.must_equal is not None:
            step = max(1, PIECE_WEIGHTS // origin.shape[-1])
            for start in range(0, origin.shape[0], step):
                rows = slice(start, start + step)
                one, other = (
                    plan.checkpoint.float32(name, rows).view(np.uint32)
                    for name in (origin.source, origin.must_equal)
                )
                if not np.array_equal(one, other):
                    raise heads_differ(plan, origin)


def check_evaluation(plan: Plan) -> Text | None:
    """Read the text to evaluate on, and refuse what could not be evaluated after the work.

    Raises:
        QuantcliError: see read_text, Transformer, set_exam.
    """
    if plan.job.evaluate is None:
        return None
    text = read_text(plan.job.evaluate)
    Transformer(_source(plan))
    set_exam(_source(plan), text)
    return text


def _source(plan: Plan) -> CheckpointModel:
    return CheckpointModel(plan.checkpoint, plan.origins, plan.files[0].metadata)


def _calibrated(plan: Plan, progress: Progress) -> Plan:
    """The plan with values in its importance matrix, if it is to be made now."""
    if plan.calibration is None or plan.job.calibrates:
        return plan
    imatrix = calibrate(
        _source(plan),
        plan.calibration,
        tokens=plan.job.most_tokens,
        threads=plan.job.threads,
        progress=progress,
        name=ON_THE_FLY,
    )
    return replace(plan, imatrix=imatrix, warnings=plan.warnings + unreached(imatrix, MORE_TOKENS))


def _allocated(plan: Plan, progress: Progress) -> Plan:
    """The plan with the types that suit its target best, by what each costs on the text."""
    if plan.job.target is None or plan.calibration is None:
        return plan
    model, file = _source(plan), plan.files[0]
    found = divergences(
        model,
        cut_windows(plan.calibration, model.metadata, CONTEXT, min(TOKENS, plan.job.most_tokens)),
        {t.name: candidates(t) for t in file.tensors if len(t.shape) > 1},
        plan.imatrix,
        threads=plan.job.threads,
        progress=progress,
    )
    return replace(plan, files=[fitted(plan.job.target, file, found)])


def _writer(plan: Plan, file: PlannedFile) -> Writer:
    return Writer(
        file.path,
        file.metadata,
        file.slots,
        split_max_bytes=file.split_max_bytes,
        split_counts=file.split_counts,
        force=plan.job.force,
    )


def _commit(plan: Plan, writers: list[Writer], progress: Progress) -> list[list[WrittenFile]]:
    """Read every file back, verify it, and give it its final name."""
    progress.start("Verifying", sum(file.size_bytes for file in plan.files))
    written = commit(writers, progress.advance)
    progress.finish()
    return written


def _evaluate(
    plan: Plan, written: list[list[WrittenFile]], text: Text | None, progress: Progress
) -> Sequence[Quality | Similarity | None]:
    """What the finished files predict, compared with the source."""
    if text is None:
        return [None] * len(written)
    files = [str(parts[0].path) for parts in written]
    return evaluate(files, _source(plan), text, threads=plan.job.threads, progress=progress)


def _delete_source(plan: Plan) -> list[str]:
    """Remove what is left of the source in the hub's cache, if so wished; warnings."""
    cached = plan.checkpoint.cached
    return cached.free(*cached.names) if plan.job.delete_source and cached else []


def _output(
    plan: Plan,
    file: PlannedFile,
    written: list[WrittenFile],
    costs: list[Cost],
    measured: Quality | Similarity | None,
) -> Output:
    size = sum(part.size_bytes for part in written)
    return Output(
        paths=[str(part.path) for part in written],
        sha256=[part.sha256 for part in written],
        file_type=file.file_type.name,
        method=plan.job.method,
        size_bytes=size,
        bpw=file.bpw,
        tensors=[
            TensorReport(t.name, t.type.name, t.shape, t.nbytes, cost, t.fallback, t.divergence)
            for t, cost in zip(file.tensors, costs, strict=True)
        ],
        ram_bytes=size + running(file.metadata).overhead,
        quality=measured if isinstance(measured, Quality) else None,
        similarity=measured if isinstance(measured, Similarity) else None,
        metadata=file.metadata,
    )


def _flattered(plan: Plan, text: Text | None) -> list[str]:
    if text is None or plan.calibration is None or text.sha256 != plan.calibration.sha256:
        return []
    return [
        "the quality was measured on the text that was calibrated on, which flatters; give "
        "--evaluate or --calibration another one"
    ]


def _unreached_warnings(costs: list[list[Cost]]) -> list[str]:
    most = max(sum(cost.unreached for cost in per_tensor) for per_tensor in costs)
    if not most:
        return []
    return [
        f"{most} matrices of experts saw too few tokens of the text and were rounded to nearest: "
        + MORE_TOKENS
    ]


def _flushed_warnings(plan: Plan, costs: list[list[Cost]]) -> list[str]:
    return [
        f"{tensor.name}: {cost.flushed} blocks of weights too small for {tensor.type.name}'s "
        f"scale became zero in {file.file_type.name}"
        for file, per_tensor in zip(plan.files, costs, strict=True)
        for tensor, cost in zip(file.tensors, per_tensor, strict=True)
        if cost.flushed
    ]
