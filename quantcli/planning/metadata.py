"""The metadata of an output file: family, tokenizer, provenance, and how it was made."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from quantcli import __version__
from quantcli.architectures import Architecture, OutputTensor
from quantcli.calibration import Imatrix
from quantcli.checkpoint import Checkpoint
from quantcli.model import family_metadata
from quantcli.planning.job import Job
from quantcli.planning.provenance import general_metadata
from quantcli.tokenizer import read_tokenizer

Metadata = dict[str, Any]
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


def count_parameters(origins: list[OutputTensor]) -> int:
    """Weights that come from the checkpoint."""
    return sum(math.prod(origin.shape) for origin in origins if origin.sources)


def count_experts(origins: list[OutputTensor]) -> tuple[int, int]:
    """How many experts there are, and the weights of one of them; (0, 0) without."""
    stacks = [origin.shape for origin in origins if origin.stack]
    return (stacks[0][0], sum(math.prod(shape[1:]) for shape in stacks)) if stacks else (0, 0)


def common_metadata(
    job: Job,
    checkpoint: Checkpoint,
    architecture: Architecture,
    origins: list[OutputTensor],
) -> tuple[Metadata, list[str]]:
    """The metadata that all outputs share, in file order, and warnings."""
    embedding_rows = next(o.shape[0] for o in origins if o.name == "token_embd.weight")
    model = family_metadata(architecture, checkpoint)
    general, warnings = general_metadata(
        checkpoint, count_parameters(origins), count_experts(origins)
    )
    tokenizer = read_tokenizer(checkpoint, embedding_rows, pre_tokenizer=job.pre_tokenizer)
    own: Metadata = {"quantcli.version": __version__, "quantcli.method": job.method}
    own |= source_keys(checkpoint)
    metadata = {
        "general.architecture": model["general.architecture"],
        **general,
        **model,
        **tokenizer,
        **architecture.tokenizer,
        **own,
    }
    return metadata, warnings


def source_keys(checkpoint: Checkpoint) -> Metadata:
    """Where a model of the hub comes from."""
    if checkpoint.revision is None:
        return {}
    return {
        "quantcli.source.repo": checkpoint.id,
        "quantcli.source.commit": checkpoint.revision,
    }


def imatrix_metadata(imatrix: Imatrix) -> Metadata:
    """The keys that llama-quantize writes."""
    found: Metadata = {"quantize.imatrix.file": imatrix.name}
    if imatrix.datasets:
        found["quantize.imatrix.dataset"] = Path(imatrix.datasets[0]).name
    found["quantize.imatrix.entries_count"] = np.uint32(len(imatrix.entries))
    found["quantize.imatrix.chunks_count"] = np.uint32(imatrix.chunks)
    return found
