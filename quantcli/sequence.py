"""Conversion by a method that calibrates: block by block, and again from where it was killed."""

import hashlib
import json

import numpy as np

from quantcli.calibration import cut_windows
from quantcli.calibration.calibrate import CONTEXT
from quantcli.gguf_file import Writer, encode_header
from quantcli.methods import method_info
from quantcli.methods.encoded import Cost
from quantcli.methods.sequential import Sequential
from quantcli.methods.snapshots import Snapshots
from quantcli.model import CheckpointModel
from quantcli.planning import Plan
from quantcli.planning.memory import PeakMemory
from quantcli.progress import Progress


def quantize(
    plan: Plan, writers: list[Writer], memory: PeakMemory, progress: Progress
) -> list[list[Cost]]:
    """Write every tensor of every output; costs per file and tensor.

    What is kept for --resume is the caller's to `forget`.

    Raises: see Sequential.
    """
    source = CheckpointModel(plan.checkpoint, plan.origins, plan.files[0].metadata)
    if plan.calibration is None:
        raise RuntimeError(f"no text was planned for {plan.job.method}")
    tokens = cut_windows(plan.calibration, source.metadata, CONTEXT, plan.job.most_tokens)
    sequential = Sequential(
        source,
        tokens,
        [{tensor.name: tensor.type for tensor in file.tensors} for file in plan.files],
        method=method_info(plan.job.method),
        threads=plan.job.threads,
        progress=progress,
    )
    snapshots = Snapshots(plan.snapshots, _key(plan, tokens))
    costs = [dict.fromkeys(source.shapes, Cost()) for _ in plan.files]
    with memory.watched():
        for part in sequential.parts(snapshots, resume=plan.job.resume):
            for writer, cost, encoded in zip(writers, costs, part.encoded, strict=True):
                writer.write(part.name, encoded.packed)
                cost[part.name] += encoded.cost
    return [list(cost.values()) for cost in costs]


def forget(plan: Plan) -> None:
    """Remove what was kept for --resume: the outputs are finished, or cannot be."""
    if plan.job.calibrates:
        Snapshots(plan.snapshots, "").discard()


def reusable_bytes(plan: Plan) -> int:
    """What an earlier run kept, and so need not find room: it is gone on with or removed."""
    return Snapshots(plan.snapshots, "").nbytes() if plan.job.calibrates else 0


def _key(plan: Plan, tokens: np.ndarray) -> str:
    """Tells apart what would give other bytes: the outputs, the text, the source files."""
    heads = [encode_header(file.metadata, file.slots) for file in plan.files]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in plan.sources]
    digest = hashlib.sha256(b"".join(heads))
    digest.update(tokens.tobytes())
    digest.update(json.dumps(files).encode())
    return digest.hexdigest()
