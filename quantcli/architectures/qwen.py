"""Qwen2 and Qwen2.5 (biases on q, k, v), Qwen3 (norms on q and k), and with experts."""

from dataclasses import replace

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.config import Config, show
from quantcli.architectures.layers import (
    HEAD_DIM,
    SIZES,
    attention,
    check_experts,
    expert_counts,
    experts,
    gated_mlp,
    norm,
    qk_norm,
)
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import Mixture, Wiring
from quantcli.errors import UnsupportedError

QWEN2 = Architecture(
    name="Qwen2",
    classes=("Qwen2ForCausalLM",),
    gguf="qwen2",
    parameters=(*SIZES, *(replace(length, optional=True) for length in HEAD_DIM)),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(bias=True),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_mlp(),
    ),
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    accepts={"hidden_act": ("silu", "swish"), "is_causal": (True,)},
    wiring=Wiring(rope="neox"),
)

QWEN3 = replace(
    QWEN2,
    name="Qwen3",
    classes=("Qwen3ForCausalLM",),
    gguf="qwen3",
    parameters=(*SIZES, *HEAD_DIM),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(),
        *qk_norm(),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_mlp(),
    ),
    defaults={**QWEN2.defaults, "head_dim": 128},
    wiring=Wiring(rope="neox", qk_norm=True),
)

_ONE_ROW = ("1", "hidden_size")
_EXPERTS = experts(
    "num_experts",
    "moe_intermediate_size",
    "mlp.gate",
    "mlp.experts.{}",
    ("gate_proj", "up_proj", "down_proj"),
)


def _check_normalized(config: Config) -> None:
    """The configuration class leaves the weights of a token's experts as they are by default."""
    if not config.flag("norm_topk_prob"):
        raise UnsupportedError(
            f"config.json: norm_topk_prob = {show(config.get('norm_topk_prob'))} is not supported"
            " (llama.cpp computes with true)"
        )


def _check_sparse(config: Config) -> None:
    """Blocks with an mlp among those with experts: the configuration classes allow for them."""
    for key, usual in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        value = config.get(key)
        if value is not None and value != usual:
            raise UnsupportedError(
                f"config.json: {key} = {show(value)} makes blocks without experts, which llama.cpp"
                " does not load for this family: no runtime could read the file"
            )


QWEN3_MOE = replace(
    QWEN3,
    name="Qwen3-MoE",
    classes=("Qwen3MoeForCausalLM",),
    gguf="qwen3moe",
    parameters=(
        *SIZES,
        *HEAD_DIM,
        *expert_counts("num_experts"),
        Parameter("expert_feed_forward_length", "moe_intermediate_size"),
    ),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(),
        *qk_norm(),
        norm("ffn_norm", "post_attention_layernorm"),
        *_EXPERTS,
    ),
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    checks=(check_experts, _check_normalized, _check_sparse),
    wiring=Wiring(rope="neox", qk_norm=True, mixture=Mixture(normalized=True, divided=True)),
)

QWEN2_MOE = replace(
    QWEN2,
    name="Qwen2-MoE",
    classes=("Qwen2MoeForCausalLM",),
    gguf="qwen2moe",
    parameters=(
        *QWEN2.parameters,
        *expert_counts("num_experts"),
        Parameter("expert_feed_forward_length", "moe_intermediate_size"),
        Parameter("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(bias=True),
        norm("ffn_norm", "post_attention_layernorm"),
        *_EXPERTS,
        Tensor("blk.{}.ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate", _ONE_ROW),
        *gated_mlp(
            width="shared_expert_intermediate_size", source="mlp.shared_expert", gguf="_shexp"
        ),
    ),
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 16,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_local_experts": 60,
        "num_experts_per_tok": 4,
    },
    accepts={
        **QWEN2.accepts,
        "norm_topk_prob": (False,),
        "qkv_bias": (True,),
    },
    checks=(check_experts, _check_sparse),
    wiring=Wiring(rope="neox", mixture=Mixture(normalized=False, shared=True, divided=True)),
)
