"""Batches and the hub, with the real client: downloads, deletion, the shared rate, publishing."""

import hashlib
import json
from pathlib import Path

import pytest
from conftest import DEMO
from gguf_contents import contents
from hub_client import environment
from hub_server import Fault, HubServer
from hub_upload_server import TOKEN, UploadHub
from tiny_adapters import build_adapter
from tiny_models import build
from zoo import Zoo

import quantcli
from quantcli.calibration.text import read_text
from quantcli.checkpoint import AdapterRef

SECRET = "hf_very_secret_token"
MANIFEST = """
[[models]]
source = "org/demo"
types = ["Q4_0", "Q8_0"]
recipes = ["a.toml", "b.toml"]
output = "{model}-{recipe}-{type}.gguf"
"""


def hub_zoo(folder: Path, manifest: str = MANIFEST) -> Zoo:
    """One hub model, two jobs of two types."""
    (folder / "zoo.toml").write_text(manifest)
    for name in ("a", "b"):
        (folder / f"{name}.toml").write_text(f'description = "{name}"\n')
    return Zoo(folder)


def whole_downloads(hub: HubServer) -> int:
    """How often the weights were asked for without a Range."""
    return sum(
        method == "GET" and path.endswith("model.safetensors") and not rng
        for method, path, rng in hub.requests
    )


def cached_weights(folder: Path) -> list[Path]:
    return [path for path in (folder / "home").rglob("*.safetensors") if path.exists()]


def test_one_download_serves_all_jobs_of_a_model_and_no_token_is_written(tmp_path: Path) -> None:
    zoo = hub_zoo(tmp_path, MANIFEST + '[[models]]\nsource = "org/none"\n')
    with HubServer({"org/demo": DEMO}) as hub:
        ran = zoo.run(**environment(hub, tmp_path, HF_TOKEN=SECRET))
        assert f"Bearer {SECRET}" in hub.tokens
        assert whole_downloads(hub) == 1
    assert ran.code == 10
    assert zoo.statuses()["none"] == ("failed", 5)
    assert zoo.statuses()["demo"] == ("done", 0)
    assert len(zoo.digests()) == 4
    for path in zoo.shelf.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    assert SECRET not in ran.out + ran.err


def test_dry_run_knows_the_download(tmp_path: Path) -> None:
    zoo = hub_zoo(tmp_path)
    with HubServer({"org/demo": DEMO}) as hub:
        ran = zoo.run("--dry-run", "--json", **environment(hub, tmp_path))
        assert whole_downloads(hub) == 0
    totals = json.loads(ran.out)["totals"]
    assert totals["download_bytes"] == (DEMO / "model.safetensors").stat().st_size
    assert totals["disk_bytes"] == totals["download_bytes"] + totals["output_bytes"]


ADAPTED = """
[[models]]
source = "org/demo"
lora = ["./lora:0.5"]
stream = true
types = ["Q4_0"]
output = "{model}-{type}.gguf"
[[models]]
source = "org/files:F16"
types = ["Q8_0"]
output = "files-{type}.gguf"
"""


def test_adapters_streams_and_gguf_files(tmp_path: Path) -> None:
    """Each like `convert`; what is streamed needs no disk, what is stored is deleted."""
    build_adapter(tmp_path / "lora", "llama")
    source = build(tmp_path / "source", "llama", "gqa")
    (tmp_path / "files").mkdir()
    quantcli.convert(quantcli.Job(str(source), ("F16",), tmp_path / "files" / "m-F16.gguf"))
    (tmp_path / "zoo.toml").write_text(ADAPTED)
    zoo = Zoo(tmp_path)
    with HubServer({"org/demo": source, "org/files": tmp_path / "files"}) as hub:
        places = environment(hub, tmp_path)
        dry = zoo.run("--dry-run", "--json", **places)
        assert dry.code == 0, dry.err
        totals = json.loads(dry.out)["totals"]
        ran = zoo.run("--delete-source", **places)
    assert ran.code == 0, ran.err
    streamed, stored = (
        (tmp_path / name).stat().st_size
        for name in ("source/model.safetensors", "files/m-F16.gguf")
    )
    assert totals["download_bytes"] == streamed + stored
    assert totals["disk_bytes"] == totals["output_bytes"] + stored
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in kept) < stored / 2
    expected = tmp_path / "expected.gguf"
    lora = (AdapterRef(str(tmp_path / "lora"), 0.5),)
    quantcli.convert(quantcli.Job(str(source), ("Q4_0",), expected, lora=lora))
    assert contents(zoo.shelf / "demo-Q4_0.gguf")["tensors"] == contents(expected)["tensors"]


@pytest.mark.slow
def test_sources_are_deleted_after_the_last_job_that_reads_them(tmp_path: Path) -> None:
    zoo = hub_zoo(tmp_path)
    with HubServer({"org/demo": DEMO}) as hub:
        places = environment(hub, tmp_path)
        assert zoo.run("--delete-source", **places).code == 0
        assert whole_downloads(hub) == 1
        assert cached_weights(tmp_path) == []
        files = zoo.digests()
        (zoo.shelf / "demo-a-Q4_0.gguf").unlink()
        assert zoo.run("--delete-source", **places).code == 0
        assert whole_downloads(hub) == 2
        assert cached_weights(tmp_path) == []
    assert zoo.digests() == files


@pytest.mark.slow
def test_a_damaged_download_is_fetched_again(tmp_path: Path) -> None:
    zoo = hub_zoo(tmp_path)
    fault = Fault("model.safetensors", corrupt=True, times=4)  # three of them are headers, by Range
    with HubServer({"org/demo": DEMO}, [fault]) as hub:
        ran = zoo.run(**environment(hub, tmp_path))
    assert ran.code == 0, ran.err
    assert "again in" in ran.err
    assert "damaged" in ran.err


@pytest.mark.slow
def test_all_jobs_share_one_rate(tmp_path: Path) -> None:
    zoo = hub_zoo(tmp_path)
    with HubServer({"org/demo": DEMO}) as hub:
        places = environment(hub, tmp_path, TMPDIR=str(tmp_path))
        assert zoo.run("--hub-rate", "6000", **places).code == 0
    (bucket,) = tmp_path.glob("quantcli-hub-*")
    assert len(bucket.read_text().split()) == 2


def publishing(folder: Path, extra: str = "") -> Zoo:
    (folder / "text.txt").write_text(read_text("builtin").content[:6000])
    manifest = MANIFEST + 'evaluate = "text.txt"\n' + extra
    return hub_zoo(folder, manifest)


@pytest.mark.slow
def test_what_met_its_gate_is_published_once(tmp_path: Path) -> None:
    zoo = publishing(tmp_path, "gate = { max_kld = 0.5 }\n")
    with UploadHub(repos={"org/demo": DEMO}) as hub:
        places = environment(hub, tmp_path, HF_TOKEN=TOKEN)
        arguments = ("--upload", "me/{model}-GGUF")
        ran = zoo.run(*arguments, **places)
        assert ran.code == 0, ran.err
        found = hub.repos["me/demo-GGUF"]["main"].files
        published = {name: hashlib.sha256(e.content).hexdigest() for name, e in found.items()}
        assert {n: d for n, d in published.items() if n.endswith(".gguf")} == zoo.digests()
        card = found["README.md"].content.decode()
        assert "base_model: org/demo" in card
        assert all(digest in card for digest in zoo.digests().values())
        assert found["Modelfile"].content.startswith(b"FROM ./demo-") or b"\nFROM ./demo-" in (
            found["Modelfile"].content
        )
        asked = len(hub.requests)
        assert zoo.run(*arguments, **places).code == 0
        assert len(hub.requests) == asked, "nothing to do, nothing asked"
    urls = {job["published"] for job in zoo.summary()["jobs"]}
    assert len(urls) == 1
    assert "/me/demo-GGUF/commit/" in urls.pop()
    assert TOKEN not in (zoo.shelf / "ledger.jsonl").read_text()


@pytest.mark.slow
def test_what_missed_its_gate_is_not_published(tmp_path: Path) -> None:
    zoo = publishing(tmp_path, "gate = { max_kld = 0.000001 }\nupload = 'me/x'\n")
    with UploadHub(repos={"org/demo": DEMO}) as hub:
        ran = zoo.run(**environment(hub, tmp_path, HF_TOKEN=TOKEN))
        assert "me/x" not in hub.repos
    assert ran.code == 10
    assert zoo.statuses() == {"demo": ("failed", 8)}


@pytest.mark.slow
def test_an_upload_that_is_refused_is_a_failure_and_tried_again_when_asked(tmp_path: Path) -> None:
    zoo = hub_zoo(tmp_path, MANIFEST + "upload = 'me/x'\n")
    fault = Fault("/api/repos/create", method="POST", status=403, times=1)
    with UploadHub([fault], repos={"org/demo": DEMO}) as hub:
        places = environment(hub, tmp_path, HF_TOKEN=TOKEN)
        ran = zoo.run(**places)
        assert ran.code == 10
        assert [line for line in ran.errors if "upload me/x" in line and "(exit 5)" in line]
        files, begun = zoo.digests(), zoo.begun()
        assert zoo.run(**places).code == 10
        assert zoo.begun() == begun
        assert zoo.run("--retry-failed", **places).code == 0
        assert set(hub.repos["me/x"]["main"].files) == {*files, "README.md", "Modelfile"} | (
            set(hub.repos["me/x"]["main"].files) & {".gitattributes"}
        )
    assert zoo.begun() == [*begun, "upload me/x"]
