"""Tiny random LoRA adapters for the checkpoints of tests/tiny_models.py, as PEFT would save them.

`build_adapter(folder, name)` writes the same bytes on every machine.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from tiny_models import describe

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BASE_MODEL = "base_model.model."


@dataclass(frozen=True)
class Spec:
    """An adapter of a tiny model's modules whose last names are `targets`.

    `config` on top of rank 8 and alpha 16; `saved` are modules that it holds as a whole.
    """

    family: str
    variant: str
    targets: tuple[str, ...] = LINEARS
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "F32"
    saved: tuple[str, ...] = ()


ADAPTERS = {
    "llama": Spec("llama", "gqa", config={"r": 32, "lora_alpha": 8}),
    "llama-embedding": Spec("llama", "mha", ("q_proj", "k_proj", "embed_tokens", "lm_head")),
    "mistral-bf16": Spec("mistral", "gqa", ("q_proj", "v_proj"), dtype="BF16"),
    "qwen3-rslora": Spec("qwen3", "tied", config={"use_rslora": True}, dtype="F16"),
    "gemma3-patterns": Spec(
        "gemma3",
        "tied",
        ("q_proj", "k_proj", "down_proj"),
        {
            "rank_pattern": {"down_proj": 4, "layers.1.self_attn.q_proj": 16},
            "alpha_pattern": {"k_proj": 3, "model.layers.2.mlp.down_proj": 40},
        },
    ),
    "llama-saved": Spec("llama", "odd", ("q_proj", "up_proj"), saved=("model.norm", "lm_head")),
}


def build_adapter(folder: Path, name: str, **changes: Any) -> Path:
    """Write adapter_config.json, adapter_model.safetensors and README.md; return the folder.

    `changes` are of the config only: the weights stay those of the spec.
    """
    spec = ADAPTERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(spec)
    (folder / "adapter_config.json").write_text(json.dumps(config | changes, indent=2) + "\n")
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors_of(name)))
    card = "---\nbase_model: org/tiny-llama\nlibrary_name: peft\nlicense: mit\ntags:\n- lora\n---\n"
    (folder / "README.md").write_text(card)
    return folder


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    """A file of these tensors; uint16 is BF16."""
    dtypes = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
    header: dict[str, Any] = {}
    offset = 0
    for name, array in tensors.items():
        offsets = [offset, offset + array.nbytes]
        dtype = dtypes[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        offset = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(array.tobytes() for array in tensors.values())
    return len(text).to_bytes(8, "little") + text + data


def config_of(spec: Spec) -> dict[str, Any]:
    """What PEFT would write, defaults that are on included."""
    return {
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/tiny-llama",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "modules_to_save": list(spec.saved) or None,
        "qalora_group_size": 16,
        "r": 8,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": list(spec.targets),
        "use_dora": False,
        "use_rslora": False,
    } | spec.config


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """The tensors as stored, by their names in the file."""
    spec = ADAPTERS[name]
    bits = np.random.PCG64(crc32(f"lora-{name}".encode()))
    found: dict[str, np.ndarray] = {}
    for weight, shape in describe(spec.family, spec.variant)[1].items():
        module = weight.removesuffix(".weight")
        last = module.rpartition(".")[2]
        if weight.endswith(".weight") and module in spec.saved:
            found[BASE_MODEL + weight] = _stored(_random(shape, bits), spec.dtype)
        elif weight.endswith(".weight") and last in spec.targets:
            rank = rank_and_scaling(config_of(spec), module)[0]
            n_out, n_in = shape[::-1] if last == "embed_tokens" else shape
            a, b = _random((rank, n_in), bits), _random((n_out, rank), bits)
            kind = "lora_embedding_{}" if last == "embed_tokens" else "lora_{}.weight"
            for letter, values in (("A", a), ("B", b)):
                stored = _stored(values, spec.dtype)
                found[f"{BASE_MODEL}{module}.{kind.format(letter)}"] = stored
    return found


def rank_and_scaling(config: dict[str, Any], module: str) -> tuple[int, float]:
    """By PEFT's rule: the first pattern that ends the module's name, as a regular expression."""

    def of(key: str, otherwise: Any) -> Any:
        patterns = config[key]
        return next(
            (patterns[p] for p in patterns if re.match(rf"(.*\.)?({p})$", module)), otherwise
        )

    rank, alpha = of("rank_pattern", config["r"]), of("alpha_pattern", config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config["use_rslora"] else rank)


def as_float(stored: np.ndarray) -> np.ndarray:
    """Stored values (uint16: BF16) as float64."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def delta_of(name: str, weight: str) -> np.ndarray | None:
    """scaling * B A for a tensor of the base, float64, by PEFT's definition; None without one."""
    tensors, module = tensors_of(name), weight.removesuffix(".weight")
    scaling = rank_and_scaling(config_of(ADAPTERS[name]), module)[1]
    path = BASE_MODEL + module
    if f"{path}.lora_A.weight" in tensors:
        a, b = (as_float(tensors[f"{path}.lora_{x}.weight"]) for x in "AB")
        return scaling * (b @ a)
    if f"{path}.lora_embedding_A" in tensors:
        a, b = (as_float(tensors[f"{path}.lora_embedding_{x}"]) for x in "AB")
        return scaling * (b @ a).T
    return None


def _random(shape: tuple[int, ...], bits: np.random.PCG64) -> np.ndarray:
    """float32, uniform in (-0.1, 0.1), around 1 for a vector."""
    raw = bits.random_raw(math.prod(shape)).astype("<u8") >> np.uint64(40)
    unit = raw.astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)
    values = unit.reshape(shape) * np.float32(0.2)
    return values + np.float32(1) if len(shape) == 1 else values


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if dtype == "F16" else values
