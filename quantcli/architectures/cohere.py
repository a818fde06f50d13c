"""Command-R (Cohere): attention and mlp side by side behind one norm without bias."""

import numpy as np

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.layers import (
    LAYER_EPS,
    LENGTHS,
    attention,
    equal_heads,
    gated_mlp,
    norm,
)
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.wiring import Wiring, folds_without

# Neighbours turn together in the source already, so that no rows change places.
COHERE = Architecture(
    name="Command-R",
    classes=("CohereForCausalLM",),
    gguf="command-r",
    parameters=(*LENGTHS, LAYER_EPS, Parameter("logit_scale", "logit_scale", np.float32)),
    block=(norm("attn_norm", "input_layernorm"), *attention(bias=False), *gated_mlp()),
    head=None,
    ignores=("lm_head.weight",),
    defaults={
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    aliases={"max_position_embeddings": "model_max_length"},
    constants={"rope.scaling.type": "none"},
    rope=RopeStyle(scalings=()),
    accepts={
        "hidden_act": ("silu", "swish"),
        "is_causal": (True,),
        "tie_word_embeddings": (True,),
        "use_qk_norm": (False,),
        "attention_bias": (False,),
    },
    checks=(equal_heads,),
    wiring=Wiring(
        rope="norm",
        norm="layer",
        norms=("attn_norm", "attn_norm"),
        parallel=True,
        logit_scale=1,
        folds=folds_without("attn", "ffn"),
    ),
)
