"""Types by llama-quantize's rules: the record in data/recipes says what it chose itself."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.errors import BadInputError, UsageError
from quantcli.recipes import (
    FILE_TYPES,
    Choice,
    Recipe,
    check_fallbacks,
    choose_types,
    file_type,
    recipe_from_flags,
    tensor_type,
    unused_patterns,
)
from quantcli.tensor_types import get

RECORD = json.loads((Path(__file__).parent / "data/recipes/mixes.json").read_text())["models"]
QUANTIZED = {name for name, kind in FILE_TYPES.items() if kind.quantized}


def data_bytes(choices: list[Choice], shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes of tensor data, without header and padding."""
    return sum(
        math.prod(shapes[choice.name][:-1]) * get(choice.type).row_bytes(shapes[choice.name][-1])
        for choice in choices
    )


def gguf_metadata(spec: dict[str, Any]) -> dict[str, Any]:
    as_numpy = {int: np.uint32, float: np.float32, str: str}
    return {key: as_numpy[type(value)](value) for key, value in spec["metadata"].items()}


def source_tensors(spec: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """{name: (shape, type in the source file)} in file order."""
    blocks = spec["metadata"][spec["metadata"]["general.architecture"] + ".block_count"]
    found = {}
    for name, shape, dtype in spec["tensors"]:
        for i in range(blocks) if "{}" in name else [0]:
            found[name.format(i)] = (tuple(shape), dtype)
    return found


def recorded_types(spec: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    """The types that llama-quantize gave."""
    listed = {}
    for kind, names in run["types"].items():
        for name in names:
            head, _, tail = name.partition("{")
            ranges, _, tail = tail.partition("}")
            for part in ranges.split(","):
                low, _, high = part.partition("-")
                for i in range(int(low), int(high or low) + 1) if low else [""]:
                    listed[f"{head}{i}{tail}"] = kind
    default = {"F32": "F32", "F16": run["rest"]}
    return {n: listed.get(n, default[dtype]) for n, (_, dtype) in source_tensors(spec).items()}


def recipe_of(run: dict[str, Any]) -> Recipe:
    keys = ("file_type", "pure", "leave_output_tensor", "output_tensor_type")
    options = {key: run[key] for key in (*keys, "token_embedding_type") if key in run}
    return Recipe(**options, tensors=tuple((p, t) for p, t in run.get("tensors", ())))


@pytest.mark.parametrize("model", RECORD)
def test_every_type_is_llama_quantizes_choice(model: str) -> None:
    spec = RECORD[model]
    tensors = [(name, shape) for name, (shape, _) in source_tensors(spec).items()]
    metadata = gguf_metadata(spec)
    assert {run["file_type"] for run in spec["runs"]} == QUANTIZED
    for run in spec["runs"]:
        recipe = recipe_of(run)
        choices = choose_types(tensors, metadata, recipe, has_imatrix=run.get("imatrix", False))
        assert [choice.name for choice in choices] == [name for name, _ in tensors]
        assert {c.name: c.type for c in choices} == recorded_types(spec, run), run
        assert data_bytes(choices, dict(tensors)) == run["bytes"], run


def test_record_exercises_the_rules() -> None:
    """The comparison above would be empty without models that differ in these ways."""
    types = {
        (model, run["file_type"]): set(recorded_types(spec, run).values())
        for model, spec in RECORD.items()
        for run in reversed(spec["runs"])
    }
    assert types["llama-8-down-160", "Q4_K_M"] >= {"Q4_K", "Q5_0", "Q8_0"}
    assert types["llama-8-down-100", "Q4_K_M"] >= {"Q4_K", "F16"}
    assert types["llama-80-gqa8", "Q3_K_S"] >= {"Q3_K", "Q5_K"}
    assert types["llama-80-no-gqa", "Q3_K_S"] == {"Q3_K", "Q6_K", "F32"}
    assert types["moe-12-8-experts-gqa4", "Q6_K"] >= {"Q6_K", "Q8_0"}


def test_choices_do_not_depend_on_the_order_of_tensors() -> None:
    spec = RECORD["llama-22-gqa8"]
    tensors = [(name, shape) for name, (shape, _) in source_tensors(spec).items()]
    shuffled = random.Random(3).sample(tensors, len(tensors))
    for name in FILE_TYPES:
        recipe = Recipe(file_type=name)
        expected = set(choose_types(tensors, gguf_metadata(spec), recipe))
        choices = choose_types(shuffled, gguf_metadata(spec), recipe)
        assert set(choices) == expected
        assert [choice.name for choice in choices] == [name for name, _ in shuffled]


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_files_keep_norms_and_small_tensors_in_f32(name: str) -> None:
    spec = RECORD["llama-4-odd-names"]
    tensors = [(tensor, shape) for tensor, (shape, _) in source_tensors(spec).items()]
    choices = choose_types(tensors, gguf_metadata(spec), Recipe(file_type=name))
    in_f32 = {tensor for tensor, (_, dtype) in source_tensors(spec).items() if dtype == "F32"}
    assert {c.name: c.type for c in choices} == {
        tensor: "F32" if tensor in in_f32 else name for tensor, _ in tensors
    }


def test_overrides_work_for_float_files_too() -> None:
    choices = choose_small(Recipe("F16", tensors=(("attn_v", "Q8_0"),), output_tensor_type="F32"))
    types = {choice.name: choice.type for choice in choices}
    assert types["blk.1.attn_v.weight"] == "Q8_0"
    assert types["blk.1.attn_q.weight"] == "F16"
    assert types["output.weight"] == "F32"


def small_model(embd: int = 256, ff: int = 512) -> list[tuple[str, tuple[int, ...]]]:
    parts = {"attn_q": embd, "attn_v": embd, "ffn_down": ff}
    blocks = [(f"blk.{i}.{p}.weight", (8, row)) for i in range(2) for p, row in parts.items()]
    return [("token_embd.weight", (9, embd)), *blocks, ("output.weight", (9, embd))]


def choose_small(recipe: Recipe, embd: int = 256, ff: int = 512, **options: Any) -> list[Any]:
    metadata = {"general.architecture": "llama", "llama.block_count": np.uint32(2)}
    return choose_types(small_model(embd, ff), metadata, recipe, **options)


def test_output_left_alone_keeps_the_checkpoints_type() -> None:
    recipe = Recipe("Q4_K_M", leave_output_tensor=True)
    for dtype in ("BF16", "F32"):
        assert choose_small(recipe, unquantized=dtype)[-1].type == dtype


def test_heads_may_differ_between_blocks() -> None:
    """Metadata with one value per block: llama.cpp asks for the first."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": np.uint32(2),
        "llama.attention.head_count": np.uint32(8),
        "llama.attention.head_count_kv": np.array([2, 8], np.int32),
    }
    choices = choose_types(small_model(), metadata, Recipe("Q2_K"))
    assert {c.type for c in choices if "attn_v" in c.name} == {"Q4_K"}


@pytest.mark.parametrize("count", [None, "two", np.float32(2), np.array([], np.int32)])
def test_bad_block_count_is_bad_input(count: Any) -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": count}
    if count is None:
        del metadata["llama.block_count"]
    with pytest.raises(BadInputError, match=r"llama\.block_count"):
        choose_types(small_model(), metadata, Recipe("Q4_K_M"))


def test_a_file_type_is_needed() -> None:
    with pytest.raises(UsageError, match="--type"):
        choose_small(Recipe())


def test_fallbacks_say_what_was_wanted_and_why() -> None:
    choices = {c.name: c for c in choose_small(Recipe("Q4_K_M"), ff=160)}
    down = choices["blk.0.ffn_down.weight"]
    assert (down.wanted, down.type) == ("Q4_K", "Q5_0")
    assert down.fallback == "a row of 160 values is not a multiple of 256"
    assert choices["blk.0.attn_q.weight"].fallback is None


def test_a_flags_type_falls_back_as_well() -> None:
    recipe = Recipe("Q8_0", token_embedding_type="Q6_K", output_tensor_type="Q4_K")
    choices = choose_small(recipe, embd=96)
    assert (choices[0].wanted, choices[0].type) == ("Q6_K", "Q8_0")
    assert (choices[-1].wanted, choices[-1].type) == ("Q4_K", "Q5_0")


def test_fallback_policies() -> None:
    choices = choose_small(Recipe("Q4_K_M"), ff=160)
    lines = check_fallbacks(choices, "warn")
    assert lines == [
        "'blk.0.ffn_down.weight': Q5_0 instead of Q4_K (a row of 160 values is not a multiple of "
        "256)",
        "'blk.1.ffn_down.weight': Q8_0 instead of Q6_K (a row of 160 values is not a multiple of "
        "256)",
    ]
    assert check_fallbacks(choices, "allow") == []
    with pytest.raises(BadInputError, match=r"blk\.0\.ffn_down.* 160 .*--on-fallback warn"):
        check_fallbacks(choices, "error")
    assert check_fallbacks(choose_small(Recipe("Q4_K_M")), "error") == []
    with pytest.raises(UsageError, match="error, warn, allow"):
        check_fallbacks(choices, "ignore")


def test_many_equal_fallbacks_make_one_line() -> None:
    choices = choose_small(Recipe("Q4_K_S", pure=True), embd=100, ff=100)
    (line,) = check_fallbacks(choices, "warn")
    assert line.startswith("'token_embd.weight' and 7 more: F16 instead of Q4_K")


def test_hostile_names_are_escaped() -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": np.uint32(1)}
    choices = choose_types([("\x1b[2J.weight", (2, 96))], metadata, Recipe("Q4_K_M"))
    (line,) = check_fallbacks(choices, "warn")
    assert "\x1b" not in line


def test_unused_patterns_are_reported() -> None:
    recipe = Recipe("Q4_K_M", tensors=(("attn", "Q8_0"), ("attn_v", "Q6_K"), ("atn", "Q8_0")))
    assert unused_patterns(recipe, choose_small(recipe)) == ["attn_v", "atn"]


def test_patterns_match_in_any_case() -> None:
    upper = choose_small(Recipe("Q4_K_M", tensors=((r"ATTN_Q\.Weight", "Q8_0"),)))
    lower = choose_small(Recipe("Q4_K_M", tensors=((r"attn_q\.weight", "Q8_0"),)))
    assert [c.type for c in upper] == [c.type for c in lower]
    assert "Q8_0" in {c.type for c in upper}


def test_file_type_ids_are_llama_cpps() -> None:
    import gguf

    for kind in FILE_TYPES.values():
        known = {member.value: member.name for member in gguf.LlamaFileType}
        assert known[kind.id] in (f"MOSTLY_{kind.name}", f"ALL_{kind.name}")
        assert kind.base in gguf.GGMLQuantizationType.__members__
        assert kind.note
    assert FILE_TYPES["Q2_K_S"].wants_imatrix


def test_names_and_aliases() -> None:
    assert file_type("q4_k_m").name == "Q4_K_M"
    assert [file_type(n).name for n in ("Q3_K", "q4_k", "Q5_K")] == ["Q3_K_M", "Q4_K_M", "Q5_K_M"]
    assert file_type("Q6_K").name == "Q6_K"
    assert tensor_type("q4_k") == "Q4_K"
    with pytest.raises(UsageError, match="did you mean Q4_K_M"):
        file_type("Q4KM")
    with pytest.raises(UsageError, match=r"did you mean Q5_0 or Q5_K_S or Q5_K_M or Q5_1\?"):
        file_type("Q5")
    with pytest.raises(UsageError, match="known: Q2_K_S, Q2_K"):
        file_type("xyz")
    with pytest.raises(UsageError, match=r"did you mean Q4_K\?"):
        tensor_type("Q4_K_M")
    with pytest.raises(UsageError, match=re.escape(r"'\x1b[2J'")):
        file_type("\x1b[2J")


def test_flags_make_a_recipe() -> None:
    recipe = recipe_from_flags(
        tensor_types=["attn_v=q8_0", r"^blk\.(?=0)=F16"], output_tensor_type="bf16"
    )
    assert recipe.tensors == (("attn_v", "Q8_0"), (r"^blk\.(?=0)", "F16"))
    assert recipe.output_tensor_type == "BF16"
    assert recipe_from_flags() == Recipe()


def test_bad_flags_are_all_named() -> None:
    with pytest.raises(UsageError) as error:
        recipe_from_flags(
            tensor_types=["attn_v", "=Q8_0", "(=Q8_0", "attn=Q9_0"],
            output_tensor_type="IQ9",
            leave_output_tensor=True,
        )
    message = str(error.value)
    for part in ("'attn_v'", "'=Q8_0'", "'('", "'Q9_0'", "--output-tensor-type", "exclude"):
        assert part in message
    assert "\n" not in message
