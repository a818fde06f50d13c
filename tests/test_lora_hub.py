"""Adapters from the hub: two files and a card, verified, cached, named in the output."""

from pathlib import Path

import pytest
from conftest import Cli, assert_one_line_error
from hub_client import Start, cached_content, downloads, environment
from hub_server import Fault, HubServer
from test_lora import sources

import quantcli
from quantcli.checkpoint import AdapterRef
from quantcli.errors import AccessError, BadInputError, IntegrityError, UnsupportedError
from quantcli.gguf_file import read_header

pytest_plugins = ["hub_fixtures"]


def test_a_model_and_its_adapter_from_the_hub(cli: Cli, tmp_path: Path) -> None:
    base, lora = sources(tmp_path, "llama")
    (lora / "adapter_model.bin").write_bytes(b"pickle")
    (lora / "optimizer.pt").write_bytes(b"pickle")
    with HubServer({"org/tiny-llama": base, "org/lora": lora}) as hub:
        places = environment(hub, tmp_path)
        command = ("convert", "org/tiny-llama", "--lora", "org/lora:2", "-t", "F32", "-o")
        done = cli(*command, "x.gguf", **places)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        names = [name for name in downloads(hub) if name.startswith(("adapter", "optimizer"))]
        assert sorted(set(names)) == ["adapter_config.json", "adapter_model.safetensors"]
        commit = hub.find("org/lora", "main").commit
    assert cli(*command, "y.gguf", **places | {"HF_HUB_OFFLINE": "1"}).returncode == 0
    done = cli("convert", base, "--lora", f"{lora}:2", "-t", "F32", "-o", "z.gguf")
    metadata = [read_header(cli.work / f"{name}.gguf").metadata for name in "xyz"]  # type: ignore[attr-defined]
    for found in metadata[:2]:
        assert found["quantcli.lora.0.repo"] == "org/lora"
        assert found["quantcli.lora.0.commit"] == commit
    x, y = ((cli.work / f"{name}.gguf").read_bytes() for name in "xy")  # type: ignore[attr-defined]
    assert x == y
    assert len({found["quantcli.lora.0.sha256"] for found in metadata}) == 1


def test_lora_only_downloads_no_base(hub: Start, tmp_path: Path) -> None:
    base, lora = sources(tmp_path, "llama")
    server = hub({"org/other": base, "org/name": lora})
    refs = (AdapterRef("org/name"),)
    job = quantcli.Job("org/other", types=("F16",), output=tmp_path / "x.gguf", lora=refs)
    report = quantcli.convert_adapter(job)
    weights = [rng for _, path, rng in server.requests if path.endswith("/model.safetensors")]
    assert weights
    assert all(weights)
    assert report.warnings == [
        "org/name: made for 'org/tiny-llama', not for 'org/other'; its shapes fit"
    ]
    metadata = read_header(tmp_path / "x.gguf").metadata
    assert metadata["general.source.repo_url"] == "https://huggingface.co/org/name"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/org/tiny-llama"


def refused(hub: Start, tmp_path: Path, kind: type[Exception], *faults: Fault) -> str:
    base, lora = tmp_path / "base", tmp_path / "adapter"
    hub({"org/name": lora}, faults)
    refs = (AdapterRef("org/name"),)
    job = quantcli.Job(str(base), types=("Q8_0",), output=tmp_path / "x.gguf", lora=refs)
    with pytest.raises(kind) as caught:
        quantcli.convert(job)
    assert not list(tmp_path.glob("*.gguf*"))
    return str(caught.value)


def test_a_flipped_bit(hub: Start, tmp_path: Path) -> None:
    sources(tmp_path, "llama")
    fault = Fault("adapter_model.safetensors", corrupt=True)
    assert "damaged" in refused(hub, tmp_path, IntegrityError, fault)
    assert not any(file.stat().st_size > 50_000 for file in cached_content(tmp_path))


def test_only_pickles(hub: Start, tmp_path: Path) -> None:
    _, lora = sources(tmp_path, "llama")
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    assert "may run code" in refused(hub, tmp_path, UnsupportedError)
    assert cached_content(tmp_path) == []


def test_a_model_in_place_of_an_adapter(hub: Start, tmp_path: Path) -> None:
    base, lora = sources(tmp_path, "llama")
    for file in lora.iterdir():
        file.unlink()
    (lora / "config.json").write_text((base / "config.json").read_text())
    assert "no LoRA adapter" in refused(hub, tmp_path, BadInputError)


def test_offline_and_not_cached(
    hub: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources(tmp_path, "llama")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(hub, tmp_path, AccessError)


def test_no_such_adapter(cli: Cli, tmp_path: Path) -> None:
    base, _ = sources(tmp_path, "llama")
    with HubServer({}) as hub:
        done = cli("convert", base, "--lora", "org/none", **environment(hub, tmp_path))
    assert_one_line_error(done, 5, "org/none")
