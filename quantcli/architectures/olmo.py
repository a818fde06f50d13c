"""OLMo 2 and 3: norms after attention and mlp instead of before, norms over all heads of q, k."""

from dataclasses import replace
from functools import partial

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.layers import SIZES, attention, gated_mlp, norm, sliding_blocks
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.wiring import Wiring, folds_without

OLMO2 = Architecture(
    name="OLMo 2",
    classes=("Olmo2ForCausalLM",),
    gguf="olmo2",
    parameters=SIZES,
    block=(
        *attention(),
        norm("attn_q_norm", "self_attn.q_norm", "num_attention_heads*head_dim"),
        norm("attn_k_norm", "self_attn.k_norm", "num_key_value_heads*head_dim"),
        norm("post_attention_norm", "post_attention_layernorm"),
        *gated_mlp(),
        norm("post_ffw_norm", "post_feedforward_layernorm"),
    ),
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    accepts={
        "hidden_act": ("silu", "swish"),
        "is_causal": (True,),
        "tie_word_embeddings": (False,),
        "head_dim": (),
        "sliding_window": (),
    },
    wiring=Wiring(
        rope="neox",
        norms=("", ""),
        post_norms=("post_attention_norm", "post_ffw_norm"),
        qk_norm=True,
        joint_qk_norm=True,
        global_every=4,
        local_rope=True,
        local_base=None,
        folds=folds_without("attn", "ffn"),
    ),
)


# The same graph: that some blocks see a window is said by keys that OLMo 2 files do not have.
OLMO3 = replace(
    OLMO2,
    name="OLMo 3",
    classes=("Olmo3ForCausalLM",),
    parameters=(*OLMO2.parameters, Parameter("attention.sliding_window", "sliding_window")),
    computed={"attention.sliding_window_pattern": partial(sliding_blocks, period=4)},
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_local_base_freq": 500000.0,
        "sliding_window": 4096,
    },
    rope=RopeStyle(local=True),
    accepts={key: allowed for key, allowed in OLMO2.accepts.items() if key != "sliding_window"},
)
