"""Recipe files: the examples in configs/recipes, strict validation, flags over a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantcli.errors import UsageError
from quantcli.recipes import (
    Recipe,
    choose_types,
    read_recipe,
    recipe_from_flags,
    unused_patterns,
)

CONFIGS = sorted((Path(__file__).parents[1] / "configs/recipes").glob("*.toml"))
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


def types_of(recipe: Recipe, blocks: int = 8) -> dict[str, str]:
    names = [f"blk.{i}.{part}.weight" for i in range(blocks) for part in PARTS]
    tensors = [(name, (64, 256)) for name in ("token_embd.weight", *names, "output.weight")]
    metadata = {"general.architecture": "llama", "llama.block_count": np.uint32(blocks)}
    choices = choose_types(tensors, metadata, recipe)
    assert unused_patterns(recipe, choices) == []
    return {choice.name: choice.type for choice in choices}


def test_there_are_two_examples() -> None:
    assert len(CONFIGS) >= 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_examples_parse_apply_and_explain_themselves(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.description
    assert path.read_text().startswith("#")
    plain = types_of(Recipe(recipe.file_type))
    assert types_of(recipe) != plain


def test_balanced_4bit() -> None:
    types = types_of(read_recipe(next(path for path in CONFIGS if path.stem == "balanced-4bit")))
    assert {t for name, t in types.items() if "ffn_down" in name} == {"Q6_K"}
    assert {t for name, t in types.items() if "attn_v" in name} == {"Q8_0"}
    assert {t for name, t in types.items() if "ffn_up" in name} == {"Q4_K"}


def test_every_key(write: Write) -> None:
    path = write(
        """
        description = "all"
        type = "q5_k"
        pure = true
        leave_output_tensor = true
        token_embedding_type = "q8_0"
        [tensors]
        'attn_v\\.weight' = "q6_k"
        attn = "F16"
        """
    )
    assert read_recipe(path) == Recipe(
        file_type="Q5_K_M",
        pure=True,
        leave_output_tensor=True,
        token_embedding_type="Q8_0",
        tensors=((r"attn_v\.weight", "Q6_K"), ("attn", "F16")),
        description="all",
    )


def test_all_problems_are_named_at_once_on_one_line(write: Write) -> None:
    path = write(
        """
        typ = "Q4_K_M"
        type = "Q4_K_X"
        pure = "yes"
        output_tensor_type = 6
        token_embedding_type = "Q4_K_M"
        [tensors]
        'attn_v(' = "Q6_K"
        attn_q = "Q7_0"
        attn_k = 4
        blk.0.attn_output = "Q8_0"
        """
    )
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    message = str(error.value)
    assert "recipe.toml" in message
    assert "\n" not in message
    problems = (
        "unknown key 'typ'",
        "type: unknown file type 'Q4_K_X'",
        "pure: expected true or false, not 'yes'",
        "output_tensor_type: expected a string in quotes, not 6",
        "token_embedding_type: unknown tensor type 'Q4_K_M'; did you mean Q4_K?",
        "[tensors] 'attn_v(': not a regular expression",
        "[tensors] 'attn_q': unknown tensor type 'Q7_0'",
        "[tensors] 'attn_k': expected a tensor type in quotes, not 4",
        "[tensors] 'blk': put quotes around a pattern that contains dots",
    )
    for problem in problems:
        assert problem in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("type = ", "not valid TOML"),
        ("tensors = 3", "expected a table"),
        ("type = 'Q8_0'\ntype = 'Q6_K'", "not valid TOML"),
        ("leave_output_tensor = true\noutput_tensor_type = 'Q8_0'", "exclude each other"),
        ("[tensors]\n'a{99999999999}' = 'Q8_0'", "not a regular expression"),
        ("[tensors]\n'" + "(" * 20000 + "' = 'Q8_0'", "not a regular expression"),
        ("x = " + "[" * 20000, "not valid TOML"),
        ('"\\u001b[2J" = 1', r"'\x1b[2J'"),
        ("#" * (1 << 20) + "#", "at most"),
    ],
    ids=lambda value: value[:20],
)
def test_bad_recipes(write: Write, text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read_recipe(write(text))
    assert complaint in str(error.value)
    assert len(str(error.value)) < 600


def test_unreadable_recipes(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"type = '\xff'")
    for path, complaint in (
        (tmp_path / "none.toml", "no recipe file"),
        (tmp_path, "no recipe file"),
        (binary, "not UTF-8"),
    ):
        with pytest.raises(UsageError, match=complaint):
            read_recipe(path)


def test_flags_come_before_the_file() -> None:
    file = Recipe(
        "Q4_K_M",
        output_tensor_type="Q8_0",
        tensors=(("attn_v", "Q6_K"), ("attn_q", "Q5_K")),
        description="kept",
    )
    flags = recipe_from_flags(tensor_types=["attn_v=Q8_0"], token_embedding_type="F16")
    merged = file.merged_with(flags)
    assert merged.file_type == "Q4_K_M"
    assert merged.description == "kept"
    assert (merged.output_tensor_type, merged.token_embedding_type) == ("Q8_0", "F16")
    assert merged.tensors == (("attn_v", "Q8_0"), ("attn_v", "Q6_K"), ("attn_q", "Q5_K"))
    assert file.merged_with(Recipe()) == file


def test_a_flag_for_the_output_replaces_leaving_it() -> None:
    file = Recipe("Q4_K_M", leave_output_tensor=True)
    merged = file.merged_with(recipe_from_flags(output_tensor_type="Q8_0"))
    assert types_of(merged)["output.weight"] == "Q8_0"
    other = Recipe("Q4_K_M", output_tensor_type="Q8_0")
    merged = other.merged_with(recipe_from_flags(leave_output_tensor=True))
    assert types_of(merged)["output.weight"] == "F16"
