"""The families of tiny_models.py that are not shaped like Llama: configs and tensors.

FAMILIES: config.json keys; VARIANTS: config on top, tokenizer, dtype, number of files.
"""

from typing import Any

Shapes = dict[str, tuple[int, ...]]
Config = dict[str, Any]

ODD = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
ODD_MHA = {**ODD, "num_key_value_heads": 3}
_FACTORS = [1.0 + 0.25 * i for i in range(24)]
_LONG = {
    "type": "longrope",
    "short_factor": _FACTORS,
    "long_factor": [3 * factor for factor in _FACTORS],
}

FAMILIES: dict[str, Config] = {
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "hidden_act": "silu",
        "num_hidden_layers": 4,
        "intermediate_size": 256,
        "no_rope_layer_interval": 4,
        "pad_token_id": None,
    },
    "phi3": {"architectures": ["Phi3ForCausalLM"], "hidden_act": "silu", "pad_token_id": None},
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], "hidden_act": "silu"},
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        "hidden_act": "silu",
        "attention_multiplier": 0.0625,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "cohere": {
        "architectures": ["CohereForCausalLM"],
        "rms_norm_eps": None,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.25,
        "tie_word_embeddings": True,
    },
    "stablelm": {
        "architectures": ["StableLmForCausalLM"],
        "rms_norm_eps": None,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
        "use_qkv_bias": True,
    },
    "starcoder2": {
        "architectures": ["Starcoder2ForCausalLM"],
        "rms_norm_eps": None,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "use_bias": True,
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"],
        "rms_norm_eps": None,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "num_key_value_heads": 4,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
    },
    "nemotron": {
        "architectures": ["NemotronForCausalLM"],
        "rms_norm_eps": None,
        "hidden_act": "relu2",
        "norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
    },
    "gemma4": {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 6,
        "intermediate_size": 256,
        "head_dim": 32,
        "global_head_dim": 64,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 682,
        "num_kv_shared_layers": 0,
        "enable_moe_block": False,
        "moe_intermediate_size": None,
        "use_double_wide_mlp": False,
        "final_logit_softcapping": 30.0,
        "sliding_window": 64,
        "tie_word_embeddings": True,
    },
    "olmo3": {
        "architectures": ["Olmo3ForCausalLM"],
        "hidden_act": "silu",
        "num_hidden_layers": 4,
        "intermediate_size": 256,
        "sliding_window": 64,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "rms_norm_eps": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_ctx": 512,
    },
    "falcon": {
        "architectures": ["FalconForCausalLM"],
        "rms_norm_eps": None,
        "num_key_value_heads": None,
        "activation": "gelu_new",
        "alibi": False,
        "bias": False,
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
    },
    "glm": {
        "architectures": ["GlmForCausalLM"],
        "hidden_act": "silu",
        "head_dim": 64,
        "attention_bias": True,
        "pad_token_id": None,
        # The converter writes the hidden size for the context length.
        "max_position_embeddings": 256,
    },
    "glm4": {
        "architectures": ["Glm4ForCausalLM"],
        "hidden_act": "silu",
        "head_dim": 32,
        "attention_bias": True,
        "pad_token_id": None,
    },
    "internlm2": {
        "architectures": ["InternLM2ForCausalLM"],
        "hidden_act": "silu",
        "bias": False,
        "rope_theta": 10000.0,
        "eos_token_id": 2,
    },
    "exaone": {
        "architectures": ["ExaoneForCausalLM"],
        "activation_function": "silu",
        "layer_norm_epsilon": 1e-5,
        "pad_token_id": 0,
    },
}

# Families whose config.json has names of its own for what the others share; None: no such key.
RENAMED: dict[str, dict[str, str | None]] = {
    "exaone": {"num_hidden_layers": "num_layers"},
    "gpt2": {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "num_key_value_heads": None,
        "intermediate_size": None,
    },
    "falcon": {
        "num_key_value_heads": "num_kv_heads",
        "intermediate_size": None,
        "max_position_embeddings": None,
    },
}

VARIANTS: dict[tuple[str, str], tuple[Config, str, str, int]] = {
    ("smollm3", "tied"): (
        {"tie_word_embeddings": True, "rope_theta": 5000000.0},
        "llama3",
        "BF16",
        1,
    ),
    ("smollm3", "odd"): (
        {**ODD, "num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1], "rope_theta": 2e6},
        "llama3",
        "F32",
        1,
    ),
    ("phi3", "mha"): ({"num_key_value_heads": 4, "sliding_window": 2047}, "llama2", "BF16", 1),
    ("phi3", "odd"): (
        {
            **ODD,
            "hidden_size": 192,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 64,
            "rope_scaling": _LONG,
            "tie_word_embeddings": True,
        },
        "llama2",
        "F32",
        2,
    ),
    ("phi3", "short"): (
        {
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 256,
            "rope_scaling": _LONG,
        },
        "llama2",
        "BF16",
        1,
    ),
    ("olmo2", "mha"): ({"num_key_value_heads": 4, "rope_theta": 500000.0}, "gpt2", "BF16", 1),
    ("olmo2", "odd"): (ODD, "gpt2", "F32", 2),
    ("granite", "tied"): ({"tie_word_embeddings": True}, "gpt2", "BF16", 1),
    ("granite", "odd"): (
        {**ODD, "attention_bias": True, "mlp_bias": True, "rope_theta": 20000.0},
        "gpt2",
        "F32",
        1,
    ),
    ("cohere", "tied"): ({"model_max_length": 1024}, "gpt2", "BF16", 1),
    ("cohere", "odd"): ({**ODD_MHA, "logit_scale": 2.0}, "gpt2", "F32", 2),
    ("stablelm", "gqa"): ({}, "gpt2", "BF16", 1),
    ("stablelm", "odd"): ({**ODD_MHA, "use_qkv_bias": False}, "gpt2", "F32", 1),
    ("starcoder2", "tied"): (
        {"tie_word_embeddings": True, "rope_theta": 100000.0},
        "gpt2",
        "BF16",
        1,
    ),
    ("starcoder2", "odd"): (ODD, "gpt2", "F32", 1),
    ("gpt_neox", "parallel"): ({}, "gpt2", "F16", 1),
    ("gpt_neox", "odd"): (
        {**ODD_MHA, "rotary_pct": 1.0, "use_parallel_residual": False},
        "gpt2",
        "F32",
        2,
    ),
    ("nemotron", "gqa"): ({}, "llama2", "BF16", 1),
    ("nemotron", "odd"): (
        {**ODD, "attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 0.25},
        "llama2",
        "F32",
        1,
    ),
    ("olmo3", "yarn"): (
        {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "attention_factor": 1.1386294361119891,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        },
        "gpt2",
        "BF16",
        1,
    ),
    ("olmo3", "odd"): (
        {
            **ODD,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_theta": 500000.0,
        },
        "gpt2",
        "F32",
        2,
    ),
    ("gemma4", "tied"): (
        {"use_bidirectional_attention": "vision"},
        "gemma4",
        "BF16",
        1,
    ),
    ("gemma4", "odd"): (
        {
            **ODD,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 48,
            "global_head_dim": 32,
            "num_global_key_value_heads": None,
            "final_logit_softcapping": 20.0,
            "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": 500000.0,
                    "partial_rotary_factor": 0.5,
                },
            },
        },
        "gemma4",
        "F32",
        2,
    ),
    ("gpt2", "tied"): ({"tie_word_embeddings": True}, "gpt2", "BF16", 1),
    ("gpt2", "odd"): ({**ODD_MHA, "layer_norm_epsilon": 1e-6}, "gpt2", "F32", 2),
    ("falcon", "shared"): ({"tie_word_embeddings": True}, "gpt2", "BF16", 1),
    ("falcon", "grouped"): (
        {"new_decoder_architecture": True, "num_key_value_heads": 2},
        "gpt2",
        "F16",
        2,
    ),
    ("falcon", "odd"): (
        {**ODD_MHA, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        "gpt2",
        "F32",
        2,
    ),
    ("falcon", "mha"): ({**ODD_MHA, "multi_query": False}, "gpt2", "F32", 1),
    ("glm", "half"): ({}, "glm", "BF16", 2),
    ("glm", "odd"): (
        {
            **ODD,
            "head_dim": 32,
            "attention_bias": False,
            "max_position_embeddings": 96,
            "partial_rotary_factor": 1.0,
            "tie_word_embeddings": True,
        },
        "glm",
        "F32",
        1,
    ),
    ("glm4", "half"): ({"rms_norm_eps": 1.5625e-07, "rope_theta": 20000.0}, "glm", "BF16", 1),
    ("glm4", "odd"): (
        {
            **ODD,
            "head_dim": 48,
            "attention_bias": False,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            "tie_word_embeddings": True,
        },
        "glm",
        "F32",
        2,
    ),
}
VARIANTS[("internlm2", "gqa")] = (
    {"rope_theta": 1000000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "internlm2",
    "BF16",
    2,
)
VARIANTS[("internlm2", "odd")] = (
    {**ODD, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "internlm2",
    "F32",
    1,
)


VARIANTS[("exaone", "gqa")] = (
    {
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "gpt2",
    "BF16",
    2,
)
VARIANTS[("exaone", "odd")] = (
    {**ODD, "rope_theta": 20000.0, "tie_word_embeddings": True},
    "gpt2",
    "F32",
    1,
)


def shapes_of(family: str, config: Config) -> Shapes:
    """Every tensor in stored order."""
    others = {"gpt_neox": _gpt_neox, "gpt2": _gpt2, "falcon": _falcon, "internlm2": _internlm2}
    others |= {"gemma4": _gemma4, "exaone": _exaone}
    return others.get(family, _llama_like)(family, config)


def _llama_like(family: str, config: Config) -> Shapes:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    q, kv = _heads(config)
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        found = _linears(family, hidden, wide, q, kv)
        for name, shape in found.items():
            bias = _has_bias(family, config, name)
            _add(shapes, f"model.layers.{i}.{name}", shape, bias=bias)
        for name, size in _norms(family, hidden, q, kv).items():
            _add(shapes, f"model.layers.{i}.{name}", (size,), bias=family in _BIASED)
    _add(shapes, "model.norm", (hidden,), bias=family in _BIASED)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


_BIASED = ("stablelm", "starcoder2", "nemotron")  # layer norms with a bias


def _linears(family: str, hidden: int, wide: int, q: int, kv: int) -> Shapes:
    qkv: Shapes = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
    }
    mlp: Shapes = {
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    if family == "phi3":
        qkv = {"self_attn.qkv_proj": (q + 2 * kv, hidden)}
    if family in ("phi3", "glm", "glm4"):
        mlp = {"mlp.gate_up_proj": (2 * wide, hidden), "mlp.down_proj": (hidden, wide)}
    if family == "nemotron":
        del mlp["mlp.gate_proj"]
    if family == "starcoder2":
        mlp = {"mlp.c_fc": (wide, hidden), "mlp.c_proj": (hidden, wide)}
    return {**qkv, "self_attn.o_proj": (hidden, q), **mlp}


def _has_bias(family: str, config: Config, linear: str) -> bool:
    if family == "starcoder2":
        return True
    if family == "stablelm":
        return bool(config["use_qkv_bias"]) and linear.endswith(("q_proj", "k_proj", "v_proj"))
    if family in ("glm", "glm4") and linear == "self_attn.o_proj":
        return False
    return bool(config.get("attention_bias" if linear.startswith("self_attn") else "mlp_bias"))


def _norms(family: str, hidden: int, q: int, kv: int) -> dict[str, int]:
    if family == "cohere":
        return {"input_layernorm": hidden}
    if family in ("olmo2", "olmo3"):
        after = {"post_attention_layernorm": hidden, "post_feedforward_layernorm": hidden}
        return {"self_attn.q_norm": q, "self_attn.k_norm": kv, **after}
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if family == "glm4":
        norms |= {"post_self_attn_layernorm": hidden, "post_mlp_layernorm": hidden}
    return norms


def _gemma4(_: str, config: Config) -> Shapes:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads, blocks = config["num_attention_heads"], config["num_hidden_layers"]
    local = config.get("layer_types") or (["sliding_attention"] * 5 + ["full_attention"]) * blocks
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(blocks):
        slides = local[i] == "sliding_attention"
        size = config["head_dim" if slides else "global_head_dim"]
        groups = config["num_key_value_heads"]
        if not slides:
            groups = config["num_global_key_value_heads"] or groups
        linears = _linears("gemma4", hidden, wide, heads * size, groups * size)
        if not slides:
            del linears["self_attn.v_proj"]
        norms = ("input_layernorm", "post_attention_layernorm")
        norms += ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        linears |= dict.fromkeys(norms, (hidden,))
        linears |= {f"self_attn.{name}_norm": (size,) for name in "qk"}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in linears.items()}
        shapes[f"model.layers.{i}.layer_scalar"] = (1,)
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def _exaone(_: str, config: Config) -> Shapes:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    q, kv = _heads(config)
    shapes: Shapes = {"transformer.wte.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "ln_1": (hidden,),
            "attn.attention.k_proj": (kv, hidden),
            "attn.attention.v_proj": (kv, hidden),
            "attn.attention.q_proj": (q, hidden),
            "attn.attention.out_proj": (hidden, q),
            "ln_2": (hidden,),
            "mlp.c_fc_0": (wide, hidden),
            "mlp.c_fc_1": (wide, hidden),
            "mlp.c_proj": (hidden, wide),
        }.items():
            shapes[f"transformer.h.{i}.{name}.weight"] = shape
    shapes["transformer.ln_f.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _gpt_neox(_: str, config: Config) -> Shapes:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {"gpt_neox.embed_in.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "attention.query_key_value": (3 * hidden, hidden),
            "attention.dense": (hidden, hidden),
            "mlp.dense_h_to_4h": (wide, hidden),
            "mlp.dense_4h_to_h": (hidden, wide),
        }.items():
            _add(shapes, f"gpt_neox.layers.{i}.{name}", shape, bias=True)
    _add(shapes, "gpt_neox.final_layer_norm", (hidden,), bias=True)
    shapes["embed_out.weight"] = (config["vocab_size"], hidden)
    return shapes


def _gpt2(_: str, config: Config) -> Shapes:
    """Matrices [n_in, n_out]; names as the first files have them if the head is tied."""
    hidden = config["hidden_size"]
    prefix = "" if config["tie_word_embeddings"] else "transformer."
    shapes: Shapes = {f"{prefix}wte.weight": (config["vocab_size"], hidden)}
    shapes[f"{prefix}wpe.weight"] = (config["max_position_embeddings"], hidden)
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "ln_1": (hidden,),
            "attn.c_attn": (hidden, 3 * hidden),
            "attn.c_proj": (hidden, hidden),
            "ln_2": (hidden,),
            "mlp.c_fc": (hidden, 4 * hidden),
            "mlp.c_proj": (4 * hidden, hidden),
        }.items():
            shapes[f"{prefix}h.{i}.{name}.weight"] = shape
            shapes[f"{prefix}h.{i}.{name}.bias"] = shape[-1:]
    _add(shapes, f"{prefix}ln_f", (hidden,), bias=True)
    if prefix:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _falcon(_: str, config: Config) -> Shapes:
    hidden, newer = config["hidden_size"], config["new_decoder_architecture"]
    shared = config["multi_query"] and not newer
    q, kv = _heads({**config, "num_key_value_heads": 1} if shared else config)
    two = newer and config.get("num_ln_in_parallel_attn") != 1
    shapes: Shapes = {"transformer.word_embeddings.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        for norm in ("ln_attn", "ln_mlp") if two else ("input_layernorm",):
            _add(shapes, f"transformer.h.{i}.{norm}", (hidden,), bias=True)
        for name, shape in {
            "self_attention.query_key_value": (q + 2 * kv, hidden),
            "self_attention.dense": (hidden, hidden),
            "mlp.dense_h_to_4h": (4 * hidden, hidden),
            "mlp.dense_4h_to_h": (hidden, 4 * hidden),
        }.items():
            _add(shapes, f"transformer.h.{i}.{name}", shape, bias=False)
    _add(shapes, "transformer.ln_f", (hidden,), bias=True)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _internlm2(_: str, config: Config) -> Shapes:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    q, kv = _heads(config)
    shapes: Shapes = {"model.tok_embeddings.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "attention.wqkv": (q + 2 * kv, hidden),
            "attention.wo": (hidden, q),
            "feed_forward.w1": (wide, hidden),
            "feed_forward.w3": (wide, hidden),
            "feed_forward.w2": (hidden, wide),
            "attention_norm": (hidden,),
            "ffn_norm": (hidden,),
        }.items():
            _add(shapes, f"model.layers.{i}.{name}", shape, bias=False)
    _add(shapes, "model.norm", (hidden,), bias=False)
    shapes["output.weight"] = (config["vocab_size"], hidden)
    return shapes


def _heads(config: Config) -> tuple[int, int]:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return heads * head, (config.get("num_key_value_heads") or heads) * head


def _add(shapes: Shapes, name: str, shape: tuple[int, ...], *, bias: bool) -> None:
    shapes[f"{name}.weight"] = shape
    if bias:
        shapes[f"{name}.bias"] = shape[:1]
