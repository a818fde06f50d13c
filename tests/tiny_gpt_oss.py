"""GPT-OSS of tiny_models.py: configs and tensors, as in tiny_dense.py. Its experts are stored in
blocks of MXFP4 or, after a training, as [experts, inputs, outputs].
"""

from typing import Any

Shapes = dict[str, tuple[int, ...]]
Config = dict[str, Any]

FAMILIES: dict[str, Config] = {
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "hidden_act": "silu",
        "attention_bias": True,
        "head_dim": 64,
        "sliding_window": 64,
        "num_experts_per_tok": 2,
        "swiglu_limit": 7.0,
        "pad_token_id": None,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 64,
            # As llama.cpp computes it in any case.
            "truncate": True,
        },
    }
}

VARIANTS: dict[tuple[str, str], tuple[Config, str, str, int]] = {
    ("gpt_oss", "blocks"): (
        {
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_local_experts": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "quantization_config": {
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
            },
        },
        "gpt2",
        "BF16",
        2,
    ),
    ("gpt_oss", "plain"): (
        {"intermediate_size": 256, "num_local_experts": 3, "num_key_value_heads": 1},
        "gpt2",
        "BF16",
        1,
    ),
    ("gpt_oss", "odd"): (
        {
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 48,
        },
        "gpt2",
        "F32",
        1,
    ),
}


def shapes_of(_: str, config: Config) -> Shapes:
    """Every tensor in stored order."""
    hidden, head = config["hidden_size"], config["head_dim"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    count = config["num_local_experts"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        linears = {
            "self_attn.q_proj": (heads * head, hidden),
            "self_attn.k_proj": (groups * head, hidden),
            "self_attn.v_proj": (groups * head, hidden),
            "self_attn.o_proj": (hidden, heads * head),
            "mlp.router": (count, hidden),
        }
        made: Shapes = {"self_attn.sinks": (heads,), **_experts(config)}
        for name, shape in linears.items():
            made |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        made |= {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in made.items()}
    return {
        **shapes,
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }


def _experts(config: Config) -> Shapes:
    count, hidden, wide = (
        config[key] for key in ("num_local_experts", "hidden_size", "intermediate_size")
    )
    shapes: Shapes = {}
    for name, n_in, n_out in (("gate_up", hidden, 2 * wide), ("down", wide, hidden)):
        path = f"mlp.experts.{name}_proj"
        shapes[f"{path}_bias"] = (count, n_out)
        if "quantization_config" in config:
            shapes[f"{path}_blocks"] = (count, n_out, n_in // 32, 16)
            shapes[f"{path}_scales"] = (count, n_out, n_in // 32)
        else:
            shapes[path] = (count, n_in, n_out)
    return shapes
