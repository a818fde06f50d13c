"""Bad inputs 55, 56 and 59, end to end: where the output goes, and what the machine has."""

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import WEIGHTS, copy
from conftest import Call, assert_one_line_error

from quantcli.planning import Job, make_plan

CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


def convert(
    source: Path, output: Path, restrict: Callable[[], object]
) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own that is restricted first."""
    return subprocess.run(
        [sys.executable, "-m", "quantcli", "convert", source, "-t", "Q8_0", "-o", output],
        preexec_fn=restrict,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def obey_permissions() -> None:
    """Take from root, who tests often are, the right to write where the mode forbids it."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.mark.parametrize(
    ("output", "words"),
    [("no/such/", "neither an existing folder"), ("no/such/x.gguf", "create it first")],
)
def test_55_directory_missing(tmp_path: Path, call: Call, output: str, words: str) -> None:
    source = copy(tmp_path / "source")
    assert call("convert", source, "-o", output).failed_with(2, "no/such", words)


def test_55_directory_is_a_file(tmp_path: Path, call: Call) -> None:
    source, file = copy(tmp_path / "source"), tmp_path / "file"
    file.write_bytes(b"precious")
    found = call("convert", source, "-o", file / "x.gguf")
    assert found.failed_with(2, f"{file}", "is not a directory")
    assert file.read_bytes() == b"precious"


def test_55_directory_read_only(tmp_path: Path) -> None:
    source, output = copy(tmp_path / "source"), tmp_path / "output"
    output.mkdir(mode=0o555)
    done = convert(source, output, obey_permissions)
    assert_one_line_error(done, 2, str(output), "is not writable")
    assert list(output.iterdir()) == []


def test_55_disk_known_to_be_full(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert call("convert", source).failed_with(7, "1000", "free")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["cannot write: No space left on device"]),
        (
            ["--method", "gptq", "--calibration-tokens", "512"],
            ["what --resume would need", "No space left on device"],
        ),
    ],
)
def test_55_disk_full_on_the_way(
    tmp_path: Path,
    call: Call,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    words: list[str],
) -> None:
    """Another process took the space that was free at the start."""
    usage = shutil.disk_usage(small_disk)._replace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = call("convert", copy(tmp_path / "source"), "-t", "Q8_0", "-o", small_disk, *flags)
    assert found.failed_with(7, f"{small_disk}", "free some space", *words)
    assert list(small_disk.iterdir()) == []


def test_55_file_size_limit(tmp_path: Path) -> None:
    source, output = copy(tmp_path / "source"), tmp_path / "output"
    output.mkdir()
    limit = (1 << 20, 1 << 20)
    done = convert(source, output, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert_one_line_error(done, 7, str(output), "File too large", "free some space")
    assert list(output.iterdir()) == []


def test_56_output_exists(tmp_path: Path, call: Call) -> None:
    source = copy(tmp_path / "source")
    (call.work / "x.gguf").write_bytes(b"precious")
    found = call("convert", source, "-o", "x.gguf")
    assert (found.code, found.stdout, found.left) == (9, "", ["x.gguf"])
    assert found.stderr.startswith("error: x.gguf: the output exists")
    assert found.stderr.count("\n") == 1
    assert (call.work / "x.gguf").read_bytes() == b"precious"


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_56_output_is_the_input(tmp_path: Path, call: Call, link: Callable, name: str) -> None:
    source = copy(tmp_path / "source")
    link(source / name, call.work / "x.gguf")
    before = (source / name).read_bytes()
    found = call("convert", source, "-o", "x.gguf", "--force")
    assert (found.code, found.stdout, found.left) == (2, "", ["x.gguf"])
    assert found.stderr.startswith("error: x.gguf: the output is the input")
    assert found.stderr.count("\n") == 1
    assert (source / name).read_bytes() == before


def test_59_more_memory_than_allowed(tmp_path: Path, call: Call) -> None:
    source = copy(tmp_path / "source")
    needed = planned(source, threads=8)
    found = call(*command(source, threads=8), "--max-memory", str(needed - 1))
    assert found.failed_with(7, "source", str(needed), str(needed - 1), "fewer --threads")
    assert call(*command(source, threads=8), "--max-memory", str(needed)).code == 0


def test_59_less_memory_than_anything_needs(tmp_path: Path, call: Call) -> None:
    source = copy(tmp_path / "source")
    least = planned(source, threads=1)
    found = call(*command(source, threads=8), "--max-memory", "10M")
    assert found.failed_with(7, "10000000", f"at least the {least} that --threads 1 needs")


def test_59_a_size_that_is_none(tmp_path: Path, call: Call) -> None:
    found = call(*command(copy(tmp_path / "source"), threads=1), "--max-memory", "much")
    assert found.failed_with(2, "--max-memory 'much' is not a size")


def command(source: Path, threads: int) -> list[str | Path]:
    """A conversion in so many threads."""
    return ["convert", source, "-t", "Q8_0", "--threads", str(threads)]


def planned(source: Path, threads: int) -> int:
    """The bytes that a conversion is planned to need at most."""
    return make_plan(Job(str(source), ("Q8_0",), threads=threads)).peak_memory_bytes
