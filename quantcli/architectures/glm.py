"""GLM-4: neighbours of the first dimensions of a head turn, gate and up are in one tensor."""

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.config import Config
from quantcli.architectures.layers import HEAD_DIM, SIZES, attention, equal_heads, norm
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import FUSED_GATE, Wiring
from quantcli.errors import UnsupportedError

_MLP = "model.layers.{}.mlp."
_FUSED_MLP = (
    Tensor("blk.{}.ffn_up", f"{_MLP}gate_up_proj", ("2*intermediate_size", "hidden_size")),
    Tensor("blk.{}.ffn_down", f"{_MLP}down_proj", ("hidden_size", "intermediate_size")),
)
_DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
}
_ACCEPTS = {"hidden_act": ("silu", "swish"), "is_causal": (True,)}
_SCALED_ROPE = RopeStyle(partial=True)


def _one_position(config: Config) -> None:
    """Refuse the rope of models that also see images, which turns by three positions."""
    if "mrope_section" in _SCALED_ROPE.read(config):
        raise UnsupportedError(
            "config.json: rope with an mrope_section is not supported for this family (text alone)"
        )


# llama.cpp's converter writes hidden_size for the context length, 1e-5 for the epsilon and 10000
# for the base of rope, whatever the config says: here they are the config's.
GLM = Architecture(
    name="GLM-4",
    classes=("GlmForCausalLM",),
    gguf="chatglm",
    parameters=SIZES,
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(bias=None),
        norm("ffn_norm", "post_attention_layernorm"),
        *_FUSED_MLP,
    ),
    defaults=_DEFAULTS,
    rope=RopeStyle(scalings=(), partial=True),
    accepts=_ACCEPTS,
    checks=(equal_heads,),
    wiring=Wiring(rope="norm", partial_rope=True, sites=FUSED_GATE),
)

GLM4 = Architecture(
    name="GLM-4-0414",
    classes=("Glm4ForCausalLM",),
    gguf="glm4",
    parameters=(*SIZES, *HEAD_DIM),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(bias=None),
        norm("post_attention_norm", "post_self_attn_layernorm"),
        norm("ffn_norm", "post_attention_layernorm"),
        *_FUSED_MLP,
        norm("post_ffw_norm", "post_mlp_layernorm"),
    ),
    defaults=_DEFAULTS,
    rope=_SCALED_ROPE,
    accepts=_ACCEPTS,
    checks=(_one_position,),
    wiring=Wiring(
        rope="norm",
        partial_rope=True,
        sites=FUSED_GATE,
        post_norms=("post_attention_norm", "post_ffw_norm"),
    ),
)
