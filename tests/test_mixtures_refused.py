"""Mixtures of experts that contradict themselves, or that llama.cpp does not compute."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Call
from tiny_models import build, describe

import quantcli
from quantcli import architectures
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.model import open_model
from quantcli.planning import Job
from quantcli.transformer import Transformer

DATA = Path(__file__).parent / "data"
UP = "blk.1.ffn_up_exps.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 experts of which each token sees 2."""
    return build(tmp_path_factory.mktemp("mixture") / "tiny", "qwen3moe", "eight")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts": 0}, "num_experts = 0"),
        ({"num_experts": "8"}, "num_experts = '8'"),
        ({"num_experts": 7}, "num_experts = 7"),
        ({"num_experts": 9}, "mlp.gate.weight"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9, but there are 8"),
        ({"moe_intermediate_size": 128}, "moe_intermediate_size = 128"),
    ],
)
def test_configs_that_contradict_themselves(changes: dict[str, Any], named: str) -> None:
    config, shapes = describe("qwen3moe", "eight")
    if changes.get("num_experts") == 7:
        shapes |= {f"model.layers.{i}.mlp.gate.weight": (7, 256) for i in (0, 1)}
    with pytest.raises(BadInputError) as error:
        architectures.find(config).tensors({**config, **changes}, shapes)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("family", "variant", "changes", "named"),
    [
        ("qwen3moe", "eight", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("qwen3moe", "eight", {"norm_topk_prob": None}, "norm_topk_prob"),
        ("qwen3moe", "eight", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("qwen3moe", "eight", {"mlp_only_layers": [0]}, "blocks without experts"),
        ("qwen2moe", "shared", {"mlp_only_layers": [1]}, "llama.cpp does not load"),
        ("qwen3moe", "eight", {"num_experts": 2000}, "2000 experts"),
        ("qwen2moe", "shared", {"norm_topk_prob": True}, "norm_topk_prob = True"),
        ("qwen2moe", "shared", {"qkv_bias": False}, "qkv_bias = False"),
        ("mixtral", "eight", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("granitemoe", "eight", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("granitemoe", "eight", {"head_dim": 32}, "head_dim = 32"),
        ("granitemoe", "eight", {"num_local_experts": 2000}, "2000 experts"),
        ("granitemoe", "eight", {"shared_intermediate_size": 64}, "shared_intermediate_size = 64"),
        ("granitemoe", "eight", {"architectures": ["GraniteMoeHybridForCausalLM"]}, "Hybrid"),
        ("granitemoe", "eight", {"architectures": ["GraniteMoeSWAForCausalLM"]}, "SWA"),
    ],
)
def test_mixtures_that_llama_cpp_does_not_compute(
    family: str, variant: str, changes: dict[str, Any], named: str
) -> None:
    config, _ = describe(family, variant)
    with pytest.raises(UnsupportedError) as error:
        architectures.find({**config, **changes}).metadata({**config, **changes})
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_local_experts": 0}, "num_local_experts = 0"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok = 7, but there are 6"),
        ({"shared_intermediate_size": 0}, "shared_mlp"),
        ({"shared_intermediate_size": -1}, "shared_intermediate_size = -1"),
        ({"shared_intermediate_size": 256}, "2*shared_intermediate_size = 512"),
        ({"intermediate_size": 128}, "intermediate_size = 128"),
        ({"logits_scaling": 0}, "logits_scaling = 0"),
    ],
)
def test_granite_that_contradicts_itself(
    tmp_path: Path, call: Call, changes: dict[str, Any], named: str
) -> None:
    source = build(tmp_path / "source", "granitemoeshared", "shared")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    code = 4 if changes == {"shared_intermediate_size": 0} else 3  # tensors without a place
    assert call("convert", source, "-o", "x.gguf").failed_with(code, named)


def test_missing_tensors_of_an_expert() -> None:
    config, shapes = describe("qwen3moe", "eight")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    del shapes[name]
    with pytest.raises(BadInputError, match=f"{name}' is missing"):
        architectures.find(config).tensors(config, shapes)


def test_a_file_with_fewer_experts_than_a_token_sees(tmp_path: Path, folder: Path) -> None:
    override = ("qwen3moe.expert_used_count=int:9",)
    made = quantcli.convert(Job(str(folder), ("F32",), tmp_path, override_kv=override)).outputs[0]
    with pytest.raises(BadInputError, match="expert_used_count = 9, but there are 8 experts"):
        Transformer(open_model(made.paths[0]))


def test_the_record_knows_experts() -> None:
    """Guards the comparison with the converter against a variant that lost its point."""
    record = json.loads((DATA / "architectures" / "qwen3moe-eight.json").read_text())["f32"]
    assert record["metadata"]["qwen3moe.expert_count"] == ["UINT32", 8]
    assert record["metadata"]["general.size_label"] == ["STRING", "8x1.1M"]
    assert record["tensors"][UP][1] == [8, 256, 256]
