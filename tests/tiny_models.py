"""Tiny random checkpoints of every supported family, built without torch.

`build(folder, family, variant)` writes the same bytes on every machine: weights are sums of raw
PCG64 bits, which numpy keeps stable across versions, and the safetensors files are laid out here.
Stock llama.cpp loads the converted files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import tiny_dense
import tiny_gpt_oss
import tiny_latent
from tiny_tokenizers import VOCAB_SIZE, write_tokenizer

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """`config` on top of the family's; `multimodal`: inside a class that also sees images."""

    config: dict[str, Any]
    tokenizer: str
    dtype: str = "BF16"
    shards: int = 1
    multimodal: bool = False


# Rows of 256, grouped-query attention, untied; _ODD: rows that K-quants cannot divide.
_SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_ODD = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
_MULTIPLIERS = {
    key: tiny_dense.FAMILIES["granite"][key]
    for key in (
        "attention_multiplier",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
    )
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "sliding_window": 256,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "head_dim": 64},
    "qwen3moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "head_dim": 64,
        "moe_intermediate_size": 256,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "intermediate_size": 256,
    },
    "qwen2moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "hidden_act": "silu",
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 2,
    },
    "granitemoe": {
        "architectures": ["GraniteMoeForCausalLM"],
        "hidden_act": "silu",
        "intermediate_size": 256,
        **_MULTIPLIERS,
    },
    "granitemoeshared": {
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "hidden_act": "silu",
        "intermediate_size": 256,
        **_MULTIPLIERS,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 64,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "intermediate_size": 256,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 64,
        "tie_word_embeddings": True,
    },
}

# Of a mixture: the router, the folder of one expert, and its gate, up and down.
_EXPERTS = {
    "mixtral": ("block_sparse_moe.gate", "block_sparse_moe.experts.{}.", ("w1", "w3", "w2")),
    "qwen2moe": ("mlp.gate", "mlp.experts.{}.", ("gate_proj", "up_proj", "down_proj")),
    "qwen3moe": ("mlp.gate", "mlp.experts.{}.", ("gate_proj", "up_proj", "down_proj")),
}
_TOGETHER = ("granitemoe", "granitemoeshared")

VARIANTS: dict[tuple[str, str], Variant] = {
    ("llama", "gqa"): Variant(
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "llama3"
    ),
    ("llama", "tied"): Variant(
        {
            "tie_word_embeddings": True,
            "max_position_embeddings": 1024,
            "rope_theta": 500000.0,
            "rope_scaling": _LLAMA3_ROPE,
        },
        "llama3",
        shards=3,
    ),
    ("llama", "odd"): Variant(
        {
            **_ODD,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        "llama2",
        "F32",
    ),
    ("llama", "mha"): Variant({"num_key_value_heads": None, "head_dim": 64}, "gpt2", "F16"),
    ("mistral", "gqa"): Variant({"head_dim": 32, "rope_theta": 1000000.0}, "llama2"),
    ("qwen2", "tied"): Variant(
        {"tie_word_embeddings": True, "rope_theta": 1000000.0, "sliding_window": 256}, "qwen2"
    ),
    ("qwen2", "odd"): Variant(
        {
            **_ODD,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 24,
            },
        },
        "qwen2",
        "F16",
        shards=2,
    ),
    ("qwen3", "tied"): Variant(
        {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        "qwen2",
    ),
    ("qwen3", "odd"): Variant({**_ODD, "head_dim": 32}, "qwen2", "F32"),
    ("qwen3moe", "eight"): Variant({"num_experts": 8, "rope_theta": 1000000.0}, "qwen2", shards=2),
    ("qwen3moe", "odd"): Variant(
        {
            **_ODD,
            "head_dim": 32,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "tie_word_embeddings": True,
        },
        "qwen2",
        "F32",
    ),
    ("mixtral", "eight"): Variant({"num_local_experts": 8, "num_experts_per_tok": 2}, "llama2"),
    ("mixtral", "odd"): Variant(
        {**_ODD, "num_local_experts": 3, "num_experts_per_tok": 1, "rope_theta": 10000.0},
        "llama2",
        "F16",
        shards=3,
    ),
    ("qwen2moe", "shared"): Variant({"num_experts": 6, "rope_theta": 1000000.0}, "qwen2"),
    ("qwen2moe", "odd"): Variant(
        {
            **_ODD,
            "num_experts": 4,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
        },
        "qwen2",
        "F32",
    ),
    ("granitemoe", "eight"): Variant({"num_local_experts": 8, "num_experts_per_tok": 2}, "gpt2"),
    ("granitemoe", "odd"): Variant(
        {
            **_ODD,
            "intermediate_size": 48,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_theta": 20000.0,
        },
        "gpt2",
        "F32",
        shards=2,
    ),
    ("granitemoeshared", "shared"): Variant(
        {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 512},
        "gpt2",
        shards=2,
    ),
    ("granitemoeshared", "odd"): Variant(
        {
            **_ODD,
            "intermediate_size": 48,
            "num_local_experts": 5,
            "num_experts_per_tok": 5,
            "shared_intermediate_size": 80,
            "attention_bias": True,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        "gpt2",
        "F32",
    ),
    ("granitemoeshared", "none"): Variant(
        {"num_local_experts": 3, "num_experts_per_tok": 1, "shared_intermediate_size": 0},
        "gpt2",
        "F16",
    ),
    ("gemma2", "tied"): Variant({}, "gemma"),
    ("gemma2", "odd"): Variant(
        {**_ODD, "head_dim": 32, "query_pre_attn_scalar": 32, "final_logit_softcapping": 20.0},
        "gemma",
        "F32",
    ),
    ("gemma3", "tied"): Variant(
        {
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 8.0,
                    "rope_theta": 1000000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
            }
        },
        "gemma",
    ),
    ("gemma3", "odd"): Variant(
        {
            **_ODD,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "rope_theta": 2000000.0,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
        },
        "gemma",
        "F32",
    ),
    ("gemma3", "multimodal"): Variant({"num_hidden_layers": 2}, "gemma", shards=2, multimodal=True),
}

for more in (tiny_dense, tiny_latent, tiny_gpt_oss):
    _FAMILIES |= more.FAMILIES
    VARIANTS |= {name: Variant(*given) for name, given in more.VARIANTS.items()}
MIXTURES = [key for key in VARIANTS if key[0] in (*_EXPERTS, *_TOGETHER, "gpt_oss")]


def build(folder: Path, family: str, variant: str, **changes: Any) -> Path:
    """Write the checkpoint folder of a variant, its config changed, and return it."""
    config, shapes = describe(family, variant, **changes)
    spec = VARIANTS[family, variant]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, spec.tokenizer)
    write_weights(folder, shapes, spec, seed=crc32(f"{family}-{variant}".encode()))
    return folder


def describe(family: str, variant: str, **changes: Any) -> tuple[dict[str, Any], Shapes]:
    """The config.json and the shapes of every tensor, in stored order."""
    spec = VARIANTS[family, variant]
    config = {"model_type": family, **_SIZES, **_FAMILIES[family], **spec.config, **changes}
    if config["rms_norm_eps"] is None:  # a family of layer norms
        del config["rms_norm_eps"]
    config["vocab_size"] = VOCAB_SIZE[spec.tokenizer]
    config["dtype"] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[spec.dtype]
    shapes = _shapes(family, config)
    for key, own in tiny_dense.RENAMED.get(family, {}).items():
        value = config.pop(key)
        if own is not None and value is not None:
            config[own] = value
    if spec.multimodal:
        del config["architectures"]
        config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config}
        config["model_type"] = "gemma3"
        shapes = {f"language_model.{name}": shape for name, shape in shapes.items()}
        shapes["vision_tower.vision_model.head.weight"] = (8, 8)
    return config, shapes


def _shapes(family: str, config: dict[str, Any]) -> Shapes:
    for more in (tiny_dense, tiny_latent, tiny_gpt_oss):
        if family in more.FAMILIES:
            return more.shapes_of(family, config)
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        linears = {
            "self_attn.q_proj": (heads * head, hidden),
            "self_attn.k_proj": (groups * head, hidden),
            "self_attn.v_proj": (groups * head, hidden),
            "self_attn.o_proj": (hidden, heads * head),
            **_mlp(family, config),
        }
        for name, shape in linears.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            if _has_bias(family, config, name):
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
        for name in _norms(family):
            size = head if name.startswith("self_attn") else hidden
            shapes[f"model.layers.{i}.{name}.weight"] = (size,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _mlp(family: str, config: dict[str, Any]) -> Shapes:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    if family in _TOGETHER:
        return _together(config)
    if family not in _EXPERTS:
        return _gated("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", wide, hidden)
    router, path, names = _EXPERTS[family]
    count = config.get("num_experts") or config["num_local_experts"]
    shapes: Shapes = {router: (count, hidden)}
    wide = config.get("moe_intermediate_size", wide)
    for expert in range(count):
        shapes |= _gated(*(path.format(expert) + name for name in names), wide, hidden)
    if wide := config.get("shared_expert_intermediate_size"):
        names = [f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")]
        shapes |= {"mlp.shared_expert_gate": (1, hidden), **_gated(*names, wide, hidden)}
    return shapes


def _together(config: dict[str, Any]) -> Shapes:
    """Experts in two tensors, gate above up."""
    hidden, wide, count = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_local_experts")
    )
    shapes: Shapes = {
        "block_sparse_moe.router.layer": (count, hidden),
        "block_sparse_moe.input_linear": (count, 2 * wide, hidden),
        "block_sparse_moe.output_linear": (count, hidden, wide),
    }
    if wide := config.get("shared_intermediate_size"):
        shapes["shared_mlp.input_linear"] = (2 * wide, hidden)
        shapes["shared_mlp.output_linear"] = (hidden, wide)
    return shapes


def _gated(gate: str, up: str, down: str, wide: int, hidden: int) -> Shapes:
    return {gate: (wide, hidden), up: (wide, hidden), down: (hidden, wide)}


def _has_bias(family: str, config: dict[str, Any], linear: str) -> bool:
    if family in ("qwen2", "qwen2moe"):
        return linear.endswith(("q_proj", "k_proj", "v_proj"))
    return bool(config.get("attention_bias" if linear.startswith("self_attn") else "mlp_bias"))


def _norms(family: str) -> list[str]:
    norms = ["input_layernorm", "post_attention_layernorm"]
    if family.startswith("gemma"):
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    if family in ("qwen3", "qwen3moe", "gemma3"):
        norms += ["self_attn.q_norm", "self_attn.k_norm"]
    return norms


def write_weights(folder: Path, shapes: Shapes, spec: Variant, seed: int) -> None:
    bits = np.random.PCG64(seed)
    names = list(shapes)
    if spec.shards == 1:
        _write_safetensors(folder / "model.safetensors", names, shapes, spec.dtype, bits)
        return
    where: dict[str, str] = {}
    for number in range(spec.shards):
        file = f"model-{number + 1:05}-of-{spec.shards:05}.safetensors"
        part = names[number * len(names) // spec.shards : (number + 1) * len(names) // spec.shards]
        _write_safetensors(folder / file, part, shapes, spec.dtype, bits)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_safetensors(
    path: Path, names: list[str], shapes: Shapes, dtype: str, bits: np.random.PCG64
) -> None:
    """Header length, JSON header padded to 8 bytes, then the tensors without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    types = {name: "U8" if name.endswith(("_blocks", "_scales")) else dtype for name in names}
    arrays = [
        _codes(name, shapes[name], bits)
        if types[name] == "U8"
        else _stored(_random(name, shapes[name], bits), dtype)
        for name in names
    ]
    offset = 0
    for name, array in zip(names, arrays, strict=True):
        end = offset + array.nbytes
        header[name] = {"dtype": types[name], "shape": shapes[name], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(array.tobytes())


def _random(name: str, shape: tuple[int, ...], bits: np.random.PCG64) -> np.ndarray:
    """float32, nearly normal; matrices scaled by their row length, norms near their neutral value.

    The sum of four 16-bit lanes of each raw 64-bit number is exact in float32.
    """
    count = int(np.prod(shape))
    lanes = bits.random_raw(count).astype("<u8").view("<u2").reshape(count, 4)
    unit = (lanes.sum(axis=1, dtype=np.int64) - 2 * 65535).astype(np.float32) / np.float32(37837)
    if name.endswith("gate_up_proj_bias"):  # some beyond the limit of GPT-OSS
        return unit.reshape(shape) * np.float32(4)
    if len(shape) > 1:
        turned = len(shape) == 3 and name.endswith("_proj")  # [experts, inputs, outputs]
        return unit.reshape(shape) / np.sqrt(np.float32(shape[1 if turned else -1]))
    # Of a norm or a scale, else a bias.
    neutral = 1.0 if name.endswith((".weight", ".gamma", "layer_scalar")) else 0.0
    return np.float32(neutral) + unit * np.float32(0.1)


def _codes(name: str, shape: tuple[int, ...], bits: np.random.PCG64) -> np.ndarray:
    """MXFP4: any two codes to a byte, and powers of two that make weights of usual size."""
    raw = bits.random_raw(int(np.prod(shape))).astype("<u8").view("<u2")[::4].reshape(shape)
    return (raw & 0xFF if name.endswith("_blocks") else 120 + (raw & 3)).astype(np.uint8)


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F32":
        return values.astype("<f4")
    if dtype == "F16":
        return values.astype("<f2")
    codes = values.astype("<f4").view("<u4")
    return ((codes + 0x7FFF + ((codes >> 16) & 1)) >> 16).astype("<u2")
