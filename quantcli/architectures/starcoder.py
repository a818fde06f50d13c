"""StarCoder2: layer norms, an mlp without gate, biases everywhere."""

from dataclasses import replace

from quantcli.architectures.architecture import FINAL_NORM, Architecture
from quantcli.architectures.layers import LAYER_EPS, LENGTHS, attention, equal_heads, norm
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED_GATE, Wiring, folds_without

# llama.cpp attends to the whole context: sliding_window is not written.
STARCODER2 = Architecture(
    name="StarCoder2",
    classes=("Starcoder2ForCausalLM",),
    gguf="starcoder2",
    parameters=(*LENGTHS, LAYER_EPS),
    block=(
        norm("attn_norm", "input_layernorm", bias=True),
        *attention(bias=True, output_bias=True),
        norm("ffn_norm", "post_attention_layernorm", bias=True),
        Tensor(
            "blk.{}.ffn_up",
            "model.layers.{}.mlp.c_fc",
            ("intermediate_size", "hidden_size"),
            bias=True,
        ),
        Tensor(
            "blk.{}.ffn_down",
            "model.layers.{}.mlp.c_proj",
            ("hidden_size", "intermediate_size"),
            bias=True,
        ),
    ),
    final_norm=replace(FINAL_NORM, bias=True),
    defaults={
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    aliases={"layer_norm_eps": "norm_epsilon"},
    rope=RopeStyle(),
    accepts={
        "hidden_act": ("gelu_pytorch_tanh", "gelu_new"),
        "is_causal": (True,),
        "use_bias": (True,),
    },
    checks=(equal_heads,),
    wiring=Wiring(
        rope="neox",
        activation="gelu",
        gated=False,
        sites=FUSED_GATE,
        folds=folds_without("ffn_down"),
        norm="layer",
        norm_bias=True,
    ),
)
