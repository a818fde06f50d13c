"""Where outputs go and what they are called."""

import re
from pathlib import Path
from typing import Any

from quantcli.errors import UsageError

Metadata = dict[str, Any]
TYPE = "{type}"
_TYPE_AT_END = re.compile(r"[-._](?:B?F16|F32|I?Q\d\w*)$", re.IGNORECASE)


def output_path(output: Path, metadata: Metadata, file_type: str, source_id: str) -> Path:
    """The path of one output: `{type}` in it becomes the file type, a folder gets a name by the
    GGUF naming convention.

    Raises:
        UsageError: when `output` is neither an existing folder nor the name of a .gguf file.
    """
    if output.is_dir():
        return output / conventional_name(metadata, file_type, source_id)
    if output.suffix == ".gguf":
        return Path(str(output).replace(TYPE, file_type))
    raise UsageError(
        f"--output {str(output)!r} is neither an existing folder nor a file name ending in .gguf"
    )


def conventional_name(metadata: Metadata, file_type: str, source_id: str) -> str:
    """<BaseName>-<SizeLabel>-<FineTune>-<Version>-<Type>.gguf (gguf's naming_convention).

    Adapters end in -LoRA.gguf. A GGUF file without a name is called as it is, but for its own type.
    """
    import gguf

    def known(key: str) -> str | None:
        value = metadata.get(f"general.{key}")
        return value if isinstance(value, str) and value else None

    name = gguf.utility.naming_convention(
        known("name") or bare_name(source_id.rpartition("/")[2]),
        known("basename"),
        known("finetune"),
        known("version"),
        known("size_label"),
        file_type,
        "LoRA" if metadata.get("general.type") == "adapter" else None,
    )
    # The parts come from a model card: no separators, no hidden files, no control codes.
    return re.sub(r"[^\w.+-]+", "-", name).lstrip(".-")[-200:] + ".gguf"


def bare_name(source_id: str) -> str:
    """The name of a GGUF file without its own type at the end."""
    return _TYPE_AT_END.sub("", source_id) or source_id


def check_distinct(paths: list[Path]) -> None:
    """Refuse several outputs under one name.

    Raises:
        UsageError: naming the path.
    """
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(
                f"--output {str(path)!r} is one file for several types; give a folder instead, or "
                f"write {TYPE} where the type belongs"
            )
