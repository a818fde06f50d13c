"""From a hub id to a GGUF file, as a fresh process with the real client and a local hub."""

import json
from pathlib import Path

from conftest import Cli, assert_one_line_error
from hub_client import environment
from hub_server import HubServer


def test_plan_downloads_no_weights(cli: Cli, tmp_path: Path, demo: Path) -> None:
    with HubServer({"org/demo": demo}) as hub:
        done = cli("plan", "org/demo", "-t", "Q4_K_M", "--json", **environment(hub, tmp_path))
        assert done.returncode == 0, done.stderr
        asked = [(rng, path) for method, path, rng in hub.requests if method == "GET"]
    weights = [rng for rng, path in asked if path.endswith("model.safetensors")]
    assert weights
    assert all(weights), "the weights were asked for without a Range"
    local = json.loads(cli("plan", demo, "-t", "Q4_K_M", "--json").stdout)
    remote = json.loads(done.stdout)
    sizes = [t["size_bytes"] for t in local["outputs"][0]["tensors"]]
    assert [t["size_bytes"] for t in remote["outputs"][0]["tensors"]] == sizes
    assert len(remote["source"]["revision"]) == 40


def test_convert_downloads_verifies_and_says_where_from(
    cli: Cli, tmp_path: Path, demo: Path
) -> None:
    with HubServer({"org/demo": demo}) as hub:
        places = environment(hub, tmp_path)
        done = cli("convert", "org/demo", "-t", "Q8_0", "-o", "x.gguf", "--json", **places)
    assert done.returncode == 0, done.stderr
    assert "Downloading org/demo: 100%" in done.stderr
    document = json.loads(done.stdout)
    assert document["source"]["id"] == "org/demo"
    metadata = json.loads(cli("inspect", "x.gguf", "--json").stdout)["metadata"]
    assert metadata["quantcli.source.repo"] == "org/demo"
    assert metadata["quantcli.source.commit"] == document["source"]["revision"]
    offline = places | {"HF_HUB_OFFLINE": "1"}
    again = cli("convert", "org/demo", "-t", "Q8_0", "-o", "y.gguf", "--json", **offline)
    assert again.returncode == 0, again.stderr
    digests = [json.loads(run.stdout)["outputs"][0]["sha256"] for run in (done, again)]
    assert digests[0] == digests[1]


def test_an_existing_output_costs_no_download(cli: Cli, tmp_path: Path, demo: Path) -> None:
    (cli.work / "x.gguf").write_bytes(b"precious")
    with HubServer({"org/demo": demo}) as hub:
        done = cli("convert", "org/demo", "-o", "x.gguf", **environment(hub, tmp_path))
        assert_one_line_error(done, 9, "x.gguf")
    cached = sum(file.stat().st_size for file in (tmp_path / "home").rglob("*") if file.is_file())
    assert cached < demo.joinpath("model.safetensors").stat().st_size / 4
