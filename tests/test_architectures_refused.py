"""What the architecture entries refuse: one line, the right exit code, the cause named."""

import copy
from typing import Any

import numpy as np
import pytest
from tiny_models import describe

from quantcli import architectures
from quantcli.architectures import OutputTensor
from quantcli.errors import BadInputError, UnsupportedError


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}

BAD_CONFIGS = [
    ({"num_hidden_layers": 3}, "num_hidden_layers = 3"),
    ({"num_hidden_layers": 1}, "num_hidden_layers = 1"),
    ({"num_hidden_layers": None}, "no value for num_hidden_layers"),
    ({"num_hidden_layers": True}, "num_hidden_layers = True"),
    ({"hidden_size": 512, "head_dim": 64}, "model.embed_tokens.weight"),
    ({"hidden_size": "256"}, "hidden_size = '256'"),
    ({"hidden_size": 2**70}, "hidden_size"),
    ({"intermediate_size": 511}, "intermediate_size = 511"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    ({"num_attention_heads": -4}, "num_attention_heads = -4"),
    ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size = 256 is not a multiple"),
    ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
    ({"num_key_value_heads": 4}, "k_proj"),
    ({"head_dim": 33}, "head_dim = 33 is odd"),
    ({"head_dim": 2**32 - 2, "rope_scaling": LLAMA3_ROPE}, "q_proj"),
    ({"vocab_size": 513}, "vocab_size = 513"),
    ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
    ({"rms_norm_eps": 1e300}, "rms_norm_eps"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no'"),
    ({"rope_theta": -1.0, "rope_parameters": None}, "rope_theta = -1.0"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"rope_parameters": {"full_attention": 3}}, "full_attention"),
    ({"rope_scaling": {"type": "linear"}}, "factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor"),
    ({"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4}}, "high_freq_factor"),
    (
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 2,
                "original_max_position_embeddings": -1,
            }
        },
        "original_max_position_embeddings",
    ),
]

UNSUPPORTED_CONFIGS = [
    ({"num_hidden_layers": 513}, "at most 512"),
    ({"hidden_act": "gelu\x1b[31m"}, "hidden_act"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "longrope"),
    ({"rope_scaling": {"rope_type": ["x"] * 1000}}, "rope type"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"is_causal": False}, "is_causal"),
]


def convert(family: str, variant: str, changes: dict[str, Any]) -> list[OutputTensor]:
    config, shapes = describe(family, variant)
    config |= changes
    entry = architectures.find(config)
    entry.metadata(config)
    return entry.tensors(config, shapes)


@pytest.mark.parametrize(("changes", "named"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_bad_config(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError) as error:
        convert("llama", "gqa", changes)
    assert named in one_line(error)


@pytest.mark.parametrize(
    ("changes", "named"), UNSUPPORTED_CONFIGS, ids=lambda value: ascii(value)[:40]
)
def test_unsupported_config(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        convert("llama", "gqa", changes)
    assert named in one_line(error)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"query_pre_attn_scalar": 100}, "query_pre_attn_scalar = 100"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types"),
        ({"rope_theta": 50000.0}, "rope_theta = 50000"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"hidden_activation": "relu"}, "hidden_activation"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_gemma_values_that_llama_cpp_fixes(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        convert("gemma2", "tied", changes)
    assert named in one_line(error)


def test_a_null_soft_cap_is_not_the_default_soft_cap() -> None:
    with pytest.raises(BadInputError, match="no value for attn_logit_softcapping"):
        convert("gemma2", "tied", {"attn_logit_softcapping": None})


def test_gemma3_without_sliding_windows() -> None:
    config, _ = describe("gemma3", "tied")
    config["sliding_window_pattern"] = 1
    metadata = architectures.find(config).metadata(config)
    assert "gemma3.attention.sliding_window" not in metadata
    with pytest.raises(UnsupportedError, match="sliding_window_pattern = 5"):
        convert("gemma3", "tied", {"sliding_window_pattern": 5})


@pytest.mark.parametrize(
    ("kind", "named", "name", "shape"),
    [
        (BadInputError, "'lm_head.weight' is missing", "lm_head.weight", None),
        (BadInputError, "norm.weight' is missing", "model.norm.weight", None),
        (BadInputError, "(256, 1)", "model.norm.weight", (256, 1)),
        (BadInputError, "same one", "model.language_model.norm.weight", (256,)),
        (BadInputError, "3 layers", "model.layers.7.self_attn.q_proj.weight", (256, 256)),
        (UnsupportedError, "'extra\\x1b.weight'", "extra\x1b.weight", (1,)),
        (UnsupportedError, "q_norm", "model.layers.0.self_attn.q_norm.weight", (64,)),
    ],
)
def test_tensors_that_disagree_with_the_class(
    kind: type[Exception], named: str, name: str, shape: tuple[int, ...] | None
) -> None:
    config, shapes = describe("llama", "gqa")
    if shape is None:
        del shapes[name]
    else:
        shapes[name] = shape
    with pytest.raises(kind) as error:
        architectures.find(config).tensors(config, shapes)
    assert named in one_line(error)


def test_buffers_of_old_checkpoints_are_left_out() -> None:
    config, shapes = describe("llama", "gqa")
    shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = (32,)
    outputs = architectures.find(config).tensors(config, shapes)
    assert [tensor.name for tensor in outputs] == [
        tensor.name for tensor in convert("llama", "gqa", {})
    ]


def test_a_tied_model_that_stores_its_head_asks_for_a_comparison() -> None:
    head = convert("llama", "gqa", {"tie_word_embeddings": True})[-1]
    assert (head.name, head.must_equal) == ("output.weight", "model.embed_tokens.weight")
    assert convert("llama", "gqa", {})[-1].must_equal is None


def test_inputs_are_not_changed() -> None:
    config, shapes = describe("gemma3", "multimodal")
    before = copy.deepcopy((config, shapes))
    entry = architectures.find(config)
    entry.metadata(config)
    entry.tensors(config, shapes)
    assert (config, shapes) == before


@pytest.mark.parametrize("base", [1e-30, 1.0, 1e38])
def test_rope_frequencies_survive_extreme_values(base: float) -> None:
    factors = convert("llama", "tied", {"rope_theta": base})[1].data
    assert factors is not None
    assert np.isfinite(factors).all()


# -- which families there are -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [("Qwen4MoeForCausalLM", "Qwen3MoeForCausalLM"), ("llamaforcausallm", "LlamaForCausalLM")],
)
def test_unknown_class_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        architectures.find({"architectures": [name]})
    assert repr(name) in one_line(error)
    assert near in str(error.value)


@pytest.mark.parametrize(
    "value", [None, [], "LlamaForCausalLM", [None], ["\x1b[31m" * 1000], [["x"]], {}]
)
def test_no_usable_class_name(value: Any) -> None:
    with pytest.raises(UnsupportedError) as error:
        architectures.find({"architectures": value})
    one_line(error)


def test_supported_lists_every_class_once() -> None:
    classes = [name for family in architectures.supported() for name in family.classes]
    assert len(classes) == len(set(classes))
    assert {"LlamaForCausalLM", "MistralForCausalLM", "Gemma3ForCausalLM"} <= set(classes)
