"""Granite 3: Llama with multipliers of embedding, residuals, attention scores and logits."""

from dataclasses import replace

import numpy as np

from quantcli.architectures.architecture import Parameter
from quantcli.architectures.layers import SIZES, equal_heads
from quantcli.architectures.llama import LLAMA
from quantcli.architectures.wiring import Wiring

GRANITE = replace(
    LLAMA,
    name="Granite",
    classes=("GraniteForCausalLM",),
    gguf="granite",
    parameters=(
        *SIZES,
        Parameter("vocab_size", "vocab_size"),
        Parameter("rope.dimension_count", "head_dim"),
        Parameter("attention.scale", "attention_multiplier", np.float32),
        Parameter("embedding_scale", "embedding_multiplier", np.float32),
        Parameter("residual_scale", "residual_multiplier", np.float32),
        Parameter("logit_scale", "logits_scaling", np.float32),
    ),
    defaults={
        **LLAMA.defaults,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    checks=(equal_heads,),
    wiring=Wiring(rope="norm", multipliers=True, logit_scale=-1),
)
