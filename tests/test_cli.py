"""The command line as a user meets it: a fresh process, its output and its exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli, assert_one_line_error

import quantcli
from quantcli.recipes import FILE_TYPES


def left_behind(cli: Cli) -> list[str]:
    """Names in the folder that the command ran in."""
    return sorted(path.name for path in cli.work.iterdir())


def test_convert_shows_a_report_in_80_columns(cli: Cli, demo: Path) -> None:
    done = cli("convert", demo, "--type", "Q4_K_M,Q8_0")
    assert done.returncode == 0, done.stderr
    assert left_behind(cli) == ["Demo-4.2M-Q4_K_M.gguf", "Demo-4.2M-Q8_0.gguf"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("Q4_K_M.gguf", "bits per weight", "sha256", "largest errors", "attn_v.weight"):
        assert word in done.stdout
    assert "Quantizing: 100%" in done.stderr
    assert "Verifying: 100%" in done.stderr


def test_json_is_one_document_with_the_documented_keys(cli: Cli, demo: Path) -> None:
    done = cli("convert", demo, "-t", "Q4_K_M", "--json", "--quiet", "--report", "r.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert json.loads((cli.work / "r.json").read_text()) == document
    assert document["schema_version"] == 1
    assert document["source"] == {
        "id": "demo",
        "revision": None,
        "architecture": "Llama",
        "parameters": 4196608,
    }
    (output,) = document["outputs"]
    assert output["quality"] is None
    assert output["size_bytes"] == (cli.work / output["path"]).stat().st_size
    tensors = {tensor["name"]: tensor for tensor in output["tensors"]}
    assert tensors["blk.0.ffn_down.weight"]["shape"] == [768, 256]
    assert tensors["blk.0.attn_norm.weight"]["rmse"] == 0
    errors = [tensor["relative_error"] for tensor in output["tensors"]]
    assert errors == sorted(errors, reverse=True)
    assert 0.01 < errors[0] < 0.2
    assert document["seconds"] > 0
    assert document["peak_memory_bytes"] > 10**7


def test_quiet_prints_nothing(cli: Cli, demo: Path) -> None:
    done = cli("convert", demo, "-t", "Q8_0", "--quiet", "-o", "x.gguf")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left_behind(cli) == ["x.gguf"]


def test_markdown_report(cli: Cli, demo: Path) -> None:
    assert cli("convert", demo, "-t", "Q8_0", "--report", "r.md").returncode == 0
    text = (cli.work / "r.md").read_text()
    assert text.startswith("# demo\n")
    assert "| `output.weight` | Q8_0 | 256×2048 |" in text


def test_dry_run_writes_nothing(cli: Cli, demo: Path) -> None:
    done = cli("convert", demo, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would write Demo-4.2M-Q4_K_M.gguf" in done.stdout
    assert left_behind(cli) == []
    planned = json.loads(cli("convert", demo, "--dry-run", "--json").stdout)
    written = json.loads(cli("convert", demo, "--json").stdout)
    assert planned["outputs"][0]["size_bytes"] == written["outputs"][0]["size_bytes"]


def test_plan_lists_every_type_and_recommends(cli: Cli, demo: Path) -> None:
    done = cli("plan", demo, "--ram", "16GB", "--context", "1024")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert {line.partition(" ")[0] for line in done.stdout.splitlines()} >= set(FILE_TYPES)
    assert "Take Q8_0 for 16.0 GB with 1024 tokens of context" in done.stdout
    document = json.loads(cli("plan", demo, "-t", "Q4_K_M", "--ram", "1MB", "--json").stdout)
    assert document["running"]["recommended"] is None
    assert [output["file_type"] for output in document["outputs"]] == ["Q4_K_M"]


def test_plan_of_a_chosen_type_shows_its_tensors(cli: Cli, demo: Path) -> None:
    done = cli("plan", demo, "--type", "Q4_K_M", "--tensor-type", "attn_k=Q8_0")
    assert "blk.3.ffn_down.weight" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_inspect_shows_what_was_written(cli: Cli, demo: Path) -> None:
    assert cli("convert", demo, "-t", "Q4_K_M", "-o", "x.gguf").returncode == 0
    done = cli("inspect", "x.gguf")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("GGUF v3", "llama.block_count", "blk.0.attn_q.weight", "Q6_K", "Totals"):
        assert word in done.stdout
    document = json.loads(cli("inspect", "x.gguf", "--json").stdout)
    assert document["metadata"]["general.file_type"] == 15
    assert document["metadata"]["quantcli.version"] == quantcli.__version__
    assert len(document["metadata"]["tokenizer.ggml.tokens"]) == 2048
    text = json.dumps(document["metadata"])
    assert str(demo) not in text
    assert str(cli.work) not in text


def test_inspect_reads_checkpoints_too(cli: Cli, demo: Path) -> None:
    file = json.loads(cli("inspect", demo / "model.safetensors", "--json").stdout)
    folder = json.loads(cli("inspect", demo, "--json").stdout)
    assert file["tensors"] == folder["tensors"]
    assert file["types"] == {"BF16": 2 * 4196608}
    assert folder["metadata"]["hidden_size"] == 256


@pytest.mark.parametrize("what", ["types", "methods", "architectures"])
def test_lists(cli: Cli, what: str) -> None:
    shown = cli("list", what)
    rows = json.loads(cli("list", what, "--json").stdout)[what]
    assert all(row["name"] in shown.stdout for row in rows)
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_recipe_and_flags(cli: Cli, demo: Path) -> None:
    (cli.work / "r.toml").write_text('type = "Q4_K_S"\n[tensors]\n"ffn_down" = "Q6_K"\n')
    done = cli(
        "convert", demo, "--recipe", "r.toml", "--tensor-type", "blk.0.ffn_down=Q8_0", "--json"
    )
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout)["outputs"]
    types = {tensor["name"]: tensor["type"] for tensor in output["tensors"]}
    assert output["file_type"] == "Q4_K_S"
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.1.ffn_down.weight"] == "Q6_K"


def test_override_kv(cli: Cli, demo: Path) -> None:
    override = "llama.context_length=int:4096"
    assert cli("convert", demo, "-o", "x.gguf", "--override-kv", override).returncode == 0
    document = json.loads(cli("inspect", "x.gguf", "--json").stdout)
    assert document["metadata"]["llama.context_length"] == 4096


def test_existing_output_needs_force(cli: Cli, demo: Path) -> None:
    assert cli("convert", demo, "-o", "x.gguf", "-t", "Q8_0").returncode == 0
    before = (cli.work / "x.gguf").read_bytes()
    refused = cli("convert", demo, "-o", "x.gguf", "-t", "Q4_0")
    assert_one_line_error(refused, 9, "x.gguf", "--force")
    assert (cli.work / "x.gguf").read_bytes() == before
    assert cli("convert", demo, "-o", "x.gguf", "-t", "Q4_0", "--force").returncode == 0
    assert (cli.work / "x.gguf").stat().st_size < len(before)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--type", "Q4_K_X"], 2, ["Q4_K_X", "did you mean Q4_K_"]),
        (["--type", ","], 2, ["list types"]),
        (["--method", "magic"], 2, ["magic", "rtn"]),
        (["-o", "no/such/folder"], 2, ["no/such/folder"]),
        (["-o", "no/such/folder/x.gguf"], 2, ["no/such/folder"]),
        (["--report", "r.txt"], 2, ["r.txt", ".json"]),
        (["--report", "no/r.json"], 2, ["no"]),
        (["--tensor-type", "("], 2, ["--tensor-type"]),
        (["--tensor-type", "(=Q8_0"], 2, ["--tensor-type"]),
        (["--output-tensor-type", "Q9"], 2, ["Q9"]),
        (["--override-kv", "x"], 2, ["--override-kv"]),
        (["--recipe", "none.toml"], 2, ["none.toml"]),
        (["--imatrix", "none.gguf"], 5, ["none.gguf"]),
        (["--split-max-size", "x"], 2, ["--split-max-size"]),
        (["--pre-tokenizer", "llama-bqe"], 2, ["llama-bqe", "llama-bpe"]),
        (["--on-fallback", "maybe"], 2, ["maybe"]),
    ],
)
def test_bad_arguments(
    cli: Cli, demo: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    assert_one_line_error(cli("convert", demo, *arguments), code, *words)
    assert left_behind(cli) == []


def test_missing_source(cli: Cli) -> None:
    assert_one_line_error(cli("convert", "no/such/folder/here"), 5, "no/such/folder/here")
    assert_one_line_error(cli("convert", "org/not-cached"), 5, "org/not-cached", "OFFLINE")
    assert_one_line_error(cli("inspect", "nothing.gguf"), 5, "nothing.gguf")
    assert left_behind(cli) == []


def test_unknown_flag_exits_2(cli: Cli, demo: Path) -> None:
    done = cli("convert", demo, "--typo", "Q8_0")
    assert done.returncode == 2
    assert "No such option" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_clean_up(cli: Cli, demo: Path, number: signal.Signals, code: int) -> None:
    """Interrupted as soon as the part file is there: it goes, and nothing else came."""
    types = ",".join(FILE_TYPES)
    process = subprocess.Popen(
        [sys.executable, "-m", "quantcli", "convert", str(demo), "--type", types, "--threads", "1"],
        cwd=cli.work,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(cli.work.glob(".*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert left_behind(cli) == []


def test_version_and_module(cli: Cli) -> None:
    assert cli("--version").stdout == f"quantcli {quantcli.__version__}\n"


def test_completion(cli: Cli) -> None:
    script = subprocess.run(
        [Path(sys.executable).parent / "quantcli"],
        env=os.environ | {"_QUANTCLI_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "complete" in script
    assert "quantcli" in script


def test_help_stays_cheap() -> None:
    """Importing the command line must not pull in the rooms' heavy packages."""
    heavy = "{'numpy', 'gguf', 'huggingface_hub', 'tokenizers', 'yaml', 'safetensors'}"
    code = f"import sys, quantcli.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
