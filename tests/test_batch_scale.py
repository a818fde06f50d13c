"""What a batch of thousands of jobs on many machines needs, where a small one never gets."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from quantcli.batch.children import Outcome
from quantcli.batch.preflight import share
from quantcli.checkpoint.rate import rate_among, rate_environment
from quantcli.cli.dashboard import Dashboard


@pytest.mark.parametrize(
    ("seconds", "cores", "together", "expected"),
    [
        ([5], 8, 1, [8]),
        ([5, 5], 2, 2, [1, 1]),
        ([5, 5], 8, 2, [4, 4]),
        ([0.9, 0.6], 2, 2, [1, 1]),
        ([10, 1, 1, 1], 2, 2, [2, 1, 1, 1]),  # the first would run on one core when all have ended
        ([200] + [1] * 200, 16, 16, [8] + [1] * 200),
    ],
)
def test_a_job_longer_than_its_share_gets_more_cores(
    seconds: list[float], cores: int, together: int, expected: list[int]
) -> None:
    assert [share(each, sum(seconds), cores, together) for each in seconds] == expected


def test_machines_share_the_rate() -> None:
    environment = rate_environment(950)
    assert rate_among(environment, 2)["QUANTCLI_HUB_BUCKET"] == environment["QUANTCLI_HUB_BUCKET"]
    assert float(rate_among(environment, 100)["QUANTCLI_HUB_RATE"]) == 9.5
    assert float(rate_among(environment, 5000)["QUANTCLI_HUB_RATE"]) == 1


def test_machines_are_counted_not_workers() -> None:
    dask_executor = pytest.importorskip("quantcli.batch.dask_executor", exc_type=ImportError)
    given = {"MEM": 4e9, "CORES": 2.0}
    workers = {
        "tls://10.0.0.1:1": {"host": "10.0.0.1", "resources": given},
        "tls://10.0.0.1:2": {"host": "10.0.0.1", "resources": given | {"CORES": 8.0}},
        "tls://10.0.0.2:1": {"host": "10.0.0.2", "resources": given},
        "tls://10.0.0.3:1": {"host": "10.0.0.3", "resources": {}},
    }
    client = SimpleNamespace(scheduler_info=lambda n_workers: {"workers": workers})
    assert dask_executor._resources(client) == (8, 4_000_000_000, 12, 2)


def test_the_dashboard_shows_as_many_jobs_as_fit() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=24)
    board = Dashboard(console)
    board.begin(60, 0, 1.0)
    names = [f"job-{i}." for i in range(60)]
    hear = {}
    for name in names:
        board.started(name)
        hear[name] = board.hearer(name)

    def shown() -> list[str]:
        bars = [task.description.strip() for task in board._bars.tasks if task.visible]
        return [bar for bar in bars if bar.startswith("job-")]

    assert shown() == names[:20]
    board.ended(names[5], Outcome(0), ())
    assert shown() == [*names[:5], *names[6:21]]
    event = {"stage": "Encoding", "done": 1, "total": 2}
    hear[names[59]](event)  # has no bar
    board.ended(names[58], Outcome(0), ())
    assert shown() == [*names[:5], *names[6:21]]
    hear[names[20]](event)
    bar = next(task for task in board._bars.tasks if task.description.strip() == names[20])
    assert (bar.completed, bar.total) == (1, 2)
    for name in names[:5] + names[6:58]:
        board.ended(name, Outcome(0), ())
    assert shown() == [names[59]]
    board.finish()
