"""The manifests in configs/zoo: they expand to what their comments say, and run."""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from conftest import DEMO
from example_shell import CONFIGS
from hub_server import HubServer, Revision
from hub_upload_server import TOKEN, UploadHub
from tiny_models import build
from zoo import Zoo

from quantcli.batch.expand import BatchJob, expand
from quantcli.batch.manifest import read_manifest

MANIFESTS = sorted((CONFIGS / "zoo").glob("*.toml"))


def jobs(name: str) -> list[BatchJob]:
    return expand(read_manifest(CONFIGS / "zoo" / f"{name}.toml"), Path("/shelf"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_expand_and_say_how_to_run_them(path: Path) -> None:
    assert jobs(path.stem)
    text = path.read_text()
    assert text.startswith("#")
    assert f"quantcli batch configs/zoo/{path.name} -o shelf/" in text


def test_small() -> None:
    found = jobs("small")
    assert len(found) == 6
    assert sum(len(job.outputs) for job in found) == 12
    assert {job.job.method for job in found} == {"rtn", "gptq"}
    assert all(job.job.gate.needs_quality and job.job.gate.max_size for job in found)
    (llama,) = {job.job.gate for job in found if "Llama" in job.source}
    assert (llama.max_kld, llama.min_top1) == (0.1, None)


def test_publish() -> None:
    found = jobs("publish")
    assert {job.upload for job in found} == {
        "your-org/Qwen3-8B-GGUF",
        "your-org/Mistral-7B-Instruct-v0.3-GGUF",
    }
    assert all(job.job.evaluate and job.report == ("html",) for job in found)


def test_the_manifest_of_the_readme(tmp_path: Path) -> None:
    readme = (CONFIGS.parent / "README.md").read_text()
    (tmp_path / "zoo.toml").write_text(readme.partition("```toml\n")[2].partition("```")[0])
    found = expand(read_manifest(tmp_path / "zoo.toml"), tmp_path)
    assert [job.name for job in found if fnmatchcase(job.name, "*Qwen3* gptq")] == [
        "Qwen/Qwen3-0.6B gptq"
    ]
    assert [job.job.types for job in found if not job.on_hub] == [("Q5_K_M",)] * 2


def test_local() -> None:
    assert not any(job.on_hub for job in jobs("local"))
    assert [output for job in jobs("local") for output in job.outputs] == [
        "support/support-Q4_K_M.gguf",
        "support/support-Q8_0.gguf",
        "support/support-balanced-4bit.gguf",
        "support/support-measured-4bit.gguf",
        "summaries-1B/summaries-1B-5.0bpw.gguf",
    ]


def run(
    name: str, folder: Path, shorter: dict[str, str] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a manifest from a copy of configs/ in `folder`, with some of its text replaced."""
    if not (folder / "configs").exists():
        shutil.copytree(CONFIGS, folder / "configs")
    path = folder / f"configs/zoo/{name}.toml"
    text = path.read_text()
    for old, new in (shorter or {}).items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    (path.parent / "text.txt").write_text((CONFIGS.parent / "README.md").read_text()[:4000])
    return subprocess.run(
        [sys.executable, "-m", "quantcli", "batch", path, "-o", "shelf"],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def online(hub: HubServer, folder: Path) -> dict[str, str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": TOKEN}
    return settings | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.mark.slow
def test_local_runs(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    checkpoints = tmp_path / "configs/zoo/checkpoints"
    build(checkpoints / "support", "llama", "gqa")
    build(checkpoints / "summaries", "qwen3", "tied")
    done = run("local", tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = {output for job in jobs("local") for output in job.outputs}
    assert set(Zoo(tmp_path).digests()) == wanted


@pytest.mark.slow
def test_small_runs(tmp_path: Path) -> None:
    names = [job.source for job in jobs("small")]
    with HubServer(dict.fromkeys(names, DEMO)) as hub:
        shorter = {'"rtn", "gptq"]': '"rtn"]\nevaluate = "text.txt"'}
        done = run("small", tmp_path, shorter, **online(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    totals = Zoo(tmp_path).summary()["totals"]
    assert (totals["done"], totals["outputs"]) == (3, 6)


@pytest.mark.slow
def test_publish_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    hub = UploadHub()
    for job in jobs("publish"):
        hub.repos[job.source] = {"main": Revision.of_folder(DEMO)}
    # Fewer types, rounded to nearest: the way to the hub is the same.
    fewer = {'"Q3_K_M", "Q4_K_M", "Q5_K_M", ': "", '"Q4_K_M", "Q5_K_M"': '"Q4_K_M"'}
    fewer |= {'"gptq"': '"rtn"', "evaluate = true": 'evaluate = "text.txt"'}
    with hub:
        done = run("publish", tmp_path, fewer, **online(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert set(hub.content("your-org/Qwen3-8B-GGUF")) == {
        "Qwen3-8B-Q6_K.gguf",
        "Qwen3-8B-Q8_0.gguf",
        "README.md",
        "Modelfile",
    }
    rows = Zoo(tmp_path).summary()["jobs"]
    assert all(row["published"] for row in rows)
    assert all(any(name.endswith(".html") for name in row["reports"]) for row in rows)
    shelf = [path.read_bytes() for path in (tmp_path / "shelf").rglob("*") if path.is_file()]
    assert TOKEN not in done.stdout + done.stderr + json.dumps(rows)
    assert not any(TOKEN.encode() in content for content in shelf)
