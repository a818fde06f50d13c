"""What the families beyond Llama, Qwen and Gemma refuse, in one line."""

from typing import Any

import pytest
from tiny_models import describe

from quantcli import architectures
from quantcli.errors import BadInputError, QuantcliError, UnsupportedError

Case = tuple[str, dict[str, Any], str]  # variant, changes, named

BAD: list[Case] = [
    ("phi3-odd", {"partial_rotary_factor": 0.5}, "long_factor"),
    ("phi3-odd", {"partial_rotary_factor": 0.74}, "turns 47 of 64"),
    ("phi3-odd", {"partial_rotary_factor": 1.5}, "turns 96 of 64"),
    ("phi3-odd", {"partial_rotary_factor": "x"}, "partial_rotary_factor = 'x'"),
    ("phi3-odd", {"original_max_position_embeddings": 0}, "original_max_position_embeddings = 0"),
    ("phi3-odd", {"original_max_position_embeddings": 1}, "original_max_position_embeddings = 1"),
    ("phi3-odd", {"rope_scaling": {"type": "longrope"}}, "long_factor = None"),
    (
        "phi3-odd",
        {"rope_scaling": {"type": "longrope", "long_factor": ["a"] * 24}},
        "long_factor = 'a'",
    ),
    ("phi3-mha", {"intermediate_size": 500}, "2*intermediate_size = 1000"),
    ("phi3-mha", {"sliding_window": -1}, "sliding_window = -1"),
    ("granite-tied", {"logits_scaling": 0}, "logits_scaling = 0"),
    ("granite-tied", {"residual_multiplier": "1"}, "residual_multiplier = '1'"),
    ("cohere-tied", {"logit_scale": None}, "no value for logit_scale"),
    ("cohere-tied", {"layer_norm_eps": 0}, "layer_norm_eps = 0"),
    ("starcoder2-tied", {"norm_epsilon": -1}, "layer_norm_eps = -1"),
    ("olmo3-odd", {"layer_types": ["full_attention"]}, "layer_types"),
    ("olmo3-odd", {"layer_types": [[], {}]}, "layer_types"),
    ("olmo3-odd", {"sliding_window": None}, "no value for sliding_window"),
    ("gpt_neox-odd", {"use_parallel_residual": 1}, "use_parallel_residual = 1"),
    ("gemma4-tied", {"num_global_key_value_heads": 3}, "num_global_key_value_heads = 3"),
    ("gemma4-tied", {"global_head_dim": 33}, "global_head_dim = 33"),
    ("gemma4-tied", {"global_head_dim": 32}, "layers.5.self_attn.q_proj.weight"),
    ("gemma4-tied", {"num_global_key_value_heads": 2}, "layers.5.self_attn.k_proj.weight"),
    ("gemma4-odd", {"layer_types": ["full_attention"] * 4}, "layers.1.self_attn.q_proj.weight"),
    (
        "gemma4-odd",
        {"layer_types": ["full_attention"] + ["sliding_attention"] * 3},
        "the last layer slides",
    ),
    ("gemma4-odd", {"layer_types": ["full_attention"]}, "layer_types"),
    (
        "gemma4-odd",
        {"rope_parameters": {"full_attention": {"rope_type": "proportional"}}},
        "no partial_rotary_factor",
    ),
    ("gpt2-odd", {"n_embd": 64, "n_head": 2}, "'transformer.wte.weight' has shape (448, 96)"),
    ("gpt2-odd", {"n_positions": 256, "n_ctx": None}, "max_position_embeddings = 256"),
    ("gpt2-tied", {"tie_word_embeddings": False}, "lm_head.weight"),
    ("gpt2-tied", {"layer_norm_epsilon": 0}, "layer_norm_eps = 0"),
    ("gpt2-tied", {"n_embd": 2**31}, "4*hidden_size = 8589934592 is too large"),
    ("falcon-grouped", {"num_kv_heads": 3}, "not a multiple of num_key_value_heads = 3"),
    ("falcon-grouped", {"num_kv_heads": 0}, "num_kv_heads = 0"),
    ("falcon-grouped", {"num_kv_heads": 4}, "query_key_value.weight"),
    ("falcon-grouped", {"new_decoder_architecture": "x"}, "new_decoder_architecture = 'x'"),
    ("falcon-grouped", {"num_ln_in_parallel_attn": 1}, "input_layernorm.weight"),
    ("falcon-mha", {"multi_query": True}, "query_key_value.weight"),
    ("glm-half", {"partial_rotary_factor": 0.55}, "turns 35 of 64"),
    ("glm-half", {"intermediate_size": 500}, "2*intermediate_size = 1000"),
    ("glm4-half", {"rope_parameters": 5}, "rope_parameters = 5"),
    ("exaone-gqa", {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
    ("exaone-gqa", {"num_layers": 3}, "num_hidden_layers = 3"),
    ("exaone-gqa", {"layer_norm_epsilon": 0}, "rms_norm_eps = 0"),
    ("internlm2-gqa", {"num_key_value_heads": 1}, "2*num_key_value_heads*head_dim = 384"),
    ("internlm2-gqa", {"intermediate_size": 500}, "intermediate_size = 500"),
]

_DEFAULT = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
_PROPORTIONAL = {
    "rope_type": "proportional",
    "rope_theta": 1e6,
    "partial_rotary_factor": 0.5,
}
_FACTOR = {"full_attention": {**_PROPORTIONAL, "factor": 8.0}}
_PARTIAL = {
    "full_attention": _PROPORTIONAL,
    "sliding_attention": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
}

UNSUPPORTED: list[Case] = [
    ("gemma4-tied", {"hidden_size_per_layer_input": 256}, "E2B and E4B"),
    ("gemma4-tied", {"num_kv_shared_layers": 2}, "num_kv_shared_layers = 2"),
    ("gemma4-tied", {"enable_moe_block": True}, "26B-A4B"),
    ("gemma4-tied", {"use_double_wide_mlp": True}, "two widths"),
    ("gemma4-tied", {"attention_k_eq_v": False}, "attention_k_eq_v = False"),
    ("gemma4-tied", {"final_logit_softcapping": None}, "final_logit_softcapping"),
    ("gemma4-tied", {"per_layer_config": {"5": {"head_dim": 64}}}, "per_layer_config"),
    ("gemma4-tied", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all'"),
    ("gemma4-tied", {"attention_bias": True}, "attention_bias = True"),
    ("gemma4-tied", {"rope_parameters": _DEFAULT}, "'default' is not supported"),
    ("gemma4-tied", {"rope_parameters": _FACTOR}, "factor = 8.0"),
    ("gemma4-tied", {"rope_parameters": _PARTIAL}, "partial_rotary_factor = 0.5"),
    ("smollm3-tied", {"no_rope_layers": [1, 1, 0, 1]}, "no_rope_layers"),
    ("smollm3-tied", {"no_rope_layer_interval": 3}, "no_rope_layer_interval = 3"),
    ("smollm3-tied", {"use_sliding_window": True}, "use_sliding_window"),
    ("smollm3-tied", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "llama3"),
    (
        "phi3-odd",
        {"rope_scaling": {"type": "longrope", "attention_factor": 1.2}},
        "attention_factor = 1.2",
    ),
    ("phi3-odd", {"rope_scaling": {"type": "yarn", "factor": 4}}, "yarn"),
    ("phi3-mha", {"head_dim": 32}, "head_dim = 32"),
    ("olmo2-mha", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ("olmo2-mha", {"head_dim": 64}, "head_dim = 64"),
    ("granite-tied", {"head_dim": 32}, "head_dim = 32"),
    ("cohere-tied", {"use_qk_norm": True}, "use_qk_norm"),
    ("stablelm-gqa", {"use_parallel_residual": True}, "use_parallel_residual"),
    ("stablelm-gqa", {"qk_layernorm": True}, "qk_layernorm"),
    ("stablelm-gqa", {"rope_theta": 5000.0}, "rope_theta = 5000"),
    ("starcoder2-tied", {"use_bias": False}, "use_bias"),
    ("starcoder2-tied", {"hidden_act": "relu"}, "hidden_act"),
    ("gpt_neox-odd", {"rotary_emb_base": 500}, "rope_theta = 500"),
    ("gpt_neox-odd", {"attention_bias": False}, "attention_bias"),
    ("gpt_neox-odd", {"hidden_act": "relu"}, "hidden_act"),
    ("nemotron-odd", {"hidden_act": "silu"}, "hidden_act"),
    ("nemotron-odd", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ("nemotron-odd", {"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
    ("gpt2-odd", {"activation_function": "relu"}, "activation_function = 'relu'"),
    ("gpt2-odd", {"n_inner": 512}, "n_inner = 512"),
    ("gpt2-odd", {"n_ctx": 256}, "n_ctx = 256"),
    ("gpt2-odd", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2-odd", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2-odd", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2-odd", {"quantization_config": {}}, "quantization_config"),
    ("falcon-shared", {"alibi": True}, "alibi = True"),
    ("falcon-shared", {"bias": True}, "bias = True"),
    ("falcon-shared", {"parallel_attn": False}, "parallel_attn = False"),
    ("falcon-shared", {"ffn_hidden_size": 512}, "ffn_hidden_size = 512"),
    ("falcon-shared", {"activation": "relu"}, "activation = 'relu'"),
    ("falcon-shared", {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn = 3"),
    ("falcon-grouped", {"rope_theta": 5000042.0}, "rope_theta = 5.00004e+06"),
    ("falcon-grouped", {"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
    ("glm-half", {"head_dim": 32}, "head_dim = 32"),
    ("glm-half", {"hidden_act": "gelu"}, "hidden_act"),
    ("glm-half", {"rope_scaling": {"type": "yarn", "factor": 4}}, "yarn"),
    ("glm-half", {"architectures": ["ChatGLMModel"]}, "'ChatGLMModel' is not supported"),
    ("glm4-half", {"architectures": ["Glm4MoeForCausalLM"]}, "'Glm4MoeForCausalLM' is not"),
    ("glm4-half", {"rope_scaling": {"mrope_section": [8, 4, 4]}}, "mrope_section"),
    ("glm4-half", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "llama3"),
    ("exaone-gqa", {"activation_function": "gelu"}, "activation_function = 'gelu'"),
    ("exaone-gqa", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ("exaone-gqa", {"head_dim": 32}, "head_dim = 32"),
    ("exaone-gqa", {"rope_scaling": {"type": "longrope"}}, "longrope"),
    ("exaone-gqa", {"architectures": ["Exaone4ForCausalLM"]}, "'Exaone4ForCausalLM' is not"),
    ("internlm2-gqa", {"bias": True}, "bias = True"),
    ("internlm2-gqa", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ("internlm2-gqa", {"head_dim": 32}, "head_dim = 32"),
    ("internlm2-gqa", {"rope_scaling": {"type": "yarn", "factor": 4}}, "yarn"),
    ("internlm2-gqa", {"architectures": ["InternLMForCausalLM"]}, "'InternLMForCausalLM' is not"),
]


def read(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    entry = architectures.find(config)
    entry.metadata(config)
    entry.tensors(config, shapes)


def message(variant: str, changes: dict[str, Any], kind: type[QuantcliError]) -> str:
    config, shapes = describe(*variant.split("-"))
    config |= changes
    with pytest.raises(kind) as error:
        read(config, shapes)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400
    return str(error.value)


@pytest.mark.parametrize(("variant", "changes", "named"), BAD, ids=lambda value: str(value)[:30])
def test_bad_config(variant: str, changes: dict[str, Any], named: str) -> None:
    assert named in message(variant, changes, BadInputError)


@pytest.mark.parametrize(
    ("variant", "changes", "named"), UNSUPPORTED, ids=lambda value: str(value)[:30]
)
def test_unsupported_config(variant: str, changes: dict[str, Any], named: str) -> None:
    assert named in message(variant, changes, UnsupportedError)


def test_gpt2_loses_buffers_and_may_lack_its_prefix() -> None:
    config, shapes = describe("gpt2", "odd")
    family = architectures.find(config)
    plain = {(o.name, o.shape, o.transposed) for o in family.tensors(config, shapes)}
    shapes |= {f"transformer.h.{i}.attn.bias": (1, 1, 512, 512) for i in (0, 1)}
    shapes |= {f"transformer.h.{i}.attn.masked_bias": () for i in (0, 1)}
    bare = {name.removeprefix("transformer."): shape for name, shape in shapes.items()}
    for given in (shapes, bare):
        found = family.tensors(config, given)
        assert {(o.name, o.shape, o.transposed) for o in found} == plain
        assert {o.source for o in found} <= given.keys()
    with pytest.raises(BadInputError, match="are the same one"):
        family.tensors(config, shapes | bare)
    bare["h.1.mlp.c_fc.weight"] = (384, 96)
    with pytest.raises(BadInputError, match=r"says \(96, 384\) \(4\*hidden_size = 384"):
        family.tensors(config, bare)


@pytest.mark.parametrize(
    "family",
    ["phi3", "olmo2", "stablelm", "starcoder2", "gpt_neox", "gpt2", "glm4", "internlm2", "exaone"],
)
def test_a_missing_tensor_is_named(family: str) -> None:
    config, shapes = describe(family, "odd")
    name = list(shapes)[-3]
    del shapes[name]
    with pytest.raises(BadInputError, match="missing") as error:
        architectures.find(config).tensors(config, shapes)
    assert name.removeprefix("transformer.") in str(error.value)
