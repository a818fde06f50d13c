"""A common rate of hub requests: the arithmetic, the file that processes share, the client."""

import fcntl
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import Cli
from hub_client import LISTING, Start, failure
from hub_server import Fault, HubServer
from test_hub_convert import environment

from quantcli.checkpoint import hub_calls, open_checkpoint, rate
from quantcli.checkpoint.rate import WINDOW, Bucket, SharedBucket
from quantcli.errors import NetworkError, UsageError

pytest_plugins = ["hub_fixtures"]


# --- arithmetic ----------------------------------------------------------------------------------


def most_in_a_window(times: list[float]) -> int:
    """The largest number of `times`, which ascend, that lie within WINDOW seconds."""
    most, first = 0, 0
    for last, at in enumerate(times):
        while times[first] < at - WINDOW:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("per_window", [1, 7, 500, 3000.5])
@pytest.mark.parametrize("mean_gap", [0.0, 0.5, 20.0])
def test_no_window_sees_more_than_rate_and_burst(per_window: float, mean_gap: float) -> None:
    draw = random.Random(7)
    bucket, now = Bucket(per_window), 1e5
    granted = []
    for _ in range(5000):
        now += draw.choice([0.0, 2 * mean_gap * draw.random(), 5 * mean_gap * draw.random()])
        bucket, wait = bucket.take(now)
        assert wait >= 0
        granted.append(now + wait)
    assert granted == sorted(granted)  # first come, first served
    assert most_in_a_window(granted) <= per_window + bucket.burst + 1e-6
    if mean_gap == 0:
        # Nothing is wasted: the burst, then one token per WINDOW / rate.
        spent = (granted[-1] - granted[0]) * per_window / WINDOW
        assert spent == pytest.approx(len(granted) - bucket.burst, abs=1)


def test_a_burst_is_free_after_a_pause() -> None:
    bucket, now = Bucket(200), 1e5
    for _ in range(3):
        waits = []
        for _ in range(12):
            bucket, wait = bucket.take(now)
            waits.append(wait)
        assert waits == pytest.approx([0.0] * 10 + [1.5, 3.0], abs=1e-6)
        now += WINDOW


def test_closing_empties_the_bucket_and_breaks_promises() -> None:
    bucket, now = Bucket(300), 1e5
    for _ in range(20):
        bucket, wait = bucket.take(now)
    promised = bucket
    assert 0 < wait < 60
    bucket = bucket.close(now, 60.0).close(now, 20.0)
    assert bucket.breaks(promised, now + wait)
    assert not bucket.breaks(bucket, now + wait)
    assert not bucket.breaks(promised, now + 60)
    assert bucket.take(now)[1] == pytest.approx(60)
    assert bucket.take(now + 60)[1] == 0
    assert bucket.take(now + 60)[0].take(now + 60)[1] == pytest.approx(1)


@pytest.mark.parametrize("jump", [-1e5, -8000.0, 8000.0, 1e9])
def test_a_clock_that_jumps_costs_one_token_at_most(jump: float) -> None:
    bucket, now = Bucket(100), 2e5
    for _ in range(50):
        bucket, _ = bucket.take(now)
    bucket, wait = bucket.checked(now + jump).take(now + jump)
    assert wait <= WINDOW / 100
    assert bucket.next > now + jump - WINDOW


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"x", b"\0" * 50, b"1", b"nan 0", b"0 nan", b"-5 0", b"0 1e300", b"inf inf", b"9" * 5000],
)
def test_broken_content_is_an_empty_bucket(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bucket"
    path.write_bytes(content)
    waits: list[float] = []
    for _ in range(3):
        SharedBucket(path, 300).take(waits.append)
    assert waits == pytest.approx([1, 2, 3], abs=0.5)
    assert len(path.read_text().split()) == 2


def _hammer(path: str, per_window: float, count: int, times: "multiprocessing.Queue") -> None:
    bucket = SharedBucket(Path(path), per_window)
    found = []
    for _ in range(count):
        bucket.take(time.sleep)
        found.append(time.monotonic())
    times.put(found)


def test_four_processes_keep_to_one_limit(tmp_path: Path) -> None:
    per_window, each = 6000, 85  # a burst of 300, then 20 a second
    context = multiprocessing.get_context("fork")
    times = context.Queue()
    arguments = (str(tmp_path / "bucket"), per_window, each, times)
    processes = [context.Process(target=_hammer, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    lists = [times.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    found = sorted(itertools.chain(*lists))
    burst = Bucket(per_window).burst
    for i, begin in enumerate(found):
        for j in range(i, len(found)):
            # Four may wake late, all at once.
            assert j - i + 1 <= burst + (found[j] - begin) * per_window / WINDOW + 4


HOLDER = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.write(fd, b"   12.")
print("held", flush=True)
time.sleep(600)
"""


def test_who_is_killed_with_the_lock_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "bucket"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waits: list[float] = []
        taker = threading.Thread(target=SharedBucket(path, 300).take, args=(waits.append,))
        taker.start()
        taker.join(0.2)
        assert taker.is_alive()
        holder.send_signal(signal.SIGKILL)
        taker.join(30)
        assert not taker.is_alive()
    assert waits == pytest.approx([1], abs=0.1)


@pytest.mark.parametrize(
    ("per_window", "path"), [("", "x"), ("9", ""), ("0", "x"), ("nan", "x"), ("many", "x")]
)
def test_settings_without_sense(
    per_window: str, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUANTCLI_HUB_RATE", per_window)
    monkeypatch.setenv("QUANTCLI_HUB_BUCKET", path and str(tmp_path / path))
    with pytest.raises(UsageError, match="QUANTCLI_HUB_RATE"):
        rate.shared_bucket()


# --- the client ----------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every request but the first has to wait, 15 s more each time: nobody really sleeps."""
    monkeypatch.setenv("QUANTCLI_HUB_RATE", "20")
    monkeypatch.setenv("QUANTCLI_HUB_BUCKET", str(tmp_path / "bucket"))
    return tmp_path / "bucket"


def test_every_request_takes_a_token(
    bucket: Path, hub: Start, model: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub({"org/name": model})
    open_checkpoint("org/name", weights=False)
    open_checkpoint("org/name")
    assert len(server.requests) > 5
    assert waits == pytest.approx([15 * i for i in range(1, len(server.requests))], abs=5)
    asked = len(server.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    open_checkpoint("org/name")
    assert len(waits) == asked - 1


def test_other_hosts_are_free(bucket: Path, hub: Start, model: Path, waits: list[float]) -> None:
    """The file comes from the CDN, to which the hub redirects."""
    hub({"org/name": model})
    with HubServer({"org/name": model}) as cdn:
        commit = cdn.find("org/name", "main").commit
        place = f"{cdn.url.replace('127.0.0.1', 'localhost')}/org/name/resolve/{commit}"
        fault = Fault("model.safetensors", "GET", 302, {"Location": f"{place}/model.safetensors"})
        server = hub({"org/name": model}, (fault,))
        open_checkpoint("org/name")
        assert [path.rpartition("/")[2] for _, path, _ in cdn.requests] == ["model.safetensors"]
    assert len(waits) == len(server.requests) - 1


def test_a_busy_hub_closes_the_bucket_for_all(
    bucket: Path, hub: Start, model: Path, waits: list[float]
) -> None:
    hub({"org/name": model}, (Fault(LISTING, status=429, headers={"Retry-After": "200"}, times=1),))
    open_checkpoint("org/name")
    assert 200 <= waits[0] < 202  # of the client that was told
    assert 195 < waits[1] <= 200  # of everybody's next request
    bucket.unlink()
    hub({"org/name": model}, (Fault(LISTING, status=429, headers={"Retry-After": "4000"}),))
    assert "come back then" in failure(NetworkError)
    others: list[float] = []
    SharedBucket(bucket, 20).take(others.append)
    assert others == pytest.approx([hub_calls.LONGEST_WAIT], abs=5)


def test_a_wait_ends_with_sigterm(tmp_path: Path, demo: Path) -> None:
    path = tmp_path / "bucket"
    SharedBucket(path, 20).close(290)
    before = path.read_text()
    with HubServer({"org/demo": demo}) as hub:
        settings = {"QUANTCLI_HUB_RATE": "20", "QUANTCLI_HUB_BUCKET": str(path)}
        process = subprocess.Popen(
            [sys.executable, "-m", "quantcli", "plan", "org/demo"],
            env=os.environ | environment(hub, tmp_path, **settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while path.read_text() == before:  # a token was promised
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        assert hub.requests == []


def test_a_conversion_with_a_bucket(cli: Cli, tmp_path: Path, demo: Path) -> None:
    shared = SharedBucket(tmp_path / "bucket", 30000)
    shared.close(0)
    with HubServer({"org/demo": demo}) as hub:
        settings = {"QUANTCLI_HUB_RATE": "30000", "QUANTCLI_HUB_BUCKET": str(tmp_path / "bucket")}
        before = float((tmp_path / "bucket").read_text().split()[0])
        places = environment(hub, tmp_path, **settings)
        done = cli("convert", "org/demo", "-o", "x.gguf", **places)
        assert done.returncode == 0, done.stderr
        after = float((tmp_path / "bucket").read_text().split()[0])
        # At least: what would overflow the bucket in a run of over 15 s counts as well.
        assert (after - before) * 30000 / WINDOW >= len(hub.requests) - 0.01


def test_who_waits_does_not_hold_the_file(tmp_path: Path) -> None:
    bucket = SharedBucket(tmp_path / "bucket", 20)
    looked = []

    def look(seconds: float) -> None:
        with (tmp_path / "bucket").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or an error
        looked.append(seconds)

    bucket.take(look)
    bucket.take(look)
    assert len(looked) == 1
