"""`quantcli evaluate` and `quantcli convert --evaluate` as a user meets them."""

import hashlib
import json
from pathlib import Path

import pytest
from conftest import DEMO, Call

import quantcli
from quantcli.planning import Job

TEXT = Path(__file__).parent / "data" / "evaluation" / "text.txt"
QUICK = ("--text", TEXT, "--context", "128", "--chunks", "2", "--threads", "1")
KEYS = [
    "text_sha256",
    "context",
    "chunks",
    "perplexity",
    "perplexity_stderr",
    "reference_perplexity",
    "perplexity_ratio",
    "kld_mean",
    "kld_stderr",
    "kld_median",
    "kld_p99",
    "kld_p999",
    "kld_max",
    "top1_agreement",
    "top1_stderr",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Q4_K_M and Q8_0 files of the demo."""
    job = Job(str(DEMO), ("Q4_K_M", "Q8_0"), tmp_path_factory.mktemp("files"))
    return [Path(output.paths[0]) for output in quantcli.convert(job).outputs]


def test_table_in_80_columns(call: Call, files: list[Path]) -> None:
    done = call("evaluate", *files, "--reference", DEMO, *QUICK)
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [
        "Type",
        "Size",
        "bpw",
        "PPL",
        "ΔPPL",
        "KLD",
        "99.9",
        "%",
        "Top-1",
        "RAM",
        "8k",
    ]
    for file, note in zip(files, ("good default", "practically the original"), strict=True):
        at = lines.index(f"{file.name} · {note}")
        assert lines[at + 1].startswith(file.stem.rpartition("-")[2])
        assert "±" in lines[at + 1]
        assert lines[at + 2] == f"sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert any("demo: PPL" in line for line in lines)
    assert "2 windows of 128 tokens" in done.stdout
    assert "Activations not rounded" in done.stdout
    assert "Running the model" in done.stderr


def test_json_has_the_documented_keys(call: Call, files: list[Path]) -> None:
    report = call.work / "r.json"
    arguments = ("evaluate", *files, "--reference", DEMO, *QUICK, "--json", "--quiet")
    done = call(*arguments, "--activations", "llama-cpu", "--report", report)
    assert (done.code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert json.loads(report.read_text()) == document
    assert (document["schema_version"], document["reference"]) == (1, str(DEMO))
    small, large = document["models"]
    assert [small["path"], large["path"]] == [str(file) for file in files]
    for model in (small, large):
        assert all(model[key] is not None for key in KEYS)
        assert model["activations"] == "llama-cpu"
        assert model["size_bytes"] == Path(model["path"]).stat().st_size
    assert (small["file_type"], large["file_type"]) == ("Q4_K_M", "Q8_0")
    assert (small["context"], small["chunks"]) == (128, 2)
    assert small["kld_mean"] > 5 * large["kld_mean"] > 0
    assert small["ram_bytes"] > small["size_bytes"]


def test_without_reference(call: Call, files: list[Path]) -> None:
    done = call("evaluate", DEMO, files[1], *QUICK, "--json", "--quiet")
    document = json.loads(done.stdout)
    assert document["reference"] is None
    source, quantized = document["models"]
    assert all(source[key] is None for key in KEYS[5:])
    assert source["file_type"] is None
    assert source["sha256"] is None
    assert quantized["perplexity"] == pytest.approx(source["perplexity"], rel=0.01)


def test_markdown_report(call: Call, files: list[Path]) -> None:
    done = call("evaluate", *files, "--reference", DEMO, *QUICK, "--report", "r.md", "--quiet")
    assert (done.code, done.stdout) == (0, "")
    text = (call.work / "r.md").read_text()
    heading = next(line for line in text.splitlines() if line.startswith("| File"))
    rows = [line for line in text.splitlines() if line.startswith("| `Demo")]
    assert heading == (
        "| File | Type | Size | bpw | PPL | ΔPPL | KLD mean | KLD 99.9 % | Same top-1 "
        "| RAM at 8k | sha256 | Notes |"
    )
    assert len(rows) == 2
    assert all(row.count("|") == heading.count("|") for row in rows)
    assert "good default" in rows[0]


@pytest.mark.parametrize("flag", [["--evaluate", TEXT], [f"--evaluate={TEXT}"]])
def test_convert_evaluates_what_it_wrote(call: Call, flag: list[str | Path]) -> None:
    done = call("convert", DEMO, "-t", "Q8_0", *flag, "--json", "--quiet", "--report", "r.md")
    assert done.code == 0, done.stderr
    (output,) = json.loads(done.stdout)["outputs"]
    again = call("evaluate", output["path"], "--reference", DEMO, "--text", TEXT, "--json", "-q")
    (model,) = json.loads(again.stdout)["models"]
    assert set(output["quality"]) == {*KEYS, "activations"}
    assert output["quality"] == {key: model[key] for key in output["quality"]}
    assert "| KLD mean |" in (call.work / "r.md").read_text()


@pytest.mark.slow
def test_convert_evaluates_on_a_text_of_ours(call: Call) -> None:
    done = call("convert", DEMO, "-t", "Q4_K_M", "--evaluate", "-o", "x.gguf")
    assert done.code == 0, done.stderr
    assert done.left == ["x.gguf"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "KLD" in done.stdout
    assert "Reference demo: PPL" in done.stdout


def test_texts_that_are_none(call: Call, tmp_path: Path, files: list[Path]) -> None:
    texts = {"empty": b"", "short": b"only this", "latin": b"caf\xe9 cr\xe8me", "utf16": b"a\0b\0"}
    words = {"empty": "no text", "short": "too few", "latin": "UTF-8", "utf16": "UTF-8"}
    for name, data in texts.items():
        path = tmp_path / f"{name}.txt"
        path.write_bytes(data)
        assert call("evaluate", files[0], "--text", path).failed_with(3, name, words[name])
        done = call("convert", DEMO, "--evaluate", path)
        assert done.failed_with(3, name, words[name]), "before anything is written"


def test_arguments_that_make_no_sense(call: Call, tmp_path: Path, files: list[Path]) -> None:
    def refused(code: int, *words: str, given: tuple[str | Path, ...]) -> None:
        assert call("evaluate", *given).failed_with(code, *words)

    file = files[0]
    refused(2, "4096", "2048", given=(file, "--text", TEXT, "--context", "4096"))
    refused(2, "llama-gpu", "llama-cpu", given=(file, "--activations", "llama-gpu"))
    refused(2, "r.txt", ".json", given=(file, "--report", "r.txt"))
    refused(5, "none.gguf", given=(tmp_path / "none.gguf",))
    refused(5, "none.txt", given=(file, "--text", "none.txt"))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:100_000])
    refused(3, "cut.gguf", given=(cut, *QUICK))
