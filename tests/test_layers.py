"""Imports point one way: a room may import only rooms of the lines above its own."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "quantcli"

LINES = [
    {"blas", "errors", "parallel", "progress"},
    {"kernels", "workers"},
    {"tensor_types", "checkpoint", "architectures", "gguf_file"},
    {"tokenizer", "recipes"},
    {"gguf_source"},
    {"model"},
    {"transformer"},
    {"calibration"},
    {"evaluation", "methods"},
    {"planning", "inspection"},
    {"streaming"},
    {"report", "encoding", "sequence"},
    {"pipeline", "adapter"},
    {"batch"},
    {"cli"},
]
RANK = {room: rank for rank, line in enumerate(LINES) for room in line}


def room_of(file: Path) -> str:
    """The first part of a module's path below the package."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a module's import statements name, at module level or inside functions."""
    package = ("quantcli", *file.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            parts = (*base, *(node.module or "").split(".")) if node.module else base
            targets = [parts] if len(parts) > 1 else [(*parts, a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [tuple((node.module or "").split("."))]
        elif isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {t[1] for t in targets if t[0] == "quantcli" and len(t) > 1}
    return {room for room in found if not room.startswith("_")}


def test_every_room_has_its_line() -> None:
    rooms = {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(RANK)


def test_imports_point_one_way() -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {room}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if (here := room_of(file)) not in ("__init__", "__main__")
        for room in imported_rooms(file)
        if room != here and RANK[room] >= RANK[here]
    ]
    assert wrong == []
