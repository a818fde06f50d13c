"""The report of a conversion: plain data, filled by the pipeline, drawn by its neighbours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantcli.evaluation import Quality, Similarity
from quantcli.evaluation.gate import Gate
from quantcli.methods.encoded import Cost

# No weights: they divide the frequencies of rope, by 1e30 where a dimension stands still.
ROPE_TABLES = ("rope_freqs.", "rope_factors_")


@dataclass(frozen=True)
class TensorReport:
    """One tensor of an output file."""

    name: str
    type: str
    shape: tuple[int, ...]  # numpy order; written reversed ("fastest first") in reports
    size_bytes: int
    cost: Cost
    fallback: str | None
    divergence: float | None = None  # estimated, in nats per token; see methods.sensitivity


@dataclass(frozen=True)
class Output:
    """One written model: a file, or a set of shards."""

    paths: list[str]
    sha256: list[str]
    file_type: str
    method: str
    size_bytes: int
    bpw: float
    tensors: list[TensorReport]
    ram_bytes: int | None = None  # to run it with 8192 tokens of context, or the model's limit
    quality: Quality | None = None
    similarity: Similarity | None = None  # of a model that embeds, in place of quality
    metadata: Mapping[str, Any] = field(default_factory=dict)  # as in the GGUF file

    @property
    def cost(self) -> Cost:
        """The error over all weights of the file."""
        weights = (one for one in self.tensors if not one.name.startswith(ROPE_TABLES))
        return sum((tensor.cost for tensor in weights), Cost())

    @property
    def divergence(self) -> float | None:
        """The sum of the tensors' estimated divergences; None where they were not measured."""
        found = [t.divergence for t in self.tensors if t.divergence is not None]
        return sum(found) if found else None

    @property
    def worst(self) -> list[TensorReport]:
        """Tensors by relative error, worst first."""
        return sorted(self.tensors, key=lambda t: (-t.cost.relative_error, t.name))


@dataclass(frozen=True)
class Report:
    """All that one run of `convert` did."""

    source_id: str
    revision: str | None
    architecture: str
    parameters: int
    outputs: list[Output]
    seconds: float
    peak_memory_bytes: int
    warnings: list[str] = field(default_factory=list)

    def misses(self, gate: Gate) -> list[str]:
        """A line for each limit that an output does not keep to."""
        return [
            line
            for output in self.outputs
            for line in gate.misses(output.paths[0], output.size_bytes, output.quality)
        ]
