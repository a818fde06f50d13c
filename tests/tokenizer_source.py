"""A checkpoint with only what the tokenizer asks of it."""

import json
from pathlib import Path
from typing import Any


class FolderSource:
    """The side files in a folder; `config` is its config.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = [file for file in folder.rglob("*") if file.is_file()]
        self.source_files = tuple(sorted(str(file.relative_to(folder)) for file in files))
        self.config: dict[str, Any] = json.loads(self.file("config.json") or b"{}")

    def file(self, name: str, limit: int = 1 << 30) -> bytes | None:
        """The content of a file, None when there is none."""
        return (self.folder / name).read_bytes() if name in self.source_files else None
