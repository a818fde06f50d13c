"""Plans, surveys and their parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import build, describe

import quantcli
from quantcli import architectures
from quantcli.errors import BadInputError, OutputExistsError, UsageError
from quantcli.pipeline import check_outputs
from quantcli.planning.names import conventional_name, output_path
from quantcli.planning.overrides import apply_overrides
from quantcli.planning.ram import parse_size, running
from quantcli.planning.survey import survey
from quantcli.recipes import FILE_TYPES, Recipe

LLAMA_8B = {
    "general.architecture": "llama",
    "llama.block_count": np.uint32(32),
    "llama.context_length": np.uint32(131072),
    "llama.embedding_length": np.uint32(4096),
    "llama.feed_forward_length": np.uint32(14336),
    "llama.attention.head_count": np.uint32(32),
    "llama.attention.head_count_kv": np.uint32(8),
    "tokenizer.ggml.tokens": ["x"] * 128256,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("16GB", 16 * 10**9), ("16g", 16 * 10**9), ("4GiB", 4 << 30), ("1.5M", 1500000), ("7", 7)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text, "--ram") == expected


@pytest.mark.parametrize("text", ["", "0", "-1G", "GB", "1XB", "1 2", "nan", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--ram"):
        parse_size(text, "--ram")


def test_kv_cache_of_an_8b_model() -> None:
    # 32 layers x 8192 tokens x 8 heads x 128 values x (K and V) x 2 bytes = 1 GiB.
    assert running(LLAMA_8B, 8192).kv_cache == 1 << 30
    with pytest.raises(UsageError, match="131072"):
        running(LLAMA_8B, 131073)


def test_overrides_keep_the_width_of_what_they_replace() -> None:
    old = {"a.u16": np.uint16(1), "a.text": "x"}
    texts = ("a.u16=int:7", "new=int:9", "neg=int:-2", "big=int:9000000000", "f=float:0.5")
    changed = apply_overrides(old, (*texts, "b=bool:true", "a.text=str:a=b:c"))
    assert old == {"a.u16": np.uint16(1), "a.text": "x"}
    types = {key: type(value) for key, value in changed.items()}
    assert types == {
        "a.u16": np.uint16,
        "a.text": str,
        "new": np.uint32,
        "neg": np.int32,
        "big": np.int64,
        "f": np.float32,
        "b": bool,
    }
    assert (changed["a.u16"], changed["a.text"], changed["neg"]) == (7, "a=b:c", -2)


@pytest.mark.parametrize(
    "text",
    [
        *("", "key", "key=5", "key=int:x", "a.u16=int:70000", "b=bool:1", "k=list:1", "=int:1"),
        *("general.architecture=str:qwen2", "f=float:x"),
    ],
)
def test_bad_overrides(text: str) -> None:
    with pytest.raises(UsageError, match="--override-kv"):
        apply_overrides({"a.u16": np.uint16(1)}, (text,))


def test_names_are_safe_whatever_the_model_card_says(tmp_path: Path) -> None:
    card = {"general.basename": "../../etc/\x1b[2Jx", "general.size_label": "8B"}
    name = conventional_name(card, "Q8_0", "x")
    assert name == "etc--2Jx-8B-Q8_0.gguf"
    assert output_path(tmp_path, card, "Q8_0", "x").parent == tmp_path


def test_output_is_a_folder_or_a_gguf_name(tmp_path: Path) -> None:
    assert output_path(tmp_path / "x.gguf", {}, "Q8_0", "x") == tmp_path / "x.gguf"
    with pytest.raises(UsageError, match="missing"):
        output_path(tmp_path / "missing", {}, "Q8_0", "x")


def test_one_file_name_for_two_types_is_refused(tmp_path: Path, demo: Path) -> None:
    job = quantcli.Job(str(demo), types=("Q8_0", "Q4_0"), output=tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="give a folder"):
        quantcli.plan(job)


def test_a_type_named_twice_is_written_once(tmp_path: Path, demo: Path) -> None:
    job = quantcli.Job(str(demo), types=("q4_k", "Q4_K_M"), output=tmp_path)
    assert [file.file_type.name for file in quantcli.plan(job).files] == ["Q4_K_M"]


def test_existing_output_is_refused_before_the_work(tmp_path: Path, demo: Path) -> None:
    job = quantcli.Job(str(demo), types=("Q8_0",), output=tmp_path / "x.gguf")
    job.output.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        quantcli.convert(job)
    assert job.output.read_bytes() == b"precious"
    check_outputs(quantcli.plan(replace(job, force=True)))


def test_survey_names_every_type_and_recommends(demo: Path) -> None:
    job = quantcli.Job(str(demo), types=("Q4_K_M",))
    free = survey(job, budget=None, context=512)
    assert [file.file_type.name for file in free.plan.files] == list(FILE_TYPES)
    assert [file.file_type.name for file in free.chosen] == ["Q4_K_M"]
    assert free.recommended is None
    assert survey(job, budget=10**9, context=512).recommended.file_type.name == "Q8_0"
    assert survey(job, budget=10**6, context=512).recommended is None
    needs = free.plan.files[FILE_TYPES_INDEX["Q5_K_M"]].size_bytes
    overhead = survey(job, budget=1, context=512).running.overhead
    tight = survey(job, budget=needs + overhead, context=512)
    assert tight.recommended.file_type.name == "Q5_K_M"


FILE_TYPES_INDEX = {name: index for index, name in enumerate(FILE_TYPES)}


def test_recipe_reaches_the_tensors(tmp_path: Path, demo: Path) -> None:
    recipe = Recipe(tensors=((r"ffn_down", "Q8_0"),), output_tensor_type="Q5_K")
    job = quantcli.Job(str(demo), types=("Q4_K_S",), output=tmp_path, recipe=recipe)
    types = {tensor.name: tensor.type.name for tensor in quantcli.plan(job).files[0].tensors}
    assert types["output.weight"] == "Q5_K"
    assert {t for name, t in types.items() if "ffn_down" in name} == {"Q8_0"}
    assert types["blk.0.ffn_up.weight"] == "Q4_K"


def test_leaving_the_output_tensor_keeps_the_sources_type(tmp_path: Path, demo: Path) -> None:
    recipe = Recipe(leave_output_tensor=True)
    job = quantcli.Job(str(demo), types=("Q4_K_S",), output=tmp_path, recipe=recipe)
    types = {tensor.name: tensor.type.name for tensor in quantcli.plan(job).files[0].tensors}
    assert types["output.weight"] == "BF16"


def test_shards_are_planned_and_checked(tmp_path: Path, demo: Path) -> None:
    job = quantcli.Job(
        str(demo), types=("Q8_0",), output=tmp_path / "x.gguf", split_max_bytes=2_000_000
    )
    shards = quantcli.plan(job).files[0].shards
    assert len(shards) > 1
    shards[1].path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        quantcli.convert(job)
    shards[1].path.unlink()
    report = quantcli.convert(job)
    assert report.outputs[0].paths == [str(shard.path) for shard in shards]
    assert report.outputs[0].size_bytes == sum(shard.size for shard in shards)


def test_unknown_fallback_policy(tmp_path: Path, demo: Path) -> None:
    job = quantcli.Job(str(demo), output=tmp_path, on_fallback="maybe")
    with pytest.raises(UsageError, match="maybe"):
        quantcli.plan(job)


def test_fallbacks_follow_the_policy(tmp_path: Path) -> None:
    from tiny_models import build

    folder = build(tmp_path / "odd", "llama", "odd")
    job = quantcli.Job(str(folder), types=("Q4_K_M",), output=tmp_path)
    assert any("Q5_0 instead of Q4_K" in line for line in quantcli.plan(job).all_warnings)
    assert quantcli.plan(replace(job, on_fallback="allow")).all_warnings == []
    with pytest.raises(BadInputError, match="--on-fallback"):
        quantcli.plan(replace(job, on_fallback="error"))


def test_what_is_left_out_of_a_model_that_sees_is_told(tmp_path: Path) -> None:
    source = build(tmp_path / "source", "gemma3", "multimodal")
    job = quantcli.Job(str(source), ("Q8_0",), tmp_path / "o.gguf")
    (told,) = quantcli.plan(job).all_warnings
    assert told == (
        "left out: 1 tensor, 0.0 MB, of vision_tower: the file is the language model alone;"
        " llama.cpp's convert_hf_to_gguf.py --mmproj makes the other one"
    )
    assert quantcli.convert(job).warnings == [told]
    assert (
        quantcli.plan(
            replace(job, source=str(tmp_path / "o.gguf"), allow_requantize=True)
        ).all_warnings
        == []
    )


def test_towers_of_gemma4_are_left_out() -> None:
    config, shapes = describe("gemma4", "tied")
    family = architectures.find(config)
    plain = [o.name for o in family.tensors(config, shapes)]
    towers = {f"model.{part}x.weight": (4, 4) for part in family.towers}
    assert [o.name for o in family.tensors(config, shapes | towers)] == plain
