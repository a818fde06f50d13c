"""Models from the hub by the real client: what is fetched, and what the hub may refuse."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from broken import CONFIG, safetensors, shard_name, two_tensors, write_shards, write_single
from hub_client import LISTING, WEIGHTS, Start, cached_content, downloads, failure
from hub_server import GATED, Fault, HubServer
from huggingface_hub import constants

from quantcli.checkpoint import hub as hub_module
from quantcli.checkpoint import open_checkpoint
from quantcli.errors import (
    AccessError,
    BadInputError,
)

pytest_plugins = ["hub_fixtures"]


# --- what works ----------------------------------------------------------------------------------


def test_only_what_is_needed_is_downloaded(hub: Start, model: Path, tmp_path: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "original").mkdir()
    wanted = ["tokenizer.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"]
    unwanted = ["pytorch_model.bin", "modeling.py", "m.pt", "m.onnx", "m.gguf", "preprocessor.json"]
    unwanted += ["consolidated.safetensors", "original/model.safetensors", "a.jinja"]
    for name in wanted + unwanted:
        (model / name).write_text(f'{{"is": "{name}"}}')
    server = hub({"org/name": model})
    checkpoint = open_checkpoint("org/name")
    names = {"config.json", WEIGHTS, *wanted}
    assert set(checkpoint.source_files) == names
    assert sorted(downloads(server)) == sorted(name.rpartition("/")[2] for name in names)
    assert checkpoint.id == "org/name"
    assert checkpoint.revision == server.find("org/name", "main").commit
    assert checkpoint.config == CONFIG
    assert checkpoint.file("additional_chat_templates/rag.jinja") is not None
    np.testing.assert_array_equal(checkpoint.raw("a.weight"), two_tensors()["a.weight"])


def test_sharded_model(hub: Start, tmp_path: Path) -> None:
    server = hub({"org/name": write_shards(tmp_path / "source")})
    checkpoint = open_checkpoint("org/name")
    assert [f"t{i}.{x}" for i in (1, 2, 3) for x in "ab"] == list(checkpoint.tensors)
    np.testing.assert_array_equal(checkpoint.float32("t3.a"), np.full((2, 3), 3))
    assert len(downloads(server)) == 5


def test_second_time_only_the_listing_is_asked_for(hub: Start, model: Path) -> None:
    server = hub({"org/name": model})
    open_checkpoint("org/name")
    server.requests.clear()
    open_checkpoint("org/name")
    asked = [path for _, path, _ in server.requests if "org/name" in path]
    assert asked == ["/api/models/org/name/revision/main"]


@pytest.mark.parametrize("revision", [None, "main"])
def test_offline_the_cache_is_enough(
    revision: str | None, hub: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub({"org/name": model})
    commit = open_checkpoint("org/name").revision
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for ask in (revision, commit):
        checkpoint = open_checkpoint("org/name", revision=ask)
        assert checkpoint.revision == commit
        assert checkpoint.float32("b.weight")[0] == -1
    assert server.requests == []


def test_revisions_are_told_apart(
    hub: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_single(tmp_path / "v2", safetensors({"v2": np.zeros(3, np.float32)}))
    server = hub({"org/name": {"main": model, "v2": other}})
    commit = server.find("org/name", "v2").commit
    assert list(open_checkpoint("org/name", revision="v2").tensors) == ["v2"]
    assert list(open_checkpoint("org/name", revision=commit).tensors) == ["v2"]
    assert "v2" not in open_checkpoint("org/name").tensors
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint("org/name", revision="v2").revision == commit


def test_headers_only_reads_no_weights(hub: Start, tmp_path: Path) -> None:
    source = write_single(tmp_path / "source")
    big = {"big": np.zeros((1024, 1024), np.float32), "small": np.ones(3, np.float32)}
    (source / WEIGHTS).write_bytes(safetensors(big))
    server = hub({"org/name": source})
    checkpoint = open_checkpoint("org/name", weights=False)
    assert not checkpoint.has_weights
    assert checkpoint.tensors["big"].shape == (1024, 1024)
    assert checkpoint.weight("small").dtype == "F32"
    asked = [value for _, path, value in server.requests if path.endswith(WEIGHTS)]
    assert asked == [f"bytes=0-{hub_module.HEADER_GUESS - 1}"]
    assert not any(path.stat().st_size > 1 << 20 for path in cached_content(tmp_path))
    with pytest.raises(RuntimeError, match="without weights"):
        checkpoint.float32("small")


def test_long_headers_take_a_second_request(
    hub: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "HEADER_GUESS", 20)
    server = hub({"org/name": model})
    expected = open_checkpoint(str(model)).tensors
    assert open_checkpoint("org/name", weights=False).tensors == expected
    assert len([1 for _, path, _ in server.requests if path.endswith(WEIGHTS)]) == 2


def test_headers_of_shards_are_checked_against_the_index(hub: Start, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "source")
    (source / shard_name(2, 3)).write_bytes(safetensors({"t1.a": np.zeros(3, np.float32)}))
    hub({"org/name": source})
    assert "'t1.a' is in" in failure(BadInputError, weights=False)


def test_progress_counts_every_byte_once_even_after_a_restart(hub: Start, model: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.tasks: list[list] = []

        def start(self, description: str, total_bytes: int) -> None:
            self.tasks.append([description, total_bytes, 0, False])

        def advance(self, n: int) -> None:
            self.tasks[-1][2] += n

        def finish(self) -> None:
            self.tasks[-1][3] = True

    size = (model / WEIGHTS).stat().st_size
    hub({"org/name": model}, (Fault(WEIGHTS, short=7, times=1),))
    recorder = Recorder()
    open_checkpoint("org/name", progress=recorder)
    assert recorder.tasks == [
        ["Downloading org/name", size, size, True],
        ["Verifying", size, size, True],
    ]


# --- missing, gated, not authorised --------------------------------------------------------------

REFUSED = {
    "gated, 401": (Fault(WEIGHTS, "HEAD", 401, GATED), "is gated: accept its terms at"),
    "gated, 403": (Fault(WEIGHTS, "HEAD", 403, GATED), "set HF_TOKEN"),
    "gated listing": (Fault(LISTING, status=403, headers=GATED), "is gated"),
    "listing 401": (Fault(LISTING, status=401), "(HTTP 401): set HF_TOKEN"),
    "file 403": (Fault(WEIGHTS, "HEAD", 403), "(HTTP 403): set HF_TOKEN"),
    "download 403": (Fault(WEIGHTS, status=403), "(HTTP 403): set HF_TOKEN"),
    "gone": (Fault(WEIGHTS, "HEAD", 404, {"X-Error-Code": "EntryNotFound"}), "(HTTP 404)"),
    "bad request": (Fault(LISTING, status=400), "(HTTP 400)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_the_hub(case: str, hub: Start, model: Path, waits: list[float]) -> None:
    fault, words = REFUSED[case]
    hub({"org/name": model}, (fault,))
    message = failure(AccessError)
    assert "'org/name'" in message
    assert words in message
    assert waits == []


def test_headers_of_a_gated_model(hub: Start, model: Path) -> None:
    hub({"org/name": model}, (Fault(WEIGHTS, status=401, headers=GATED),))
    assert "is gated" in failure(AccessError, weights=False)


def test_unknown_model(hub: Start, model: Path) -> None:
    hub({"org/name": model})
    message = failure(AccessError, "org/nome")
    assert message.startswith("'org/nome' is neither a folder here nor a model on 127.0.0.1")
    assert "check the spelling" in message


def test_unknown_revision(hub: Start, model: Path) -> None:
    hub({"org/name": model})
    assert "no revision 'v9'" in failure(AccessError, revision="v9")


def test_offline_and_not_cached(hub: Start, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = hub({"org/name": model})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in failure(AccessError)
    assert server.requests == []


@pytest.mark.parametrize("lost", [WEIGHTS, "config.json"])
def test_offline_and_only_partly_cached(
    lost: str, hub: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub({"org/name": model})
    open_checkpoint("org/name")
    [link] = (tmp_path / "cache").glob(f"models--org--name/snapshots/*/{lost}")
    link.resolve().unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not completely in the cache" in failure(AccessError)


# --- the environment, in processes of their own --------------------------------------------------

CHILD = """
import sys
from quantcli.checkpoint import open_checkpoint
from quantcli.errors import QuantcliError
try:
    print(open_checkpoint("org/name").float32("b.weight")[0])
except QuantcliError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def child(server: HubServer, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", CHILD],
        env=variables | more,
        capture_output=True,
        text=True,
        check=False,
    )


def test_endpoint_home_token_and_offline_come_from_the_environment(
    model: Path, tmp_path: Path
) -> None:
    # The client would log these to stderr, but one line of ours is all that may appear there.
    busy = Fault("config.json", "HEAD", 503, times=2)
    with HubServer({"org/name": model}, [busy]) as server:
        first = child(server, tmp_path / "home", HF_TOKEN="hf_secret")
        assert (first.returncode, first.stdout, first.stderr) == (0, "-1.0\n", "")
        asked = zip(server.requests, server.tokens, strict=True)
        tokens = {token for (_, path, _), token in asked if "org/name" in path}
        assert tokens == {"Bearer hf_secret"}
        assert (tmp_path / "home" / "hub" / "models--org--name").is_dir()
        server.requests.clear()
        offline = child(server, tmp_path / "home", HF_HUB_OFFLINE="1")
        assert (offline.returncode, offline.stdout, offline.stderr) == (0, "-1.0\n", "")
        elsewhere = child(server, tmp_path / "other", HF_HUB_OFFLINE="1")
        assert elsewhere.returncode == AccessError.exit_code
        assert elsewhere.stderr.count("\n") == 1
        assert server.requests == []
