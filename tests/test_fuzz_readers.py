"""Both readers against inputs that are nearly right (see fuzzing); scripts/fuzz goes on longer."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import CHECKS, Trial

from quantcli.checkpoint import safetensors
from quantcli.gguf_file import GGML_TYPES, GgmlType

FUZZ = Path(__file__).parent.parent / "scripts" / "fuzz"


def taken(reader: str, seed: int, count: int, folder: Path) -> int:
    """How many of the first inputs are accepted."""
    return sum(Trial(reader, seed, number).accepted(folder / "input") for number in range(count))


@pytest.mark.parametrize("reader", CHECKS)
def test_only_our_errors_and_nothing_read_wrong(tmp_path: Path, reader: str) -> None:
    # If nearly all or none were accepted, they would show little.
    assert 100 < taken(reader, 1, 600, tmp_path) < 500


@pytest.mark.slow
@pytest.mark.parametrize("reader", CHECKS)
def test_many_more(tmp_path: Path, reader: str) -> None:
    assert 2_000 < taken(reader, 2, 10_000, tmp_path) < 8_000


@pytest.mark.parametrize("reader", CHECKS)
def test_the_same_seed_makes_the_same_input(tmp_path: Path, reader: str) -> None:
    made = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        Trial(reader, 3, 4).write(folder)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1]


def no_check(*arguments: object) -> None:
    """A reader that forgot to look."""


def test_a_careless_reader_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "_check_spans", no_check)
    with pytest.raises((AssertionError, ValueError)):
        taken("safetensors", 1, 1000, tmp_path)


def test_wrong_sizes_of_types_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GGML_TYPES, 12, GgmlType("Q4_K", 256, 143))
    with pytest.raises(AssertionError, match="gguf-py"):
        taken("gguf", 1, 1000, tmp_path)


def test_the_script_counts_and_is_content(tmp_path: Path) -> None:
    command = [sys.executable, FUZZ, "--seconds", "0.4", "--keep", tmp_path / "kept"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(CHECKS)
    assert list((tmp_path / "kept").iterdir()) == []
