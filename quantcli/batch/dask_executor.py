"""The Dask executor: child processes wherever Dask has workers that reach the same folders.

A worker needs the resources MEM (bytes) and CORES; a local cluster gets them from us. When a task
is cancelled, its worker killed or the batch gone, the child process ends, too: see `_on_worker`.
"""

import ipaddress
import logging
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import distributed
from distributed.scheduler import KilledWorker

from quantcli.batch.children import Family, Hear, Outcome, run_child
from quantcli.batch.executor import Executor, ExecutorLostError
from quantcli.checkpoint.rate import rate_among
from quantcli.errors import NetworkError, ResourceError, UsageError

WAIT_FOR_WORKERS = 60.0  # seconds
LOOK_EVERY = 0.5  # seconds, whether a task is still wanted
QUEUED = 2  # submitted for each job that can run: the scheduler need not wait for us


class Dask(Executor):
    """Orders as Dask tasks, on the cluster at `address` or on one of this machine's own."""

    def __init__(
        self, address: str | None, cores: int, memory: int, environment: dict[str, str]
    ) -> None:
        """Connect, or start a cluster of `cores` and `memory` bytes.

        Raises:
            UsageError: an address that is not this machine's, without TLS; workers without MEM
                and CORES.
            NetworkError: no scheduler, or no workers.
        """
        _silence()
        self._cluster: Any = None
        if address is None:
            self._cluster = _local_cluster(cores, memory)
            address = self._cluster.scheduler_address
        self._client = _connect(address)
        self.cores, self.memory, together, machines = _resources(self._client)
        self.slots = QUEUED * together
        # Planning is over, which the driver did with the whole rate.
        self._environment = rate_among(environment, machines)
        self._topic = f"quantcli-{uuid.uuid4().hex}"
        self._hearers: dict[str, Hear] = {}
        self._client.subscribe_topic(self._topic, self._hear)
        self._futures: set[Any] = set()

    def submit(self, line: str, memory: int, cores: int, hear: Hear) -> Future[Outcome]:
        """Run an order on a worker that has so much memory and so many cores free."""
        number = uuid.uuid4().hex
        self._hearers[number] = hear
        task = self._client.submit(
            _on_worker,
            line,
            self._topic,
            number,
            self._environment,
            key=f"quantcli-{number}",
            resources={"MEM": min(memory, self.memory), "CORES": min(cores, self.cores)},
        )
        self._futures.add(task)
        outcome: Future[Outcome] = Future()

        def done(task: Any) -> None:
            self._futures.discard(task)
            self._hearers.pop(number, None)
            _settle(outcome, task)

        task.add_done_callback(done)
        return outcome

    def stop(self) -> None:
        """Cancel what is running; workers end its children."""
        with suppress(Exception):  # a lost scheduler has cancelled them already
            self._client.cancel(list(self._futures), force=True)

    def close(self) -> None:
        """Leave the cluster, or end our own."""
        with suppress(Exception):  # a lost scheduler cannot be told that we go
            self._client.close(timeout=5)
        if self._cluster is not None:
            self._cluster.close(timeout=20)

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        _, message = event
        hear = self._hearers.get(message.pop("task", ""))
        if hear is not None:
            hear(message)


def _on_worker(line: str, topic: str, number: str, environment: dict[str, str]) -> Outcome:
    """In a worker: run the order in a child, as long as the scheduler wants its outcome."""
    worker = distributed.get_worker()
    key, family = worker.get_current_task(), Family()

    def hear(event: dict[str, Any]) -> None:
        worker.log_event(topic, {"task": number, **event})

    def cancelled() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    with _watched(cancelled, family.end):
        return run_child(line, hear, family, environment)


@contextmanager
def _watched(happened: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Inside the block, do `act` once `happened`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY):
            if happened():
                act()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _settle(outcome: Future[Outcome], task: Any) -> None:
    """Hand a Dask future's end over."""
    if task.status == "finished":
        with suppress(Exception):
            outcome.set_result(task.result(timeout=30))
            return
    error = task.exception(timeout=30) if task.status == "error" else None
    if isinstance(error, KilledWorker):
        outcome.set_exception(ResourceError("every worker that ran it died, for want of memory?"))
    elif error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_exception(
            ExecutorLostError(
                "the Dask scheduler is gone; run the batch again: what is finished stays finished"
            )
        )


def _silence() -> None:
    """We tell what matters; each of Dask's loggers has a level of its own."""
    for name in [*logging.root.manager.loggerDict]:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _local_cluster(cores: int, memory: int) -> Any:
    return distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=cores,
        processes=True,
        memory_limit=0,  # jobs are admitted by planned memory
        resources={"MEM": memory, "CORES": cores},
        dashboard_address=None,
        host="127.0.0.1",
        silence_logs=logging.CRITICAL,
    )


def _connect(address: str) -> Any:
    security = distributed.Security(require_encryption=address.startswith("tls://"))
    try:
        client = distributed.Client(address, security=security, set_as_default=False)
        client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS)
    except (OSError, TimeoutError) as error:
        raise NetworkError(
            f"--scheduler {address}: no answer, or no workers within {WAIT_FOR_WORKERS:.0f} s "
            f"({type(error).__name__})"
        ) from None
    return client


def check_address(address: str) -> None:
    """Whoever can talk to a scheduler can run code on its workers: only this machine, or TLS.

    Raises:
        UsageError: another machine without TLS, TLS without certificates.
        NetworkError: a name that nobody knows.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname or not parts.port:
        raise UsageError(f"--scheduler {address!r} is not like tls://host:8786")
    if parts.scheme == "tls":
        ours: Any = distributed.Security()
        if not (ours.tls_ca_file and ours.tls_client_cert and ours.tls_client_key):
            raise UsageError(
                f"--scheduler {address}: TLS needs a certificate; set "
                "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, and CLIENT__CERT and CLIENT__KEY likewise"
            )
        return
    try:
        found = {info[4][0] for info in socket.getaddrinfo(parts.hostname, parts.port)}
    except OSError as error:
        raise NetworkError(f"--scheduler {address}: {error.strerror}") from None
    if not all(ipaddress.ip_address(str(each).split("%")[0]).is_loopback for each in found):
        raise UsageError(
            f"--scheduler {address}: without TLS only on this machine; start the scheduler with "
            "--tls-cert, --tls-key and --tls-ca-file, and write tls://"
        )


def _resources(client: Any) -> tuple[int, int, int, int]:
    """Most cores and memory of one worker; the cores of all, and on how many machines they are."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    able = [worker for worker in workers if {"MEM", "CORES"} <= {*worker["resources"]}]
    if not able:
        raise UsageError(
            "the Dask workers name no resources; start them with "
            "--resources 'MEM=64e9 CORES=16' (bytes and cores for quantcli)"
        )
    cores = [int(each["resources"]["CORES"]) for each in able]
    memory = int(max(each["resources"]["MEM"] for each in able))
    return max(cores), memory, sum(cores), len({each["host"] for each in able})
