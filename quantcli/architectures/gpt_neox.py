"""GPT-NeoX and Pythia: layer norms, q, k, v in one tensor, attention and mlp side by side."""

import numpy as np

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.config import Config
from quantcli.architectures.layers import LAYER_EPS, lengths_without
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED, Wiring, folds_without

_LAYER = "gpt_neox.layers.{}."


def _heads_apart(config: Config) -> np.ndarray:
    """int64: all rows of q, then of k, then of v, where the source has them head by head."""
    shape = config.count("num_attention_heads"), 3, config.count("head_dim")
    return np.arange(config.size("3*hidden_size")).reshape(shape).swapaxes(0, 1).reshape(-1)


# llama.cpp computes the tanh form of gelu in place of the exact one.
GPT_NEOX = Architecture(
    name="GPT-NeoX",
    classes=("GPTNeoXForCausalLM",),
    gguf="gptneox",
    parameters=(
        *lengths_without("attention.head_count_kv"),
        LAYER_EPS,
        Parameter("use_parallel_residual", "use_parallel_residual", bool),
    ),
    embedding=Tensor("token_embd", "gpt_neox.embed_in", ("vocab_size", "hidden_size")),
    block=(
        Tensor("blk.{}.attn_norm", f"{_LAYER}input_layernorm", ("hidden_size",), bias=True),
        Tensor(
            "blk.{}.attn_qkv",
            f"{_LAYER}attention.query_key_value",
            ("3*hidden_size", "hidden_size"),
            bias=True,
            order=_heads_apart,
        ),
        Tensor(
            "blk.{}.attn_output",
            f"{_LAYER}attention.dense",
            ("hidden_size", "hidden_size"),
            bias=True,
        ),
        Tensor("blk.{}.ffn_norm", f"{_LAYER}post_attention_layernorm", ("hidden_size",), bias=True),
        Tensor(
            "blk.{}.ffn_up",
            f"{_LAYER}mlp.dense_h_to_4h",
            ("intermediate_size", "hidden_size"),
            bias=True,
        ),
        Tensor(
            "blk.{}.ffn_down",
            f"{_LAYER}mlp.dense_4h_to_h",
            ("hidden_size", "intermediate_size"),
            bias=True,
        ),
    ),
    final_norm=Tensor("output_norm", "gpt_neox.final_layer_norm", ("hidden_size",), bias=True),
    head=Tensor("output", "embed_out", ("vocab_size", "hidden_size")),
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": True,
    },
    aliases={"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
    rope=RopeStyle(scalings=(), stored=False, partial=True),
    accepts={
        "hidden_act": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        "attention_bias": (True,),
        "tie_word_embeddings": (False,),
    },
    wiring=Wiring(
        rope="neox",
        partial_rope=True,
        activation="gelu",
        gated=False,
        sites=FUSED,
        folds=folds_without("ffn_down", fused_qkv=True),
        norm="layer",
        norm_bias=True,
        parallel=None,
    ),
)
