"""The simulation behind the capacity plan, against what can be worked out by hand."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import capacity_batch  # noqa: E402
from capacity_batch import simulate  # noqa: E402
from capacity_clock import Clock, Pipe  # noqa: E402
from capacity_site import HOUR, Site  # noqa: E402

from quantcli.checkpoint.rate import WINDOW  # noqa: E402

# Nothing fails and nothing but cores takes time.
FREE = Site(
    models=400,
    workers=4,
    cores=4,
    memory=1e18,
    link=1e30,
    port=1e30,
    storage=1e30,
    disk=1e30,
    rate=1e15,
    gptq=0.0,
    broken=0.0,
    refused=0.0,
    deaths=0.0,
)
MANY = {"models": 300, "workers": 50, "cores": 64}


@pytest.fixture(autouse=True)
def near_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity_batch, "HUB_SECONDS", 0.0)
    monkeypatch.setattr(capacity_batch, "PLAN_SECONDS", 0.0)


@pytest.mark.parametrize("gptq", [0.0, 0.5])
def test_with_a_free_network_cores_are_the_limit(gptq: float) -> None:
    found = simulate(replace(FREE, models=2000, gptq=gptq))
    assert found.order[0] == "cores"
    assert found.tally["wall"] == pytest.approx(found.tally["encoding"] / 16, rel=0.02)


def test_with_few_tokens_requests_are_the_limit() -> None:
    found = simulate(replace(FREE, rate=50, **MANY))
    assert found.order[0] == "hub tokens"
    assert found.tally["wall"] * HOUR == pytest.approx(
        found.tally["requests"] / 50 * WINDOW, rel=0.02
    )


def test_on_a_thin_link_bytes_are_the_limit() -> None:
    found = simulate(replace(FREE, link=1e8, **MANY))
    assert found.order[0] == "link"
    assert found.tally["wall"] * HOUR == pytest.approx(found.tally["sources"] / 1e8, rel=0.02)


def test_little_memory_lets_few_run_side_by_side() -> None:
    roomy = simulate(replace(FREE, gptq=1.0))
    tight = simulate(replace(FREE, gptq=1.0, memory=30e9, threads=2))
    assert tight.tally["line memory"] > 0 == roomy.tally["line memory"]
    assert tight.tally["wall"] > 1.2 * tight.alone["cores"]
    assert tight.tally["wall"] == pytest.approx(tight.alone["memory"], rel=0.4)
    assert tight.tally["too large"] > 0


@pytest.mark.parametrize("shards", [0, 4, 40])
def test_no_byte_and_no_model_is_lost_or_counted_twice(shards: int) -> None:
    site = replace(FREE, broken=0.1, refused=0.1, deaths=0.5, gptq=0.2, rate=1e5, shards=shards)
    found = simulate(replace(site, link=1e9, port=1e8, storage=1e9, disk=1e8))
    t = found.tally
    assert t["done"] + t["refused"] + t["failed"] == site.models
    assert t["failed"] == 0
    assert t["died"] > 0
    assert t["retried"] > 0
    assert t["fetched"] == pytest.approx(t["sources"])
    assert t["stored"] == pytest.approx(t["sources"] + t["output"])
    assert t["output"] == pytest.approx(t["sources"] / 16 * (4.85 + 5.70 + 8.50))
    assert all(abs(left) < 1 for left in t.on_disk.values())
    assert t["cores held"] == pytest.approx(
        t["encoding"] + t["hub"] + t["network"] + t["storage"], rel=1e-6
    )
    assert t["wall"] > max(found.alone.values()) - 1e-9


def test_the_same_seed_gives_the_same_numbers() -> None:
    site = replace(FREE, broken=0.3, deaths=1.0, rate=1e4, link=1e9)
    assert simulate(site) == simulate(site)
    assert simulate(site) != simulate(replace(site, seed=2))


def test_transfers_share_what_there_is() -> None:
    clock = Clock()
    pipe = Pipe(clock, total=10, each=8)
    ends: dict[str, float] = {}

    def transfer(name: str, worker: int, size: float) -> None:
        pipe.move(worker, size)(lambda: ends.update({name: clock.now}))

    transfer("a", 1, 100)
    transfer("b", 2, 50)  # 5 each until 10
    clock.at(10, lambda: transfer("c", 1, 8))  # behind a, which has 50 left, at 8
    clock.run()
    assert ends == pytest.approx({"b": 10, "a": 16.25, "c": 17.25})
    assert pipe.moved == 158


def test_the_script_prints_what_breaks_first() -> None:
    command = [sys.executable, str(SCRIPTS / "capacity"), "--models", "60", "--workers", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "planning, before anything runs" in done.stdout
    assert "hours that each would take alone: the largest is what breaks first" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1000 shards, rate 9500")
