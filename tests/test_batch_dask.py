"""Batches under Dask: the same files as the local executor's, whoever is killed meanwhile."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from crashes import environment
from zoo import Zoo, clone, jobs_of, make_zoo, wait_until_gone

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A larger zoo, converted by the local executor."""
    zoo = make_zoo(tmp_path_factory.mktemp("finished") / "zoo", copies=4)
    ran = zoo.run()
    assert ran.code == 0, ran.err
    return zoo


@pytest.fixture
def zoo(finished: Zoo, tmp_path: Path) -> Zoo:
    return clone(finished, tmp_path / "zoo")


class Cluster:
    """A scheduler and workers as processes of their own, on this machine."""

    def __init__(self, folder: Path, zoo: Zoo | None) -> None:
        self.environment = environment(str(zoo.folder) if zoo else "")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.start_scheduler()

    def start_scheduler(self) -> None:
        arguments = ["--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"]
        self.scheduler = self._start("dask_scheduler", *arguments)

    def add_worker(self) -> None:
        resources = "MEM=4e9 CORES=1"
        options = [
            "--host",
            "127.0.0.1",
            "--nthreads",
            "1",
            "--memory-limit",
            "0",
            "--no-dashboard",
        ]
        options += ["--no-nanny", "--resources", resources, "--local-directory", str(self.folder)]
        self.workers.append(self._start("dask_worker", self.address, *options))

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@contextmanager
def cluster(folder: Path, zoo: Zoo | None = None, workers: int = 2) -> Iterator[Cluster]:
    made = Cluster(folder, zoo)
    try:
        for _ in range(workers):
            made.add_worker()
        yield made
    finally:
        made.close()


def test_a_cluster_of_its_own_makes_the_same_files(zoo: Zoo, finished: Zoo) -> None:
    zoo.damage("qwen31")
    ran = zoo.run("--executor", "dask")
    assert ran.code == 10, ran.err
    wanted = {name: d for name, d in finished.digests().items() if not name.startswith("qwen31/")}
    assert zoo.digests() == wanted
    assert zoo.statuses()["qwen31"] == ("failed", 3)
    assert zoo.litter() == []


def test_killed_workers_are_replaced(zoo: Zoo, finished: Zoo, tmp_path: Path) -> None:
    draw = random.Random(3)
    with cluster(tmp_path, zoo) as found:
        process = zoo.start("--executor", "dask", "--scheduler", found.address)
        deaths = 0
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=draw.uniform(1.5, 3.5))
                break
            victim = draw.randrange(len(found.workers))
            found.workers[victim].kill()
            found.workers[victim].wait()
            del found.workers[victim]
            found.add_worker()
            deaths += 1
        _, err = process.communicate(timeout=120)
    assert process.returncode in (0, 10), err
    assert deaths >= 1
    assert set(zoo.digests().items()) <= set(finished.digests().items())
    assert zoo.run().code == 0
    assert zoo.digests() == finished.digests()
    assert zoo.litter() == []


@pytest.mark.parametrize("who", ["scheduler", "driver"])
def test_whoever_is_killed_the_manifest_goes_on(
    zoo: Zoo, finished: Zoo, tmp_path: Path, who: str
) -> None:
    draw = random.Random(who)
    with cluster(tmp_path, zoo) as found:
        for _ in range(3):
            process = zoo.start("--executor", "dask", "--scheduler", found.address)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=draw.uniform(4.0, 9.0))
                break
            if who == "driver":
                process.kill()
            else:
                found.scheduler.kill()
                found.scheduler.wait()
            _, err = process.communicate(timeout=120)
            if who == "scheduler":
                assert process.returncode in (6, 10), err
                assert "Traceback" not in err
                found.start_scheduler()
                for worker in found.workers:
                    worker.kill()  # without their scheduler they end by themselves, in time
                    worker.wait()
                found.workers.clear()
                found.add_worker()
                found.add_worker()
            wait_until_gone(zoo, seconds=60)
        process = zoo.start("--executor", "dask", "--scheduler", found.address)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert zoo.digests() == finished.digests()
    assert zoo.litter() == []


def test_an_interrupted_batch_leaves_no_job_running(zoo: Zoo, tmp_path: Path) -> None:
    with cluster(tmp_path, zoo) as found:
        process = zoo.start("--executor", "dask", "--scheduler", found.address)
        while not jobs_of(zoo) or not (zoo.shelf / "ledger.jsonl").exists():
            time.sleep(0.05)
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        wait_until_gone(zoo, seconds=30)
    assert zoo.litter() == []


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--executor", "dask", "--scheduler", "tcp://192.0.2.7:8786"], 2, "without TLS"),
        (["--executor", "dask", "--scheduler", "tcp://0.0.0.0:8786"], 2, "without TLS"),
        (["--executor", "dask", "--scheduler", "nowhere"], 2, "tls://host:8786"),
        (["--executor", "dask", "--scheduler", "tcp://127.0.0.1:1"], 6, "no answer"),
        (["--executor", "cloud"], 2, "local and dask"),
        (["--scheduler", "tcp://127.0.0.1:1"], 2, "--executor dask"),
    ],
)
def test_schedulers_that_are_refused(zoo: Zoo, arguments: list[str], code: int, word: str) -> None:
    ran = zoo.run(*arguments, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="3s")
    assert (ran.code, len(ran.errors)) == (code, 1), ran.err
    assert word in ran.errors[0]
    assert zoo.digests() == {}


def test_workers_without_resources_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    with cluster(tmp_path, workers=0) as found:
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        found.workers.append(found._start("dask_worker", found.address, *options))
        ran = zoo.run("--executor", "dask", "--scheduler", found.address)
    assert (ran.code, len(ran.errors)) == (2, 1), ran.err
    assert "--resources 'MEM=" in ran.errors[0]


def certificate(folder: Path) -> dict[str, str]:
    """Settings of Dask for TLS with a certificate that signs itself."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except OSError:
        pytest.skip("openssl makes the certificate")
    tls = "DASK_DISTRIBUTED__COMM__TLS__"
    settings = {f"{tls}CA_FILE": str(folder / "cert.pem")}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"{tls}{role}__KEY"] = str(folder / "key.pem")
        settings[f"{tls}{role}__CERT"] = str(folder / "cert.pem")
    return settings


def test_tls(zoo: Zoo, finished: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in certificate(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Cluster, "start_scheduler", lambda self: start_tls_scheduler(self))
    with cluster(tmp_path, zoo) as found:
        ran = zoo.run("--executor", "dask", "--scheduler", found.address)
        assert ran.code == 0, ran.err
        for name in [name for name in os.environ if name.startswith("DASK_DISTRIBUTED__COMM")]:
            monkeypatch.delenv(name)
        refused = zoo.run("--executor", "dask", "--scheduler", found.address, "--force")
        assert (refused.code, len(refused.errors)) == (2, 1), refused.err
        assert "certificate" in refused.errors[0]
    assert zoo.digests() == finished.digests()


def start_tls_scheduler(made: Cluster) -> None:
    made.address = f"tls://127.0.0.1:{made.port}"
    arguments = ["--host", made.address, "--protocol", "tls", "--no-dashboard"]
    made.scheduler = made._start("dask_scheduler", *arguments)
