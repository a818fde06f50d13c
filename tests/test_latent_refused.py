"""What DeepSeek-V2 and its files refuse, in one line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from hub_client import Start
from test_dense_refused import message
from test_transformer_refused import Changed, one_line
from tiny_models import build, describe

from quantcli import architectures
from quantcli.errors import BadInputError, QuantcliError, UnsupportedError
from quantcli.transformer import Transformer

pytest_plugins = ["hub_fixtures"]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
EQUAL = {"mscale": 0.7, "mscale_all_dim": 0.7}

Case = tuple[str, dict[str, Any], str]  # variant, changes, named

UNSUPPORTED: list[Case] = [
    ("queries", {"topk_method": "group_limited_greedy"}, "topk_method = 'group_limited_greedy'"),
    ("queries", {"n_group": 2}, "n_group = 2"),
    ("queries", {"topk_group": 2}, "topk_group = 2"),
    ("queries", {"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid'"),
    ("queries", {"norm_topk_prob": True}, "norm_topk_prob = True"),
    ("queries", {"moe_layer_freq": 2}, "moe_layer_freq = 2"),
    ("queries", {"attention_bias": True}, "attention_bias = True"),
    ("queries", {"mlp_bias": True}, "mlp_bias = True"),
    ("queries", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("queries", {"num_key_value_heads": 2}, "num_key_value_heads = 2 with 4 heads"),
    ("queries", {"first_k_dense_replace": 3}, "first_k_dense_replace = 3 leaves no block"),
    ("queries", {"rms_norm_eps": 1e-5}, "rms_norm_eps = 1e-05"),
    ("queries", {"n_routed_experts": 2000}, "2000 experts"),
    ("queries", {"q_lora_rank": None}, "q_lora_rank = None with num_hidden_layers = 3"),
    ("lite", {"q_lora_rank": 8}, "q_lora_rank = 8 with num_hidden_layers = 26"),
    ("lite", {"num_hidden_layers": 48}, "q_lora_rank = None with num_hidden_layers = 48"),
    ("odd", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear'"),
    ("odd", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
    ("odd", {"rope_scaling": YARN}, "mscale = None and mscale_all_dim = None"),
    ("odd", {"rope_scaling": {**YARN, **EQUAL, "mscale": 1.0}}, "mscale = 1.0 and mscale_all_dim"),
    ("odd", {"rope_scaling": {**YARN, **EQUAL, "attention_factor": 1.1}}, "attention_factor"),
    ("odd", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
]

BAD: list[Case] = [
    ("queries", {"first_k_dense_replace": -1}, "first_k_dense_replace = -1"),
    ("queries", {"first_k_dense_replace": True}, "first_k_dense_replace = True"),
    ("queries", {"first_k_dense_replace": 2}, "mlp.gate_proj.weight' is missing"),
    ("queries", {"n_routed_experts": 5}, "experts"),
    ("queries", {"num_experts_per_tok": 7}, "num_experts_per_tok = 7, but there are 6"),
    ("queries", {"num_experts_per_tok": None}, "no value for num_experts_per_tok"),
    ("queries", {"n_shared_experts": 3}, "n_shared_experts*moe_intermediate_size = 384"),
    ("queries", {"n_shared_experts": 0}, "n_shared_experts = 0"),
    ("queries", {"routed_scaling_factor": 0}, "routed_scaling_factor = 0"),
    ("queries", {"q_lora_rank": 64}, "q_lora_rank = 64"),
    ("queries", {"kv_lora_rank": 128}, "kv_lora_rank+qk_rope_head_dim = 160"),
    ("queries", {"v_head_dim": 32}, "num_attention_heads*v_head_dim = 384"),
    ("queries", {"qk_rope_head_dim": 31}, "head_dim = 31 is odd"),
    ("odd", {"qk_rope_head_dim": None}, "no value for qk_rope_head_dim"),
    ("queries", {"kv_lora_rank": 2**32 - 1}, "qk_rope_head_dim = 4294967327 is too large"),
    ("odd", {"rope_scaling": {**YARN, **EQUAL, "factor": 0.5}}, "rope factor = 0.5"),
    ("odd", {"rope_scaling": {**YARN, "mscale": 0, "mscale_all_dim": 0}}, "mscale_all_dim = 0"),
    ("odd", {"rope_scaling": {"type": "default", "mscale_all_dim": "x"}}, "mscale_all_dim = 'x'"),
]


@pytest.mark.parametrize(
    ("variant", "changes", "named"), UNSUPPORTED, ids=lambda value: str(value)[:30]
)
def test_unsupported_config(variant: str, changes: dict[str, Any], named: str) -> None:
    assert named in message(f"deepseek2-{variant}", changes, UnsupportedError)


@pytest.mark.parametrize(("variant", "changes", "named"), BAD, ids=lambda value: str(value)[:30])
def test_bad_config(variant: str, changes: dict[str, Any], named: str) -> None:
    assert named in message(f"deepseek2-{variant}", changes, BadInputError)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DeepseekV3ForCausalLM", "nearest supported: DeepseekV2ForCausalLM"),
        ("DeepseekForCausalLM", "nearest supported: DeepseekV2ForCausalLM"),
    ],
)
def test_other_generations_are_refused(call: Call, tmp_path: Path, name: str, hint: str) -> None:
    source = build(tmp_path / "source", "deepseek2", "odd", architectures=[name])
    done = call("convert", source, "-t", "Q8_0", "-o", "x.gguf")
    assert done.failed_with(4, name, hint)


def test_what_is_not_supported_exits_4(call: Call, tmp_path: Path) -> None:
    grouped = {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}
    source = build(tmp_path / "source", "deepseek2", "odd", **grouped)
    done = call("convert", source, "-t", "Q8_0", "-o", "x.gguf")
    assert done.failed_with(4, "topk_method = 'group_limited_greedy'")


def test_streams_are_refused_while_planning(hub: Start, call: Call, tmp_path: Path) -> None:
    """Its kv_b_proj becomes two tensors."""
    hub({"org/name": build(tmp_path / "source", "deepseek2", "odd")})
    done = call("convert", "org/name", "--stream", "-t", "Q8_0", "-o", "x.gguf")
    assert done.failed_with(4, "--stream", "DeepSeek-V2")


def test_tensors_of_a_bias_of_experts_have_no_place() -> None:
    """What DeepSeek-V3 adds to the choice of experts, and its blocks that predict more."""
    config, shapes = describe("deepseek2", "queries")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    with pytest.raises(UnsupportedError, match=bias):
        architectures.find(config).tensors(config, {**shapes, bias: (6,)})
    more = {"model.layers.3.input_layernorm.weight": (256,)}
    with pytest.raises(BadInputError, match="tensors of 4 layers"):
        architectures.find(config).tensors(config, {**shapes, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("refused") / "tiny", "deepseek2", "queries")


@pytest.mark.parametrize(
    ("key", "value", "kind", "named"),
    [
        ("attention.key_length_mla", None, UnsupportedError, "in one tensor"),
        ("rope.scaling.yarn_log_multiplier", None, UnsupportedError, "yarn_log_multiplier"),
        ("rope.scaling.type", "linear", UnsupportedError, "yarn_log_multiplier"),
        ("expert_gating_func", np.uint32(2), UnsupportedError, "expert_gating_func = "),
        ("expert_gating_func", np.array([1, 1]), UnsupportedError, "expert_gating_func = "),
        ("expert_weights_norm", np.bool_(True), UnsupportedError, "expert_weights_norm = "),
        ("expert_group_count", np.uint32(2), UnsupportedError, "expert_group_count = "),
        ("attention.key_length", np.uint32(256), BadInputError, "key_length = 256"),
        ("attention.key_length_mla", np.uint32(32), BadInputError, "key_length_mla = 32"),
        ("rope.dimension_count", np.uint32(16), BadInputError, "rope.dimension_count = 16"),
        ("attention.q_lora_rank", np.uint32(64), BadInputError, "says (64, 256)"),
        ("attention.q_lora_rank", None, BadInputError, "q_lora_rank = None is not a count"),
        ("attention.value_length_mla", np.uint32(16), BadInputError, "says (4, 16, 256)"),
        ("leading_dense_block_count", np.uint32(0), QuantcliError, "tensor 'blk.0.ffn_"),
        ("leading_dense_block_count", "1", BadInputError, "leading_dense_block_count = '1'"),
        ("expert_shared_count", np.uint32(1), BadInputError, "says (128, 256)"),
        ("expert_weights_scale", np.float32(-1), BadInputError, "expert_weights_scale = "),
    ],
)
def test_files_that_the_forward_pass_does_not_compute(
    folder: Path, key: str, value: object, kind: type[QuantcliError], named: str
) -> None:
    model = Changed(folder)
    if value is None:
        del model.metadata[f"deepseek2.{key}"]
    else:
        model.metadata[f"deepseek2.{key}"] = value
    with pytest.raises(kind, match=re.escape(named)) as failure:
        Transformer(model)
    assert one_line(failure)


def test_biases_that_llama_cpp_does_not_read_have_no_place(folder: Path) -> None:
    model = Changed(folder)
    model.shapes["blk.0.attn_output.bias"] = (256,)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_output\.bias"):
        Transformer(model)


@pytest.mark.parametrize(
    ("tensor", "site"),
    [
        ("blk.1.attn_q_a.weight", "blk.1.attn_q_b "),
        ("blk.1.attn_q_b.weight", "blk.1.attn_k_b.0 "),
        ("blk.1.attn_k_b.weight", "blk.1.attn_v_b.0 "),
        ("blk.1.attn_v_b.weight", "blk.1.attn_output "),
    ],
)
def test_activations_that_are_not_finite_are_named(folder: Path, tensor: str, site: str) -> None:
    model = Changed(folder)

    def damage(name: str, values: np.ndarray) -> np.ndarray:
        return np.full_like(values, np.nan) if name == tensor else values

    model.edit = damage
    with pytest.raises(BadInputError, match=site):
        Transformer(model).hidden(np.zeros((1, 8), np.int32))
