"""Granite 3: Llama with multipliers of embedding, residuals, attention scores and logits, and with
experts (the files store them together: checkpoint/fused.py).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from quantcli.architectures.architecture import Parameter
from quantcli.architectures.config import Config
from quantcli.architectures.layers import (
    SIZES,
    attention,
    check_experts,
    equal_heads,
    expert_counts,
    experts,
    norm,
)
from quantcli.architectures.llama import LLAMA
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import Mixture, Wiring

_WIRING = Wiring(rope="norm", multipliers=True, logit_scale=-1)

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
    wiring=_WIRING,
)

GRANITE_MOE = replace(
    GRANITE,
    name="Granite-MoE",
    classes=("GraniteMoeForCausalLM",),
    gguf="granitemoe",
    parameters=(*GRANITE.parameters, *expert_counts("num_experts")),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(output_bias=None, bias=None, paired=True),
        norm("ffn_norm", "post_attention_layernorm"),
        *experts(
            "num_experts",
            "intermediate_size",
            "block_sparse_moe.router.layer",
            "block_sparse_moe.experts.{}",
            ("gate_proj", "up_proj", "down_proj"),
        ),
    ),
    defaults={**GRANITE.defaults, "num_local_experts": 8, "num_experts_per_tok": 2},
    # The class makes no shared expert, but llama.cpp would look for one.
    accepts={**GRANITE.accepts, "shared_intermediate_size": (0,)},
    checks=(equal_heads, check_experts),
    wiring=replace(
        _WIRING,
        mixture=Mixture(normalized=True, shared=True, shared_gate=False, shared_optional=True),
    ),
)

_SHARED = "shared_intermediate_size"


def _has_shared(config: Config, _: int) -> bool:
    return config.count(_SHARED, least=0) > 0


def _half(number: int) -> Callable[[Config], np.ndarray]:
    """The numbers of the rows of shared_mlp.input_linear that make the gate (0), or up (1)."""

    def order(config: Config) -> np.ndarray:
        size = config.count(_SHARED)
        return np.arange(number * size, (number + 1) * size)

    return order


def _shared_expert() -> tuple[Tensor, ...]:
    source, wide = "model.layers.{}.shared_mlp.", (_SHARED, "hidden_size")
    return (
        *(
            Tensor(
                f"blk.{{}}.ffn_{role}_shexp",
                f"{source}input_linear",
                wide,
                order=_half(number),
                whole=f"2*{_SHARED}",
                when=_has_shared,
            )
            for number, role in enumerate(("gate", "up"))
        ),
        Tensor("blk.{}.ffn_down_shexp", f"{source}output_linear", wide[::-1], when=_has_shared),
    )


def _shared_size(config: Config) -> np.uint32 | None:
    size = config.count(_SHARED, least=0)
    return np.uint32(size) if size else None


GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    name="Granite-MoE shared",
    classes=("GraniteMoeSharedForCausalLM",),
    computed={"expert_shared_feed_forward_length": _shared_size},
    block=(*GRANITE_MOE.block, *_shared_expert()),
    defaults={**GRANITE_MOE.defaults, _SHARED: 0},
    accepts=GRANITE.accepts,
)
