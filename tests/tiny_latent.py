"""Families of tiny_models.py with latent attention: configs and tensors, as in tiny_dense.py."""

from typing import Any

Shapes = dict[str, tuple[int, ...]]
Config = dict[str, Any]

FAMILIES: dict[str, Config] = {
    "deepseek2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 128,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "first_k_dense_replace": 1,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 128,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": False,
        "topk_method": "greedy",
    }
}

VARIANTS: dict[tuple[str, str], tuple[Config, str, str, int]] = {
    # As DeepSeek-V2-Lite says it; llama.cpp tells from the 26 blocks that queries have no latent.
    ("deepseek2", "lite"): (
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 26,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "q_lora_rank": None,
            "kv_lora_rank": 64,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
            "n_group": 1,
            "topk_group": 1,
            "moe_layer_freq": 1,
            "rope_theta": 10000,
            "rope_scaling": {
                "type": "yarn",
                "factor": 40,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 64,
            },
        },
        "gpt2",
        "BF16",
        1,
    ),
    ("deepseek2", "queries"): (
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 128,
            }
        },
        "gpt2",
        "BF16",
        2,
    ),
    ("deepseek2", "odd"): (
        {
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "q_lora_rank": 40,
            "kv_lora_rank": 48,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": 2,
            "n_routed_experts": 5,
            "num_experts_per_tok": 3,
            "n_shared_experts": 3,
            "moe_intermediate_size": 48,
            "rope_theta": 50000.0,
            "tie_word_embeddings": True,
        },
        "gpt2",
        "F32",
        1,
    ),
}


def shapes_of(_: str, config: Config) -> Shapes:
    """Every tensor in stored order."""
    hidden = config["hidden_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        dense = i < config["first_k_dense_replace"]
        made = {
            **_attention(config),
            **(_gated("mlp", config["intermediate_size"], hidden) if dense else _mixture(config)),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in made.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _attention(config: Config) -> Shapes:
    hidden, heads, rank = (
        config[key] for key in ("hidden_size", "num_attention_heads", "kv_lora_rank")
    )
    still, turning, value = (
        config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    queries = {"self_attn.q_proj": (heads * (still + turning), hidden)}
    if inner := config["q_lora_rank"]:
        queries = {
            "self_attn.q_a_proj": (inner, hidden),
            "self_attn.q_a_layernorm": (inner,),
            "self_attn.q_b_proj": (heads * (still + turning), inner),
        }
    return {
        **queries,
        "self_attn.kv_a_proj_with_mqa": (rank + turning, hidden),
        "self_attn.kv_a_layernorm": (rank,),
        "self_attn.kv_b_proj": (heads * (still + value), rank),
        "self_attn.o_proj": (hidden, heads * value),
    }


def _mixture(config: Config) -> Shapes:
    hidden, wide, count = (
        config[key] for key in ("hidden_size", "moe_intermediate_size", "n_routed_experts")
    )
    shapes: Shapes = {"mlp.gate": (count, hidden)}
    for expert in range(count):
        shapes |= _gated(f"mlp.experts.{expert}", wide, hidden)
    return {**shapes, **_gated("mlp.shared_experts", wide * config["n_shared_experts"], hidden)}


def _gated(where: str, wide: int, hidden: int) -> Shapes:
    return {
        f"{where}.gate_proj": (wide, hidden),
        f"{where}.up_proj": (wide, hidden),
        f"{where}.down_proj": (hidden, wide),
    }
