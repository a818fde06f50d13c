"""Nemotron and Minitron: layer norms of 1 + weight, an mlp of squared relu without gate."""

from dataclasses import replace

import numpy as np

from quantcli.architectures.architecture import FINAL_NORM, Architecture, Parameter
from quantcli.architectures.layers import (
    HEAD_DIM,
    LAYER_EPS,
    LENGTHS,
    RMS_EPS,
    attention,
    equal_heads,
    norm,
)
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED_GATE, Wiring, folds_without

_MLP = "model.layers.{}.mlp."

NEMOTRON = Architecture(
    name="Nemotron",
    classes=("NemotronForCausalLM",),
    gguf="nemotron",
    parameters=(
        *LENGTHS,
        *HEAD_DIM,
        Parameter("vocab_size", "vocab_size"),
        LAYER_EPS,
        replace(RMS_EPS, source="layer_norm_eps"),
    ),
    constants={"rope.scaling.type": "none"},
    block=(
        norm("attn_norm", "input_layernorm", add=1.0, bias=True),
        *attention(output_bias=None),
        norm("ffn_norm", "post_attention_layernorm", add=1.0, bias=True),
        Tensor("blk.{}.ffn_up", f"{_MLP}up_proj", ("intermediate_size", "hidden_size"), bias=None),
        Tensor(
            "blk.{}.ffn_down", f"{_MLP}down_proj", ("hidden_size", "intermediate_size"), bias=None
        ),
    ),
    final_norm=replace(FINAL_NORM, bias=True, add=1.0),
    defaults={
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
    aliases={"layer_norm_eps": "norm_eps"},
    rope=RopeStyle(scalings=(), partial=True),
    accepts={
        "hidden_act": ("relu2",),
        "is_causal": (True,),
        "tie_word_embeddings": (False,),
        "factor": (),
    },
    checks=(equal_heads,),
    tokenizer={
        "tokenizer.ggml.padding_token_id": np.uint32(0),
        "tokenizer.ggml.unknown_token_id": np.uint32(1),
    },
    wiring=Wiring(
        rope="neox",
        partial_rope=True,
        activation="relu2",
        gated=False,
        sites=FUSED_GATE,
        folds=folds_without("ffn_down"),
        norm="layer",
        norm_bias=True,
    ),
)
