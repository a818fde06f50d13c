"""What `scripts/capacity` is asked: the site, and the zoo drawn for it."""

import random
from dataclasses import dataclass

from quantcli.batch.preflight import COMPENSATE_SECONDS, ROUND_SECONDS, START_SECONDS

# Billions of weights, share of all models, weight files; GB of memory that gptq plans for one type
# and one thread, and for each further type and thread (scripts/measure_job --sections memory).
MIX = (
    (0.5, 0.20, 1, 3.2, 1.08, 0.11),
    (1.5, 0.20, 1, 6.6, 2.02, 0.26),
    (3.0, 0.15, 2, 8.7, 2.53, 0.36),
    (8.0, 0.30, 4, 12.1, 3.02, 0.57),
    (14.0, 0.08, 8, 12.5, 3.22, 0.55),
    (32.0, 0.04, 17, 26.3, 3.79, 1.65),
    (70.0, 0.03, 30, 30.7, 4.83, 1.79),
)
RTN_MEMORY = (0.11, 0.0, 0.02)  # of any size
SIDE_FILES = 4
BITS = (4.85, 5.70, 8.50, 3.91, 6.56, 4.55)  # per weight: Q4_K_M Q5_K_M Q8_0 Q3_K_M Q6_K Q4_0
PLAN_SECONDS, HUB_SECONDS = 0.02, 0.1  # of one more plan; of one answer of the hub
HOUR = 3600.0


@dataclass(frozen=True)
class Site:
    """The question. Bytes, bytes per second, requests per five minutes, deaths per worker hour."""

    models: int = 10_000
    workers: int = 100
    cores: int = 16
    memory: float = 64e9
    link: float = 10e9 / 8  # of all workers together
    port: float = 10e9 / 8  # of one worker
    storage: float = 10e9  # of all workers together
    disk: float = 1e9  # of one worker
    rate: float = 950
    gptq: float = 0.05
    types: int = 3
    threads: int = 1  # of gptq jobs, as the manifest says; 1: the batch decides
    shards: int = 0  # 0: one driver for all workers; else so many, each on one worker
    broken: float = 0.02  # share of downloads
    refused: float = 0.02  # share of models: gated, of an unknown family
    deaths: float = 1e-3
    seed: int = 1


@dataclass
class Model:
    """A conversion; `left` are the seconds of one core that are still to be worked."""

    weights: float
    files: int
    gptq: bool
    refused: bool
    source: float
    output: float
    seconds: float
    gigabytes: tuple[float, float]  # of memory: with one thread, for each more
    threads: int = 1
    attempt: int = 0
    worker: int = 0

    def __post_init__(self) -> None:
        self.left, self.to_fetch = self.seconds, self.source

    def memory(self, threads: int) -> float:
        """Bytes."""
        return 1e9 * (self.gigabytes[0] + (threads - 1) * self.gigabytes[1])


def draw(site: Site) -> list[Model]:
    """The zoo, drawn from MIX."""
    models = []
    for row in random.choices(MIX, [row[1] for row in MIX], k=site.models):
        weights, gptq = row[0] * 1e9, random.random() < site.gptq
        each = 2 * COMPENSATE_SECONDS if gptq else ROUND_SECONDS
        one, more_types, more_threads = row[3:] if gptq else RTN_MEMORY
        models.append(
            Model(
                weights,
                row[2],
                gptq,
                refused=random.random() < site.refused,
                source=2 * weights,  # BF16
                output=weights * sum(BITS[: site.types]) / 8,
                seconds=START_SECONDS + weights * site.types * each,
                gigabytes=(one + (site.types - 1) * more_types, more_threads),
            )
        )
    return models
