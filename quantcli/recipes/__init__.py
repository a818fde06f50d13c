"""Recipes: which tensor type each tensor of an output file gets."""

from quantcli.recipes.choose import Choice, choose_types, unused_patterns
from quantcli.recipes.fallbacks import check_fallbacks
from quantcli.recipes.file_types import FILE_TYPES, FileType, file_type, tensor_type
from quantcli.recipes.recipe import Recipe, read_recipe, recipe_from_flags

__all__ = [
    "FILE_TYPES",
    "Choice",
    "FileType",
    "Recipe",
    "check_fallbacks",
    "choose_types",
    "file_type",
    "read_recipe",
    "recipe_from_flags",
    "tensor_type",
    "unused_patterns",
]
