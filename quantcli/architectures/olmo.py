"""OLMo 2: norms after attention and mlp instead of before, norms over all heads of q and of k."""

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.layers import SIZES, attention, gated_mlp, norm
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
        folds=folds_without("attn", "ffn"),
    ),
)
