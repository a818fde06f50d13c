"""Reports as JSON documents: stable keys, `schema_version` first."""

from dataclasses import asdict
from typing import Any

from quantcli.evaluation import Quality, Similarity
from quantcli.report.model import Output, Report, TensorReport

SCHEMA_VERSION = 1


def report_document(report: Report) -> dict[str, Any]:
    """The document that `convert --json` prints and `--report x.json` writes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {
            "id": report.source_id,
            "revision": report.revision,
            "architecture": report.architecture,
            "parameters": report.parameters,
        },
        "outputs": [_output(output) for output in report.outputs],
        "seconds": round(report.seconds, 3),
        "peak_memory_bytes": report.peak_memory_bytes,
        "warnings": report.warnings,
    }


def quality_document(quality: Quality | Similarity | None) -> dict[str, Any] | None:
    """Quality in a document; null where it was not measured."""
    return asdict(quality) if quality else None


def _output(output: Output) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": output.paths[0],
        "file_type": output.file_type,
        "method": output.method,
        "size_bytes": output.size_bytes,
        "bpw": round(output.bpw, 4),
        "ram_bytes": output.ram_bytes,
        "sha256": output.sha256[0],
        "estimated_divergence": output.divergence,
        "tensors": [_tensor(tensor, output.method) for tensor in output.worst],
        "quality": quality_document(output.quality),
        "similarity": quality_document(output.similarity),
    }
    if len(output.paths) > 1:
        document["shards"] = [
            {"path": path, "sha256": digest}
            for path, digest in zip(output.paths, output.sha256, strict=True)
        ]
    return document


def _tensor(tensor: TensorReport, method: str) -> dict[str, Any]:
    ratio = tensor.cost.of_rounding
    return {
        "name": tensor.name,
        "method": method if ratio is not None and ratio < 1 else "rtn",
        "type": tensor.type,
        "shape": list(reversed(tensor.shape)),
        "size_bytes": tensor.size_bytes,
        "rmse": tensor.cost.rmse,
        "relative_error": tensor.cost.relative_error,
        "max_error": tensor.cost.max_error,
        "output_error_of_rtn": ratio,
        "fallback": tensor.fallback,
        "estimated_divergence": tensor.divergence,
    }
