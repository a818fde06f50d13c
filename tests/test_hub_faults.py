"""Damaged, broken, endless and hostile: a hub that misbehaves, and repositories that do."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from broken import CONFIG, shard_name, write_shards
from hub_client import LISTING, WEIGHTS, Start, cached_content, downloads, failure
from hub_server import Fault
from huggingface_hub import constants

from quantcli.checkpoint import GgufOnlyError, hub_cache, hub_calls, open_checkpoint
from quantcli.checkpoint import hub as hub_module
from quantcli.errors import (
    BadInputError,
    IntegrityError,
    NetworkError,
    QuantcliError,
    ResourceError,
    UnsupportedError,
)

pytest_plugins = ["hub_fixtures"]


# --- damaged and broken transfers ----------------------------------------------------------------


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_flipped_bit_is_found_and_removed(
    name: str, hub: Start, model: Path, tmp_path: Path
) -> None:
    server = hub({"org/name": model}, (Fault(f"/{name}", corrupt=True, times=1),))
    digest = server.find("org/name", "main").files[name].digest
    message = failure(IntegrityError)
    assert f"'{name}' is damaged" in message
    assert digest in message
    assert digest not in [path.name for path in cached_content(tmp_path)]
    assert open_checkpoint("org/name").float32("b.weight")[0] == -1


@pytest.mark.parametrize("offline", [True, False])
def test_damage_in_the_cache_is_found_as_well(
    offline: bool, hub: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub({"org/name": model})
    open_checkpoint("org/name")
    [link] = (tmp_path / "cache").glob(f"models--org--name/snapshots/*/{WEIGHTS}")
    content = bytearray(link.read_bytes())
    content[-1] ^= 1
    link.resolve().write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert f"'{WEIGHTS}' is damaged" in failure(IntegrityError)
    assert not link.is_symlink()


def test_a_broken_connection_is_resumed(
    hub: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10)
    server = hub({"org/name": model}, (Fault(WEIGHTS, cut=100, times=1),))
    assert open_checkpoint("org/name").float32("b.weight")[0] == -1
    ranges = [value for method, path, value in server.requests if path.endswith(WEIGHTS)]
    assert "bytes=100-" in ranges


def test_truncated_after_all_retries(hub: Start, model: Path, tmp_path: Path) -> None:
    server = hub({"org/name": model}, (Fault(WEIGHTS, short=5),))
    assert "broke off" in failure(NetworkError)
    assert downloads(server).count(WEIGHTS) == hub_calls.ATTEMPTS
    assert [path.name for path in cached_content(tmp_path) if "incomplete" in path.name] == []


def test_truncated_header(hub: Start, model: Path) -> None:
    size = (model / WEIGHTS).stat().st_size
    hub({"org/name": model}, (Fault(WEIGHTS, short=size - 20),))
    assert "sent 20 of" in failure(NetworkError, weights=False)


def test_retry_after_is_honoured(hub: Start, model: Path, waits: list[float]) -> None:
    busy = Fault(LISTING, status=429, headers={"Retry-After": "7"}, times=2)
    hub({"org/name": model}, (busy,))
    open_checkpoint("org/name")
    assert len(waits) == 2
    assert all(7 < wait < 10 for wait in waits)
    assert waits[0] != waits[1]


def test_the_rate_limit_of_the_hub_is_honoured(hub: Start, model: Path, waits: list[float]) -> None:
    busy = Fault(LISTING, status=429, headers={"ratelimit": '"api";r=0;t=55'}, times=1)
    hub({"org/name": model}, (busy,))
    open_checkpoint("org/name")
    assert [55 < wait < 58 for wait in waits] == [True]


@pytest.mark.parametrize("path", [LISTING, WEIGHTS])
def test_nobody_waits_for_a_day(path: str, hub: Start, model: Path, waits: list[float]) -> None:
    hub({"org/name": model}, (Fault(path, status=429, headers={"Retry-After": "86400"}),))
    assert "asks to wait 86400 s" in failure(NetworkError)
    assert waits == []


ENDLESS = [(LISTING, "GET", 500), (LISTING, "GET", 429), (WEIGHTS, "GET", 503)]
ENDLESS += [(WEIGHTS, "HEAD", 500), ("config.json", "GET", 502)]


@pytest.mark.parametrize(("path", "method", "status"), ENDLESS)
def test_endless_failures_end(
    path: str, method: str, status: int, hub: Start, model: Path, waits: list[float]
) -> None:
    server = hub({"org/name": model}, (Fault(path, method, status),))
    assert f"(HTTP {status})" in failure(NetworkError)
    assert len(server.requests) < 30
    assert 0 < sum(waits) < 120


def test_a_few_failures_are_overcome(hub: Start, model: Path) -> None:
    faults = [Fault(LISTING, status=500, times=2), Fault(WEIGHTS, status=503, times=2)]
    hub({"org/name": model}, (*faults, Fault(WEIGHTS, "HEAD", 502, times=2)))
    assert open_checkpoint("org/name").has_weights


def test_endless_failures_end_for_headers_too(hub: Start, model: Path) -> None:
    server = hub({"org/name": model}, (Fault(WEIGHTS, status=500),))
    assert "(HTTP 500)" in failure(NetworkError, weights=False)
    assert downloads(server).count(WEIGHTS) == hub_calls.ATTEMPTS


def test_a_slow_hub_is_fine(hub: Start, model: Path) -> None:
    hub({"org/name": model}, (Fault(WEIGHTS, delay=0.02),))
    assert open_checkpoint("org/name").has_weights


def test_no_hub_at_all(hub: Start, model: Path) -> None:
    hub({"org/name": model}).close()
    message = failure(NetworkError)
    assert "'org/name' from 127.0.0.1 broke off (ConnectError)" in message
    assert "HF_HUB_OFFLINE=1" in message


def test_something_else_than_a_hub(hub: Start, model: Path) -> None:
    server = hub({"org/name": model})
    for body in (b"<html>", b"[1]", b"{}", b'{"id":"a","sha":"../..","siblings":[]}'):
        server.repos["org/name"]["main"].listing = lambda *_, body=body: body
        assert failure(NetworkError)


# --- hostile and unsupported repositories --------------------------------------------------------

HOSTILE = [
    "../../evil.safetensors",
    "/etc/cron.d/x",
    "a/../../b.json",
    "..\\..\\b",
    "a\nb",
    "a\x1b",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_names(name: str, hub: Start, model: Path, tmp_path: Path) -> None:
    hub({"org/name": model}, extra_names=(name,))
    assert "has the hostile file name" in failure(BadInputError)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("tag", ["../../../../evil", "/tmp/evil", ".."])
def test_hostile_tags_do_not_leave_the_cache(
    tag: str, hub: Start, model: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.iterdir())
    headers = {"ETag": f'"{tag}"', "X-Repo-Commit": "a" * 40, "Content-Length": "5"}
    hub({"org/name": model}, (Fault("config.json", "HEAD", 200, headers),))
    assert "hostile etag" in failure(NetworkError)
    assert set(tmp_path.iterdir()) <= before | {tmp_path / "cache"}


def test_side_files_of_absurd_size_are_not_downloaded(
    hub: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "tokenizer.json").write_bytes(b"x" * 1000)
    monkeypatch.setattr(hub_module, "SIDE_FILE_LIMIT", 999)
    server = hub({"org/name": model})
    assert "'tokenizer.json' is over the limit" in failure(BadInputError)
    assert downloads(server) == []


UNSUPPORTED: dict[str, tuple[list[str], type[QuantcliError], str]] = {
    "pickles only": (["config.json", "pytorch_model.bin"], UnsupportedError, "pickled weights"),
    "GGUF only": (["m.gguf"], GgufOnlyError, "GGUF files"),
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], UnsupportedError, "adapter"),
    "no config": ([WEIGHTS], BadInputError, "no config.json"),
    "nothing": (["README.md"], BadInputError, "no model.safetensors"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_other_repositories_are_refused_before_any_weight(
    case: str, hub: Start, tmp_path: Path
) -> None:
    names, kind, words = UNSUPPORTED[case]
    (tmp_path / "source").mkdir()
    for name in names:
        (tmp_path / "source" / name).write_text("{}")
    server = hub({"org/name": tmp_path / "source"})
    assert words in failure(kind)
    assert set(downloads(server)) <= {"config.json"}


def test_quantized_model_is_refused_before_any_weight(hub: Start, model: Path) -> None:
    settings = {"quantization_config": {"quant_method": "awq"}}
    (model / "config.json").write_text(json.dumps(CONFIG | settings))
    server = hub({"org/name": model})
    assert "awq" in failure(UnsupportedError)
    assert downloads(server) == ["config.json"]


def test_index_with_a_shard_the_repository_lacks(hub: Start, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "source")
    (source / shard_name(2, 3)).unlink()
    server = hub({"org/name": source})
    assert f"lacks '{shard_name(2, 3)}'" in failure(BadInputError)
    assert not any(name.endswith("safetensors") for name in downloads(server))


def test_a_full_disk_is_known_before_the_download(
    hub: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=60)
    monkeypatch.setattr(hub_cache.shutil, "disk_usage", lambda _: usage)
    server = hub({"org/name": model})
    assert "the download needs" in failure(ResourceError)
    assert downloads(server) == []
