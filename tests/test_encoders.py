"""Models that embed texts: what the converter writes, and what a checkpoint may not say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_contents import comparable, contents
from tiny_encoders import ENCODERS, build_encoder, write_pooling
from tiny_tokenizers import edit

import quantcli
from quantcli.errors import BadInputError, QuantcliError, UnsupportedError
from quantcli.planning import Plan
from quantcli.planning.ram import running

RECORDS = Path(__file__).parent / "data" / "architectures"

every_encoder = pytest.mark.parametrize(("family", "variant"), ENCODERS)


@every_encoder
def test_f32_and_bf16_equal_llama_cpps_converter(tmp_path: Path, family: str, variant: str) -> None:
    record = json.loads((RECORDS / f"{family}-{variant}.json").read_text())
    folder = build_encoder(tmp_path / f"{family}-{variant}", family, variant)
    job = quantcli.Job(str(folder), types=("F32", "BF16"), output=tmp_path)
    for output in quantcli.convert(job).outputs:
        expected = record[output.file_type.lower()]
        found = contents(Path(output.paths[0]))
        assert found["tensors"] == expected["tensors"]
        assert comparable(found["metadata"]) == comparable(expected["metadata"])


# -- what a checkpoint may not say ---------------------------------------------------------------


def planned(folder: Path, **job: Any) -> Plan:
    return quantcli.plan(quantcli.Job(str(folder), output=folder, **job))


def pooling_of(folder: Path) -> int | None:
    metadata = planned(folder).files[0].metadata
    found = metadata.get(f"{metadata['general.architecture']}.pooling_type")
    return None if found is None else int(found)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}, 2),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, 3),
        ({"pooling_mode": "cls", "embedding_dimension": 96}, 2),
    ],
)
def test_pooling_is_read(tmp_path: Path, config: dict[str, Any], kind: int) -> None:
    folder = build_encoder(tmp_path / "source", "bert", "odd")
    write_pooling(folder, config, "Normalize")
    assert pooling_of(folder) == kind


def test_without_modules_nothing_is_said_of_pooling(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path / "source", "bert", "odd")
    (folder / "modules.json").unlink()
    assert pooling_of(folder) is None


def _write(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            lambda folder: write_pooling(folder, {"pooling_mode_max_tokens": True}),
            UnsupportedError,
            "1_Pooling/config.json: 'pooling_mode_max_tokens' is not supported: llama.cpp takes",
        ),
        (
            lambda folder: write_pooling(folder, {"pooling_mode": ["mean"]}),
            UnsupportedError,
            "pooling_mode = ",
        ),
        (
            lambda folder: write_pooling(
                folder, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
            ),
            UnsupportedError,
            "pooling_mode_cls_token and pooling_mode_mean_tokens at once",
        ),
        (
            lambda folder: write_pooling(folder, {"pooling_mode": "mean"}, "Dense"),
            UnsupportedError,
            "a module 'Dense' changes the embedding",
        ),
        (
            lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
            BadInputError,
            "modules.json names the folder '1_Pooling', but",
        ),
        (_write("modules.json", "{}"), BadInputError, "no list of modules"),
        (_write("modules.json", "[["), BadInputError, "modules.json' is not JSON"),
        (
            _write("modules.json", '[{"type": "a.Pooling", "path": "../../etc"}]'),
            BadInputError,
            "is missing",
        ),
    ],
)
def test_other_ways_to_pool_are_refused(
    tmp_path: Path, change: Any, error: type[QuantcliError], said: str
) -> None:
    folder = build_encoder(tmp_path / "source", "bert", "odd")
    change(folder)
    with pytest.raises(error, match=said) as caught:
        planned(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "change", "error", "said"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, UnsupportedError, "relative_key"),
        ("bert", {"is_decoder": True}, UnsupportedError, "is_decoder = True"),
        ("bert", {"hidden_act": "relu"}, UnsupportedError, "hidden_act = 'relu'"),
        ("bert", {"id2label": ["a"]}, BadInputError, "id2label"),
        (
            "bert",
            {"architectures": ["BertForSequenceClassification"]},
            UnsupportedError,
            "BertForSequenceClassification' is not supported",
        ),
        (
            "nomic_bert",
            {"moe_every_n_layers": 2, "activation_function": "gelu"},
            UnsupportedError,
            r"moe_every_n_layers = 2: Nomic-BERT with experts \(v2\) is not supported",
        ),
        ("nomic_bert", {"n_positions": 2048}, UnsupportedError, "computes 8192"),
        ("nomic_bert", {"max_trained_positions": 512}, UnsupportedError, "computes 2048"),
        ("nomic_bert", {"prenorm": True}, UnsupportedError, "prenorm = True"),
        ("nomic_bert", {"rotary_emb_scale_base": 512}, UnsupportedError, "rotary_emb_scale_base"),
        ("nomic_bert", {"rotary_emb_fraction": 0.5}, UnsupportedError, "computes 1.0"),
    ],
)
def test_other_models_are_refused(
    tmp_path: Path, family: str, change: dict[str, Any], error: type[QuantcliError], said: str
) -> None:
    folder = build_encoder(tmp_path / "source", family, "odd")
    edit(folder / "config.json", lambda config: config.update(change))
    with pytest.raises(error, match=said) as caught:
        planned(folder)
    assert "\n" not in str(caught.value)


def test_published_keys_may_be_absent_or_transformers_own(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path / "source", "nomic_bert", "odd")
    expected = planned(folder).files[0].metadata

    def rename(config: dict[str, Any]) -> None:
        for key in ("n_positions", "causal", "prenorm", "activation_function"):
            del config[key]
        config["hidden_size"] = config.pop("n_embd")
        config["num_attention_heads"] = config.pop("n_head")

    edit(folder / "config.json", rename)
    found = planned(folder).files[0].metadata
    assert found.keys() == expected.keys()
    for key in ("context_length", "embedding_length", "attention.head_count", "rope.freq_base"):
        assert found[f"nomic-bert.{key}"] == expected[f"nomic-bert.{key}"]


def test_no_cache_of_keys_and_values_is_counted(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path / "source", "bert", "odd")
    metadata = planned(folder).files[0].metadata
    assert running(metadata).kv_cache == 0
    assert running(metadata | {"bert.attention.causal": np.True_}).kv_cache > 0
