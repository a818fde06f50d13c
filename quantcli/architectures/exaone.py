"""EXAONE 3: Llama's computation, heads in rotate-half order, names after GPT-2's."""

from dataclasses import replace

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.layers import LAYER_EPS, LENGTHS, RMS_EPS, equal_heads
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import Wiring

_LAYER = "transformer.h.{}."
_Q, _KV = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
_WIDE, _NARROW = ("intermediate_size", "hidden_size"), ("hidden_size", "intermediate_size")


def _attention(gguf: str, source: str, size: str) -> Tensor:
    return Tensor(f"blk.{{}}.{gguf}", f"{_LAYER}attn.attention.{source}", (size, "hidden_size"))


EXAONE = Architecture(
    name="EXAONE 3",
    classes=("ExaoneForCausalLM",),
    gguf="exaone",
    parameters=(
        *LENGTHS,
        # The runtime needs the first. From layer_norm_epsilon, all that published files have,
        # the converter writes only the second, which nothing reads.
        RMS_EPS,
        replace(LAYER_EPS, source="rms_norm_eps"),
    ),
    embedding=Tensor("token_embd", "transformer.wte", ("vocab_size", "hidden_size")),
    block=(
        Tensor("blk.{}.attn_norm", f"{_LAYER}ln_1", ("hidden_size",)),
        _attention("attn_q", "q_proj", _Q),
        _attention("attn_k", "k_proj", _KV),
        _attention("attn_v", "v_proj", _KV),
        Tensor("blk.{}.attn_output", f"{_LAYER}attn.attention.out_proj", ("hidden_size", _Q)),
        Tensor("blk.{}.ffn_norm", f"{_LAYER}ln_2", ("hidden_size",)),
        Tensor("blk.{}.ffn_gate", f"{_LAYER}mlp.c_fc_0", _WIDE),
        Tensor("blk.{}.ffn_up", f"{_LAYER}mlp.c_fc_1", _WIDE),
        Tensor("blk.{}.ffn_down", f"{_LAYER}mlp.c_proj", _NARROW),
    ),
    final_norm=Tensor("output_norm", "transformer.ln_f", ("hidden_size",)),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    aliases={
        "num_hidden_layers": "num_layers",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    rope=RopeStyle(scalings=("linear", "yarn", "llama3"), partial=True),
    accepts={
        "activation_function": ("silu",),
        "hidden_act": ("silu",),
        "partial_rotary_factor": (1, 1.0),
    },
    checks=(equal_heads,),
    wiring=Wiring(rope="neox"),
)
