"""StableLM 3B and StableLM 2 1.6B: layer norms, rope on a share of each head."""

from dataclasses import replace

from quantcli.architectures.architecture import FINAL_NORM, Architecture, Parameter
from quantcli.architectures.layers import (
    LAYER_EPS,
    LENGTHS,
    attention,
    equal_heads,
    gated_mlp,
    norm,
)
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.wiring import Wiring

# The 12B model, with parallel halves and a layer norm for each head, is not one of them.
STABLELM = Architecture(
    name="StableLM",
    classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    gguf="stablelm",
    parameters=(
        *LENGTHS,
        LAYER_EPS,
        Parameter("use_parallel_residual", "use_parallel_residual", bool),
    ),
    block=(
        norm("attn_norm", "input_layernorm", bias=True),
        *attention(),
        norm("ffn_norm", "post_attention_layernorm", bias=True),
        *gated_mlp(),
    ),
    final_norm=replace(FINAL_NORM, bias=True),
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
    rope=RopeStyle(scalings=(), stored=False, partial=True),
    accepts={
        "hidden_act": ("silu", "swish"),
        "is_causal": (True,),
        "tie_word_embeddings": (False,),
        "use_parallel_residual": (False,),
        "qk_layernorm": (False,),
    },
    checks=(equal_heads,),
    wiring=Wiring(rope="neox", partial_rope=True, norm="layer", norm_bias=True),
)
