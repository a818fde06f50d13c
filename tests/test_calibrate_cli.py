"""`quantcli calibrate` and `convert --imatrix auto` as a user calls them."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from conftest import Call, Cli

import quantcli
from quantcli.calibration import read_imatrix
from quantcli.gguf_file import atomic, read_header, read_tensor
from quantcli.planning import Job

SMALL = ("--tokens", "256", "--context", "64", "-q")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The ferry left at six, before the bakery opened. " * 200)
    return path


def weights(path: Path) -> dict[str, bytes]:
    return {name: read_tensor(t).tobytes() for name, t in read_header(path).tensors.items()}


def test_writes_an_imatrix(call: Call, demo: Path, text: Path) -> None:
    done = call("calibrate", demo, "--text", text, "-o", "im.gguf", *SMALL, "--json")
    assert (done.code, done.left) == (0, ["im.gguf"])
    document = json.loads(done.stdout)
    assert document.pop("seconds") > 0
    assert len(document.pop("text_sha256")) == 64
    assert document == {
        "schema_version": 1,
        "path": "im.gguf",
        "dataset": "text.txt",
        "context": 64,
        "chunks": 4,
        "tokens": 256,
        "entries": 28,
    }
    found = read_imatrix(call.work / "im.gguf")
    assert (found.datasets, found.chunks, found.chunk_size) == (["text.txt"], 4, 64)
    assert {int(entry.counts[0]) for entry in found.entries.values()} == {256}


def test_the_ending_chooses_the_format(call: Call, demo: Path, text: Path) -> None:
    for name in ("im.gguf", "im.dat"):
        assert call("calibrate", demo, "--text", text, "-o", name, *SMALL).code == 0
    new, old = (read_imatrix(call.work / name) for name in ("im.gguf", "im.dat"))
    assert (call.work / "im.dat").read_bytes()[:4] == (28).to_bytes(4, "little")
    for name, entry in new.entries.items():
        n = entry.sums.size
        np.testing.assert_allclose(old.importance(name, n), new.importance(name, n), rtol=1e-6)


def test_a_gguf_file_is_as_good_a_source(call: Call, demo: Path, text: Path) -> None:
    assert call("convert", demo, "-t", "F32", "-o", "demo.gguf", "-q").code == 0
    for source, name in ((demo, "a.gguf"), ("demo.gguf", "b.gguf")):
        assert call("calibrate", source, "--text", text, "-o", name, *SMALL).code == 0
    assert weights(call.work / "a.gguf") == weights(call.work / "b.gguf")


def test_a_person_sees_what_was_done(cli: Cli, demo: Path, text: Path) -> None:
    done = cli("calibrate", demo, "--text", text, "-o", "im.gguf", *SMALL[:-1])
    assert done.returncode == 0
    assert "Running the model: 100%" in done.stderr
    for word in ("im.gguf", "text.txt", "4 windows of 64"):
        assert word in done.stdout


def test_the_builtin_text_needs_no_argument(call: Call, demo: Path) -> None:
    assert call("calibrate", demo, "-o", "im.gguf", *SMALL).code == 0
    assert read_imatrix(call.work / "im.gguf").datasets == ["builtin"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-o", "im.txt"), 2, (".gguf or .dat",)),
        (("-o", "no/im.gguf"), 2, ("no does not exist",)),
        (("-o", "im.gguf", "--text", "missing.txt"), 5, ("missing.txt",)),
        (("-o", "im.gguf", "--context", "5000"), 2, ("--context 5000", "2048")),
        (("-o", "im.gguf", "--tokens", "100"), 2, ("--tokens 100", "--context 512")),
        (("-o", "im.gguf", "--text", "hf://name"), 2, ("hf://datasets/",)),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], call: Call, demo: Path
) -> None:
    assert call("calibrate", demo, *arguments, "-q").failed_with(code, *words)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no text"),
        (b"\xff\xfe", "not UTF-8"),
        (b"A few words.", "too few for one window"),
    ],
)
def test_bad_texts(content: bytes, word: str, call: Call, demo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    done = call("calibrate", demo, "--text", tmp_path / "bad.txt", "-o", "im.gguf", "-q")
    assert done.failed_with(3, "bad.txt", word)


def test_an_existing_file_stays_unless_forced(call: Call, demo: Path, text: Path) -> None:
    (call.work / "im.gguf").write_text("mine")
    done = call("calibrate", demo, "--text", text, "-o", "im.gguf", *SMALL)
    assert (done.code, (call.work / "im.gguf").read_text()) == (9, "mine")
    assert call("calibrate", demo, "--text", text, "-o", "im.gguf", *SMALL, "--force").code == 0
    assert read_imatrix(call.work / "im.gguf").entries


def test_the_text_is_never_the_output(call: Call, demo: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.dat"
    text.write_text("words " * 900)
    done = call("calibrate", demo, "--text", text, "-o", text, *SMALL, "--force")
    assert done.failed_with(2, "the output is the input")
    assert text.read_text().startswith("words")


def test_a_full_disk(call: Call, demo: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(100, 90, 10))
    done = call("calibrate", demo, "--text", text, "-o", "im.gguf", *SMALL)
    assert done.failed_with(7, "10 are free")


def test_weights_that_are_not_finite(call: Call, demo: Path, text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(demo, broken)
    path = broken / "model.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    start = json.loads(data[8:header])["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0]
    data[header + start : header + start + 2] = b"\xc0\x7f"
    path.write_bytes(data)
    done = call("calibrate", broken, "--text", text, "-o", "im.gguf", *SMALL)
    assert done.failed_with(3, "blk.1", "not finite")


# --- convert --imatrix auto ----------------------------------------------------------------------


def test_on_the_fly_as_from_the_file(call: Call, demo: Path, text: Path) -> None:
    with_text = ("--calibration", text, "--calibration-tokens", "1024")
    arguments = ("--text", text, "--tokens", "1024", "-q")
    assert call("calibrate", demo, *arguments, "-o", "im.gguf").code == 0
    for how, name in (
        (("--imatrix", "im.gguf"), "file.gguf"),
        (("--imatrix", "auto", *with_text), "auto.gguf"),
        ((), "none.gguf"),
    ):
        assert call("convert", demo, "-t", "Q4_0", "-o", name, *how, "-q").code == 0
    made = weights(call.work / "auto.gguf")
    assert made == weights(call.work / "file.gguf")
    assert made != weights(call.work / "none.gguf")


def test_the_output_says_how_it_was_calibrated(call: Call, demo: Path, text: Path) -> None:
    job = Job(
        str(demo), ("Q4_0",), call.work / "a.gguf", calibrate=str(text), calibration_tokens=600
    )
    planned = quantcli.plan(job).files[0]
    path = Path(quantcli.convert(job).outputs[0].paths[0])
    metadata = read_header(path).metadata
    assert metadata["quantize.imatrix.file"] == "auto"
    assert metadata["quantize.imatrix.dataset"] == "text.txt"
    assert metadata["quantize.imatrix.entries_count"] == 28
    assert metadata["quantize.imatrix.chunks_count"] == 1
    assert len(metadata["quantcli.calibration.sha256"]) == 64
    assert path.stat().st_size == planned.size_bytes


def test_planning_counts_on_it(call: Call, demo: Path) -> None:
    without = call("convert", demo, "-t", "Q2_K_S", "--dry-run", "--json")
    planned = call("convert", demo, "-t", "Q2_K_S", "--dry-run", "--json", "--imatrix", "auto")
    assert (without.code, planned.code, planned.left) == (0, 0, [])
    assert "importance matrix" in without.stderr
    assert "importance matrix" not in planned.stderr
    assert call("plan", demo, "--imatrix", "auto").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--calibration", "builtin"), 2, "--imatrix auto"),
        (("--calibration-tokens", "1024"), 2, "--imatrix auto"),
        (("--imatrix", "auto", "--calibration", "missing.txt"), 5, "missing.txt"),
    ],
)
def test_bad_combinations(
    arguments: tuple[str, ...], code: int, word: str, call: Call, demo: Path
) -> None:
    assert call("convert", demo, "-t", "Q4_0", *arguments, "-q").failed_with(code, word)
