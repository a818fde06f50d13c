"""Phi-3, Phi-3.5 and Phi-4: q, k, v in one tensor, gate and up in another, longrope."""

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.layers import SIZES, equal_heads, norm
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED, Wiring, folds_without

_LAYER = "model.layers.{}."

# llama.cpp leaves sliding windows off, whatever the file says.
PHI3 = Architecture(
    name="Phi-3",
    classes=("Phi3ForCausalLM",),
    gguf="phi3",
    parameters=(*SIZES, Parameter("attention.sliding_window", "sliding_window", zero=True)),
    block=(
        norm("attn_norm", "input_layernorm"),
        Tensor(
            "blk.{}.attn_qkv",
            f"{_LAYER}self_attn.qkv_proj",
            (
                "num_attention_heads*head_dim+2*num_key_value_heads*head_dim",
                "hidden_size",
            ),
        ),
        Tensor(
            "blk.{}.attn_output",
            f"{_LAYER}self_attn.o_proj",
            ("hidden_size", "num_attention_heads*head_dim"),
        ),
        norm("ffn_norm", "post_attention_layernorm"),
        Tensor(
            "blk.{}.ffn_up", f"{_LAYER}mlp.gate_up_proj", ("2*intermediate_size", "hidden_size")
        ),
        Tensor("blk.{}.ffn_down", f"{_LAYER}mlp.down_proj", ("hidden_size", "intermediate_size")),
    ),
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    rope=RopeStyle(scalings=(), partial=True, long=True),
    accepts={"hidden_act": ("silu", "swish"), "is_causal": (True,)},
    checks=(equal_heads,),
    wiring=Wiring(rope="neox", partial_rope=True, sites=FUSED, folds=folds_without(fused_qkv=True)),
)
