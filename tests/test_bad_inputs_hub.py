"""Bad inputs 57 and 58, end to end: what the hub refuses, and a hub that fails or lies.

All run the real client in this process, whose waiting is only recorded; a few that wait for nothing
also in a fresh process, which takes the hub from its environment.
"""

from pathlib import Path

import pytest
from bad_inputs import WEIGHTS, copy
from conftest import Call, Cli, assert_one_line_error
from hub_client import LISTING, Start, cached_content, downloads, environment
from hub_server import GATED, Fault, HubServer

from quantcli.checkpoint import hub_calls

pytest_plugins = ["hub_fixtures"]

Faults = list[Fault]
REFUSED: dict[str, tuple[Faults, list[str], int, list[str]]] = {
    "57 no such repository": ([], ["org/none"], 5, ["'org/none'", "check the spelling"]),
    "57 no such revision": ([], ["org/name", "--revision", "v9"], 5, ["'v9'"]),
    "57 gated listing": (
        [Fault(LISTING, status=403, headers=GATED)], ["org/name"], 5, ["is gated", "HF_TOKEN"]
    ),
    "57 gated file": (
        [Fault(WEIGHTS, "HEAD", 401, GATED), Fault(WEIGHTS, "GET", 401, GATED)],
        ["org/name"],
        5,
        ["is gated: accept its terms at"],
    ),
    "57 not authorised": ([Fault(LISTING, status=401)], ["org/name"], 5, ["(HTTP 401)"]),
    "58 wrong hash": ([Fault(WEIGHTS, corrupt=True)], ["org/name"], 8, [WEIGHTS, "is damaged"]),
    "58 wrong hash of a side file": (
        [Fault("tokenizer.json", corrupt=True)], ["org/name"], 8, ["tokenizer.json", "is damaged"]
    ),
    "58 come back tomorrow": (
        [Fault(LISTING, status=429, headers={"Retry-After": "86400"})],
        ["org/name"],
        6,
        ["asks to wait 86400 s"],
    ),
}  # fmt: skip


FRESH = ["57 no such repository", "57 gated file", "58 wrong hash", "58 come back tomorrow"]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, call: Call, hub: Start, waits: list[float], case: str) -> None:
    faults, arguments, code, words = REFUSED[case]
    hub({"org/name": copy(tmp_path / "source")}, tuple(faults))
    assert call("convert", *arguments).failed_with(code, *words)
    assert waits == []


@pytest.mark.parametrize("case", FRESH)
def test_refused_in_a_fresh_process(tmp_path: Path, cli: Cli, case: str) -> None:
    faults, arguments, code, words = REFUSED[case]
    with HubServer({"org/name": copy(tmp_path / "source")}, faults) as server:
        done = cli("convert", *arguments, **environment(server, tmp_path))
    assert_one_line_error(done, code, *words)
    assert list(cli.work.iterdir()) == []


def test_57_offline_and_not_cached(tmp_path: Path, cli: Cli) -> None:
    with HubServer({"org/name": copy(tmp_path / "source")}) as server:
        offline = environment(server, tmp_path, HF_HUB_OFFLINE="1")
        assert_one_line_error(cli("convert", "org/name", **offline), 5, "'org/name'", "OFFLINE")
        assert server.requests == []
    assert list(cli.work.iterdir()) == []


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/etc/cron.d/x", "a/../../b.json"])
def test_58_hostile_file_names(tmp_path: Path, call: Call, hub: Start, name: str) -> None:
    """None of the files of a hub that lists one outside is fetched."""
    server = hub({"org/name": copy(tmp_path / "source")}, extra_names=(name,))
    before = sorted(tmp_path.rglob("*"))
    assert call("convert", "org/name").failed_with(3, "hostile file name", repr(name))
    assert downloads(server) == []
    assert sorted(tmp_path.rglob("*")) == before


ENDLESS = [(path, status) for path in (LISTING, "config.json", WEIGHTS) for status in (429, 503)]


@pytest.mark.parametrize(("path", "status"), ENDLESS)
def test_58_endless_failures(
    tmp_path: Path, call: Call, hub: Start, waits: list[float], path: str, status: int
) -> None:
    source = copy(tmp_path / "source")
    server = hub({"org/name": source}, (Fault(path, "GET", status),))
    assert call("convert", "org/name").failed_with(6, "'org/name'", f"(HTTP {status})")
    assert 0 < sum(waits) < 150
    assert len(server.requests) < 60


@pytest.mark.parametrize("fault", [Fault(WEIGHTS, short=5), Fault(WEIGHTS, cut=1000)])
def test_58_truncated_after_all_retries(
    tmp_path: Path, call: Call, hub: Start, fault: Fault
) -> None:
    source = copy(tmp_path / "source")
    server = hub({"org/name": source}, (fault,))
    assert call("convert", "org/name").failed_with(6, "'org/name'", "broke off", "try again")
    assert downloads(server).count(WEIGHTS) >= hub_calls.ATTEMPTS
    assert source.joinpath(WEIGHTS).stat().st_size not in {
        path.stat().st_size for path in cached_content(tmp_path)
    }


def test_58_a_slow_hub_is_waited_for(tmp_path: Path, call: Call, hub: Start) -> None:
    hub({"org/name": copy(tmp_path / "source")}, (Fault(WEIGHTS, delay=0.02),))
    found = call("convert", "org/name", "-t", "Q8_0", "-o", "x.gguf")
    assert (found.code, found.left) == (0, ["x.gguf"])
