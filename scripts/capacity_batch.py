"""A batch, simulated: read `Group._run` for what happens to a model."""

import math
import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from capacity_clock import Clock, Pipe, Process, Then, Wait
from capacity_site import HOUR, HUB_SECONDS, PLAN_SECONDS, SIDE_FILES, Model, Site, draw

from quantcli.batch.local import SHARE_OF_MEMORY
from quantcli.batch.preflight import share
from quantcli.batch.retries import NETWORK, retry
from quantcli.checkpoint.rate import WINDOW, Bucket


class Tally(defaultdict[str, float]):
    """What all groups come to: counts, bytes, core hours."""

    def __init__(self) -> None:
        super().__init__(float)
        self.on_disk: defaultdict[int, float] = defaultdict(
            float
        )  # bytes of sources in use, by worker

    def source(self, worker: int, size: float) -> None:
        """So many bytes more of sources on a worker's disk."""
        self.on_disk[worker] += size
        self["most"] = max(self["most"], self.on_disk[worker])


class Group:
    """Workers with one driver, one bucket and one line of models; plans all, then runs them."""

    def __init__(
        self,
        site: Site,
        clock: Clock,
        tally: Tally,
        pipes: tuple[Pipe, Pipe],
        workers: Sequence[int],
        then: Then,
    ) -> None:
        """`then` is called when all has ended."""
        self._site, self._clock, self._tally = site, clock, tally
        self._link, self._storage = pipes
        self._free = {worker: [site.cores, SHARE_OF_MEMORY * site.memory] for worker in workers}
        self._bucket = Bucket(site.rate / (site.shards or 1))
        self._line: deque[Model] = deque()
        self._since, self._lacks = 0.0, ""
        self._then = then

    def begin(self, models: list[Model]) -> None:
        """Plan them, by as many planners as cores."""
        planners = max(1, min(self._site.cores, len(models) // 4))
        self._models, self._open, self._planning = models, len(models), planners
        self._began = self._clock.now
        for start in range(planners):
            self._clock.go(self._plan(models[start::planners]))

    def _plan(self, models: list[Model]) -> Process:
        for model in models:
            yield self._ask(1 if model.refused else 1 + 2 * SIDE_FILES + model.files)
            yield self._clock.sleep(PLAN_SECONDS)
        self._planning -= 1
        if not self._planning:
            hours = (self._clock.now - self._began) / HOUR
            self._tally["planning"] = max(self._tally["planning"], hours)
            self._line.extend(self._admitted())
            self._end(len(self._models) - len(self._line))
            self._start_some()

    def _admitted(self) -> list[Model]:
        """Those that can be run, with threads by the batch's rule, the longest first."""
        cores, memory = self._site.cores, SHARE_OF_MEMORY * self._site.memory
        total, lanes = sum(m.seconds for m in self._models if not m.refused), len(self._models)
        admitted = []
        for model in self._models:
            together = int(min(cores, lanes, max(1, memory // model.memory(1))))
            model.threads = share(model.seconds, total, cores, together) if total else 1
            if model.gptq and self._site.threads > 1:
                model.threads = min(cores, self._site.threads)
            while model.threads > 1 and model.memory(model.threads) > memory:
                model.threads -= 1
            if model.refused or model.memory(1) > memory:
                self._tally["refused" if model.refused else "too large"] += 1
            else:
                admitted.append(model)
        return sorted(admitted, key=lambda model: -model.seconds / model.threads)

    def _ask(self, requests: int) -> Wait:
        self._tally["requests"] += requests
        wait = 0.0
        for _ in range(requests):
            self._bucket, wait = self._bucket.take(self._clock.now)
        return self._clock.sleep(wait + requests * HUB_SECONDS)

    def _start_some(self) -> None:
        """Give the next in line to the worker with most free cores; nobody passes it by."""
        now = self._clock.now
        if self._lacks:
            self._tally[f"line {self._lacks}"] += (now - self._since) / HOUR
        self._lacks, self._since = "", now
        while self._line and not self._lacks:
            model = self._line[0]
            wanted = (model.threads, model.memory(model.threads))
            idle = [w for w, free in self._free.items() if free[0] >= wanted[0]]
            fit = [w for w in idle if self._free[w][1] >= wanted[1]]
            if fit:
                worker = max(fit, key=lambda w: self._free[w])
                self._take(worker, wanted, 1)
                self._clock.go(self._run(self._line.popleft(), worker))
            else:
                self._lacks = "memory" if idle else "cores"

    def _end(self, models: int) -> None:
        """So many more have ended for good."""
        self._open -= models
        self._tally["wall"] = self._clock.now / HOUR
        if not self._open:
            self._then()

    def _take(self, worker: int, amounts: tuple[int, float], sign: int) -> None:
        free = self._free[worker]
        free[0], free[1] = free[0] - sign * amounts[0], free[1] - sign * amounts[1]
        self._tally["cores held"] -= sign * amounts[0] * self._clock.now / HOUR

    def _run(self, model: Model, worker: int) -> Process:
        """An attempt: `line` again if it fails, as the batch's policy has it."""
        model.attempt += 1
        held, began = (model.threads, model.memory(model.threads)), self._clock.now
        again: float | None = None
        self._tally.source(worker, model.source)
        yield self._ask(3 + 3 * model.files if model.to_fetch else 2 + model.files)
        self._tally["hub"] += (self._clock.now - began) * model.threads / HOUR
        breaks = model.to_fetch > 0 and random.random() < self._site.broken
        part = model.to_fetch / 2 if breaks else model.to_fetch
        asked = self._clock.now
        if part:
            yield self._link.move(worker, part)
        model.to_fetch -= part
        self._tally["network"] += (self._clock.now - asked) * model.threads / HOUR
        if breaks:
            policy = retry(NETWORK, model.attempt)
            again = policy.delay if policy else None
            self._tally["retried" if policy else "failed"] += 1
        else:
            life = random.expovariate(self._site.deaths / HOUR) if self._site.deaths else math.inf
            seconds = min(life, model.left / model.threads)
            yield self._clock.sleep(seconds)
            self._tally["encoding"] += seconds * model.threads / HOUR
            if seconds < life:
                asked = self._clock.now
                yield self._storage.move(worker, model.source + model.output)
                self._tally["storage"] += (self._clock.now - asked) * model.threads / HOUR
                self._tally["done"] += 1
                self._tally["output"] += model.output
            else:  # gptq goes on from its last block, rtn begins again
                model.left -= seconds * model.threads if model.gptq else 0.0
                model.attempt, again = model.attempt - 1, 0.0
                self._tally["died"] += 1
        self._take(worker, held, -1)
        self._tally.source(worker, -model.source)
        if again is None:
            self._end(1)
        else:
            self._clock.at(self._clock.now + again, lambda: self._again(model))
        self._start_some()

    def _again(self, model: Model) -> None:
        self._line.appendleft(model)
        self._start_some()


@dataclass(frozen=True)
class Result:
    """What was counted; `alone` are the hours that each resource would need by itself."""

    tally: Tally
    alone: dict[str, float]

    @property
    def order(self) -> list[str]:
        """What limits the batch, worst first."""
        return sorted(self.alone, key=lambda name: -self.alone[name])


def simulate(site: Site) -> Result:
    """Run the batch."""
    random.seed(site.seed)  # the product's retries draw from it, too
    models, clock, tally = draw(site), Clock(), Tally()
    link, storage = Pipe(clock, site.link, site.port), Pipe(clock, site.storage, site.disk)
    count = site.shards or 1
    waiting = deque(part for index in range(count) if (part := models[index::count]))

    def begin(workers: Sequence[int]) -> None:
        if waiting:
            group = Group(site, clock, tally, (link, storage), workers, lambda: begin(workers))
            group.begin(waiting.popleft())

    for workers in [[w] for w in range(site.workers)] if site.shards else [range(site.workers)]:
        begin(workers)
    clock.run()
    ran = [model for model in models if model.attempt]
    memory = sum(m.memory(m.threads) * m.seconds / m.threads for m in ran)
    alone = {
        "hub tokens": tally["requests"] * WINDOW / site.rate,
        "link": link.moved / site.link,
        "ports": link.moved / site.port / site.workers,
        "storage": storage.moved / site.storage,
        "cores": tally["encoding"] * HOUR / site.workers / site.cores,
        "memory": memory / (SHARE_OF_MEMORY * site.memory * site.workers),
        "longest job": max((model.seconds / model.threads for model in ran), default=0.0),
    }
    tally["fetched"], tally["stored"] = link.moved, storage.moved
    tally["sources"] = sum(model.source for model in ran)
    return Result(
        tally,
        {name: seconds / HOUR for name, seconds in alone.items()},
    )
