"""GPT-OSS: experts in MXFP4 that stay as they are, attention with sinks, half the blocks local."""

from dataclasses import replace

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.config import Config, bad, show
from quantcli.architectures.layers import (
    HEAD_DIM,
    SIZES,
    attention,
    check_experts,
    expert_counts,
    experts,
    norm,
    sliding_blocks,
)
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import Mixture, Wiring
from quantcli.errors import UnsupportedError

_COUNT, _WIDTH = "num_experts", "intermediate_size"
_LAYER = "model.layers.{}."


def _bias(role: str, size: str) -> Tensor:
    source = f"{_LAYER}mlp.experts.{role}_proj_bias"
    return Tensor(f"blk.{{}}.ffn_{role}_exps", source, (_COUNT, size), bare=True, part="bias")


def _every_other(config: Config) -> None:
    """Refuse windows in other blocks than the first, the third and so on: BadInputError."""
    found = sliding_blocks(config, 2)
    if any(bool(slides) != (number % 2 == 0) for number, slides in enumerate(found)):
        raise bad(
            "layer_types is not sliding_attention and full_attention in turn, which llama.cpp"
            " computes for this family"
        )


def _limit(config: Config) -> None:
    """Refuse another limit of the activation than the runtime's: UnsupportedError."""
    found = config.get("swiglu_limit")
    if found not in (None, 7):
        raise UnsupportedError(
            f"config.json: swiglu_limit = {show(found)} is not supported (llama.cpp computes 7)"
        )


_ROUTER, *_STACKS = experts(
    _COUNT, _WIDTH, "mlp.router", "mlp.experts.{}", ("gate_proj", "up_proj", "down_proj")
)

GPT_OSS = Architecture(
    name="GPT-OSS",
    classes=("GptOssForCausalLM",),
    gguf="gpt-oss",
    parameters=(
        *SIZES,
        *HEAD_DIM,
        *expert_counts(_COUNT),
        Parameter("expert_feed_forward_length", _WIDTH),
        Parameter("attention.sliding_window", "sliding_window"),
    ),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(bias=True, output_bias=True),
        Tensor(
            "blk.{}.attn_sinks", f"{_LAYER}self_attn.sinks", ("num_attention_heads",), bare=True
        ),
        norm("post_attention_norm", "post_attention_layernorm"),
        replace(_ROUTER, bias=True),
        *_STACKS,
        _bias("gate", _WIDTH),
        _bias("up", _WIDTH),
        _bias("down", "hidden_size"),
    ),
    defaults={
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
    },
    aliases={"num_experts": "num_local_experts"},
    rope=RopeStyle(scalings=("yarn",)),
    accepts={
        "hidden_act": ("silu",),
        "attention_bias": (True,),
        "tie_word_embeddings": (False,),
    },
    checks=(check_experts, _every_other, _limit),
    wiring=Wiring(
        rope="neox",
        norms=("attn_norm", "post_attention_norm"),
        activation="swiglu_oai",
        global_every=2,
        local_rope=False,
        sinks=True,
        mixture=Mixture(normalized=True, biased=True),
    ),
)
