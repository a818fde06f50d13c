"""The child's side: it does what orders on stdin say, and answers on stdout.

Lines of JSON: `{"stage", "done", "total"}` while it works, `{"result"}` or `{"error", "exit_code"}`
at the end. Every executor uses this one way.
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import Any

from quantcli.batch.orders import Order, Publication, read_order
from quantcli.errors import explain
from quantcli.gguf_file.part_file import one_line
from quantcli.planning import make_plan
from quantcli.report import Report

SPEAK_EVERY = 0.25  # seconds


def serve() -> None:
    """Do what stdin asks for: any number of plans, or one other order, which ends with stdin.

    Raises:
        QuantcliError: when an order fails; plans that fail are answers.
    """
    for line in sys.stdin:
        order = read_order(line)
        if order.action == "plan":
            _answer_plan(order)
            continue
        _end_with_stdin()
        _say(result=_published(order) if isinstance(order, Publication) else _convert(order))
        return


def _answer_plan(order: Order) -> None:
    try:
        _say(result=_planned(order))
    except (Exception, MemoryError) as error:
        code, message = explain(error)
        _say(error=message, exit_code=code)


def _planned(order: Order) -> dict[str, Any]:
    plan = make_plan(order.job, weights=False)
    return {
        "id": plan.checkpoint.id,
        "revision": plan.checkpoint.revision,
        "architecture": plan.architecture,
        "parameters": plan.parameters,
        "weights": plan.weights,
        "tokens": plan.tokens,
        "download_bytes": plan.checkpoint.missing_bytes,
        "outputs": [
            {"file_type": file.file_type.name, "size_bytes": file.size_bytes} for file in plan.files
        ],
        "memory": {
            n: replace(plan, job=replace(plan.job, threads=n)).peak_memory_bytes
            for n in range(1, order.cores + 1)
        },
        "warnings": plan.all_warnings,
    }


def _convert(order: Order) -> dict[str, Any]:
    from quantcli.pipeline import convert
    from quantcli.report.files import write_report

    for path in (order.job.output, *order.reports):
        with one_line(path, "create its folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
    report = convert(order.job, Spoken())
    for path in order.reports:
        write_report(report, path)
    return _facts(report)


def _published(order: Publication) -> dict[str, Any]:
    from quantcli.batch.publish import publish  # the hub's client, which few children need

    return publish(order)


def _facts(report: Report) -> dict[str, Any]:
    """The report without its tensors."""
    from quantcli.report.as_json import report_document

    document = report_document(report)
    for output in document["outputs"]:
        del output["tensors"]
    return document


class Spoken:
    """Progress as lines of JSON, a few per second."""

    def start(self, description: str, total_bytes: int) -> None:
        """A new stage begins."""
        self._stage, self._total, self._done, self._said = description, total_bytes, 0, 0.0
        self.advance(0)

    def advance(self, n: int) -> None:
        """n more bytes are done."""
        self._done += n
        if time.monotonic() - self._said >= SPEAK_EVERY:
            self._said = time.monotonic()
            _say(stage=self._stage, done=self._done, total=self._total)

    def finish(self) -> None:
        """The stage is over."""


def _say(**facts: Any) -> None:
    print(json.dumps(facts, separators=(",", ":")), flush=True)


def _end_with_stdin() -> None:
    """End this process, cleaned up, when the one that gave the order is gone."""

    def watch() -> None:
        while os.read(0, 1 << 12):  # not by sys.stdin, whose lock would be held at exit
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
