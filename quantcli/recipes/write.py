"""Writing a recipe as the TOML that `read_recipe` reads."""

import json
from pathlib import Path

from quantcli.gguf_file import write_file
from quantcli.recipes.recipe import FLAGS, Recipe


def write_recipe(recipe: Recipe, path: Path, *, force: bool = False) -> None:
    """Write a recipe file, complete or not at all. Raises like gguf_file.write_file."""
    write_file(path, recipe_toml(recipe).encode(), force=force)


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as TOML; what it does not say is left out."""
    texts = {
        "description": recipe.description,
        "type": recipe.file_type,
        "output_tensor_type": recipe.output_tensor_type,
        "token_embedding_type": recipe.token_embedding_type,
    }
    lines = [f"{key} = {_quoted(text)}" for key, text in texts.items() if text]
    lines += [f"{flag} = true" for flag in FLAGS if getattr(recipe, flag)]
    if recipe.tensors:
        lines += ["", "[tensors]"]
        lines += [f"{_quoted(pattern)} = {_quoted(kind)}" for pattern, kind in recipe.tensors]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML string: as it stands where TOML allows, for patterns have backslashes."""
    if text.isprintable() and "'" not in text:
        return f"'{text}'"
    return json.dumps(text).replace("\x7f", "\\u007f")
