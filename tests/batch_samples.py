"""Summaries of batches to look at: documents as the batch writes them, with made-up figures."""

import hashlib
import math
from dataclasses import asdict
from typing import Any

from report_samples import quality

TYPES = (("Q3_K_M", 3.91, 0.062), ("Q4_K_M", 4.84, 0.0143), ("Q8_0", 8.5, 0.00061))
MODELS = (
    ("meta-llama/Llama-3.2-1B-Instruct", "LlamaForCausalLM", 1_235_814_400),
    ("meta-llama/Llama-3.2-3B-Instruct", "LlamaForCausalLM", 3_212_749_824),
    ("meta-llama/Llama-3.1-8B-Instruct", "LlamaForCausalLM", 8_030_261_248),
    ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2ForCausalLM", 494_032_768),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen2ForCausalLM", 7_615_616_512),
    ("Qwen/Qwen3-0.6B", "Qwen3ForCausalLM", 596_049_920),
    ("Qwen/Qwen3-8B", "Qwen3ForCausalLM", 8_190_735_360),
    ("Qwen/Qwen3-32B", "Qwen3ForCausalLM", 32_762_123_264),
    ("google/gemma-2-9b-it", "Gemma2ForCausalLM", 9_241_705_984),
    ("google/gemma-3-1b-it", "Gemma3ForCausalLM", 999_885_952),
    ("mistralai/Mistral-7B-Instruct-v0.3", "MistralForCausalLM", 7_248_023_552),
    ("HuggingFaceTB/SmolLM2-360M-Instruct", "LlamaForCausalLM", 361_821_120),
)
FAILED = (
    (5, "google/gemma-2-9b-it is gated: accept its licence on the hub, then set HF_TOKEN"),
    (6, "'/srv/zoo/cache/model-00002-of-00004.safetensors': connection reset after 5 attempts"),
)


def zoo(failed: tuple[int, ...] = (8, 10), measured: bool = True) -> dict[str, Any]:
    """Twelve models in three types; those of the given numbers failed."""
    jobs = []
    for number, (name, architecture, parameters) in enumerate(MODELS):
        job = done(number, name, architecture, parameters, measured)
        if number in failed:
            code, error = FAILED[failed.index(number) % len(FAILED)]
            job |= {"status": "failed", "exit_code": code, "error": error, "outputs": []}
            job |= {"reports": [], "published": None, "attempts": 3 if code == 6 else 1}
        jobs.append(job)
    jobs[0]["warnings"] = [f"blk.{i}.attn_k.weight: no importance" for i in range(14)]
    return summary(jobs)


def many(n: int) -> dict[str, Any]:
    """So many jobs in three types, one in fifty of them failed."""
    jobs = []
    for number in range(n):
        name, architecture, parameters = MODELS[number % len(MODELS)]
        job = done(number, f"{name}-{number:05}", architecture, parameters, True)
        if number % 50 == 49:
            code, error = FAILED[number % 2]
            job |= {"status": "failed", "exit_code": code, "error": error, "outputs": []}
        jobs.append(job)
    return summary(jobs)


def summary(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The document around jobs."""
    counts = {
        status: sum(job["status"] == status for job in jobs)
        for status in ("done", "failed", "skipped")
    }
    outputs = [output for job in jobs for output in job["outputs"]]
    return {
        "schema_version": 1,
        "manifest": "zoo.toml",
        "shard": None,
        "jobs": jobs,
        "totals": {
            "jobs": len(jobs),
            **counts,
            "outputs": len(outputs),
            "size_bytes": sum(output["size_bytes"] for output in outputs),
            "seconds": sum(job["seconds"] for job in jobs),
        },
    }


def done(
    number: int, name: str, architecture: str, parameters: int, measured: bool
) -> dict[str, Any]:
    """A job that went well; figures vary with its number."""
    base = name.split("/")[1]
    hardness = math.exp(0.5 * math.sin(2.3 * number)) * (10**9 / parameters) ** 0.2
    outputs = [
        {
            "path": f"{base}/{base}-{file_type}.gguf",
            "file_type": file_type,
            "size_bytes": (size := int(parameters * bpw / 8)),
            "bpw": bpw,
            "sha256": hashlib.sha256(f"{name} {file_type}".encode()).hexdigest(),
            "ram_bytes": size + 600_000_000,
            "quality": asdict(quality(loss * hardness)) if measured else None,
        }
        for file_type, bpw, loss in TYPES
    ]
    return {
        "name": name,
        "source": name,
        "revision": hashlib.sha1(name.encode()).hexdigest(),
        "method": "gptq",
        "recipe": None,
        "status": "done",
        "exit_code": 0,
        "error": None,
        "attempts": 1,
        "seconds": parameters / 9e6,
        "peak_memory_bytes": 400_000_000 + parameters // 4,
        "architecture": architecture,
        "parameters": parameters,
        "outputs": outputs,
        "reports": [f"reports/{base}.html", f"reports/{base}.json"],
        "warnings": [],
        "published": f"https://huggingface.co/zoo/{base}-GGUF" if number % 2 else None,
    }
