"""`quantcli batch` as a user runs it: finished work stays, failures stay apart, nothing is torn."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DEMO, Cli
from crashes import environment, survivors
from zoo import Zoo, clone, jobs_of, killing_writers_of, make_zoo, wait_until_gone

from quantcli.calibration.text import read_text

NAMES = {"llama", "qwen3", "gemma2"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A zoo that was converted without any trouble."""
    zoo = make_zoo(tmp_path_factory.mktemp("finished") / "zoo")
    ran = zoo.run()
    assert (ran.code, ran.errors) == (0, []), ran.err
    return zoo


@pytest.fixture
def zoo(finished: Zoo, tmp_path: Path) -> Zoo:
    """The same zoo, with nothing done yet."""
    return clone(finished, tmp_path / "zoo")


def test_files_are_those_of_convert(finished: Zoo, cli: Cli) -> None:
    done = cli("convert", finished.folder / "qwen3", "-t", "Q4_0,Q8_0", "-o", "{type}.gguf")
    assert done.returncode == 0, done.stderr
    ours = finished.digests()
    assert len(ours) == 6
    for kind in ("Q4_0", "Q8_0"):
        theirs = (cli.work / f"{kind}.gguf").read_bytes()
        assert theirs == (finished.shelf / f"qwen3/qwen3-{kind}.gguf").read_bytes()


def test_the_summary_says_what_is_on_the_shelf(finished: Zoo) -> None:
    summary = finished.summary()
    assert summary["totals"] | {"seconds": 0} == {
        "jobs": 3,
        "done": 3,
        "failed": 0,
        "skipped": 0,
        "outputs": 6,
        "size_bytes": sum(path.stat().st_size for path in finished.shelf.rglob("*.gguf")),
        "seconds": 0,
    }
    told = {o["path"]: o["sha256"] for job in summary["jobs"] for o in job["outputs"]}
    assert told == finished.digests()
    for job in summary["jobs"]:
        (report,) = job["reports"]
        tensors = json.loads((finished.shelf / report).read_text())["outputs"][0]["tensors"]
        assert len(tensors) > 10
    assert str(finished.folder) not in (finished.shelf / "summary.json").read_text()


def test_a_finished_batch_does_nothing_again(finished: Zoo) -> None:
    begun, files = finished.begun(), finished.digests()
    ran = finished.run("--json")
    assert ran.code == 0
    assert json.loads(ran.out)["totals"]["done"] == 3
    assert (finished.begun(), finished.digests()) == (begun, files)


@pytest.mark.slow
def test_only_what_is_missing_or_damaged_is_made_again(finished: Zoo, zoo: Zoo) -> None:
    assert zoo.run().code == 0
    assert zoo.digests() == finished.digests()
    (zoo.shelf / "llama/llama-Q4_0.gguf").unlink()
    with (zoo.shelf / "gemma2/gemma2-Q8_0.gguf").open("r+b") as file:
        file.write(b"JUNK")
    assert zoo.run().code == 0
    assert zoo.digests() == finished.digests()
    assert sorted(zoo.begun()[3:]) == ["./gemma2 rtn", "./llama rtn"]


def test_a_broken_model_among_good_ones(zoo: Zoo, finished: Zoo) -> None:
    whole = (zoo.folder / "llama/model.safetensors").read_bytes()
    zoo.damage("llama")
    ran = zoo.run()
    assert ran.code == 10
    assert len(ran.errors) == 1
    assert "./llama rtn" in ran.errors[0]
    assert "model.safetensors" in ran.errors[0]
    assert "(exit 3)" in ran.errors[0]
    assert zoo.statuses() == {"llama": ("failed", 3), "qwen3": ("done", 0), "gemma2": ("done", 0)}
    assert not (zoo.shelf / "llama").exists()
    count = len(zoo.begun())
    again = zoo.run()
    assert (again.code, again.errors) == (10, ran.errors)
    assert zoo.run("--retry-failed").code == 10
    assert len(zoo.begun()) == count, "the plan fails: no attempt is made"
    (zoo.folder / "llama/model.safetensors").write_bytes(whole)
    assert zoo.run().code == 0, "another model, another key"
    assert zoo.digests() == finished.digests()


@pytest.mark.slow
def test_a_model_that_kills_its_process(zoo: Zoo, finished: Zoo) -> None:
    with killing_writers_of(zoo.shelf / "llama") as killed:
        ran = zoo.run()
    assert ran.code == 10
    assert len(killed) == 2, "once more with twice the memory"
    assert zoo.statuses() == {
        "llama": ("failed", 137),
        "qwen3": ("done", 0),
        "gemma2": ("done", 0),
    }
    assert "SIGKILL" in ran.errors[0]
    assert zoo.run().code == 0
    assert zoo.litter() == []
    assert zoo.digests() == finished.digests()


def test_an_output_that_was_there_before_stays(zoo: Zoo, finished: Zoo) -> None:
    precious = zoo.shelf / "llama/llama-Q8_0.gguf"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    ran = zoo.run()
    assert ran.code == 10
    assert zoo.statuses()["llama"] == ("failed", 9)
    assert "--force" in ran.errors[0]
    assert precious.read_text() == "precious"
    assert zoo.run("--force").code == 0
    assert zoo.digests() == finished.digests()


@pytest.mark.slow
def test_fail_fast(zoo: Zoo) -> None:
    zoo.damage("llama")
    ran = zoo.run("--fail-fast", "--threads", "1")
    assert ran.code == 10
    assert zoo.statuses()["llama"] == ("failed", 3)
    assert zoo.summary()["totals"]["skipped"] >= 1
    assert any("not run" in line for line in ran.errors)
    assert zoo.litter() == []


def test_only(zoo: Zoo) -> None:
    assert zoo.run("--only", "*qwen3*").code == 0
    assert {path.split("/")[0] for path in zoo.digests()} == {"qwen3"}
    ran = zoo.run("--only", "nothing*")
    assert (ran.code, len(ran.errors)) == (2, 1)


@pytest.mark.slow
def test_shards_make_the_same_shelf(zoo: Zoo, finished: Zoo) -> None:
    parts = [zoo.start("--shard", f"{i}/2") for i in (1, 2)]
    for part in parts:
        part.communicate(timeout=120)
        assert part.returncode == 0
    counts = [zoo.summary(f"summary-{i}-of-2.json")["totals"]["jobs"] for i in (1, 2)]
    assert sorted(counts) == [1, 2]
    assert zoo.digests() == finished.digests()
    whole = zoo.run("--json")
    assert whole.code == 0
    assert json.loads(whole.out)["totals"]["done"] == 3
    assert not (zoo.shelf / "ledger.jsonl").read_text(), "nothing was left to do"


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b"])
def test_shards_that_are_none(zoo: Zoo, shard: str) -> None:
    ran = zoo.run("--shard", shard)
    assert (ran.code, len(ran.errors)) == (2, 1)
    assert not zoo.shelf.exists()


def test_a_gate_judges_what_was_measured(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    (tmp_path / "text.txt").write_text(read_text("builtin").content[:6000])
    text = f'[[models]]\nsource = "{DEMO}"\ntypes = ["Q4_0", "Q8_0"]\nevaluate = "text.txt"\n'
    text += "gate = { max_kld = %s }\n"
    (tmp_path / "zoo.toml").write_text(text % "0.00001")
    ran = zoo.run()
    assert ran.code == 10
    assert "demo-Q4_0.gguf: mean KL divergence 0.0" in ran.errors[0]
    assert "(exit 8)" in ran.errors[0]
    (job,) = zoo.summary()["jobs"]
    assert [output["quality"]["kld_mean"] > 0.00001 for output in job["outputs"]] == [True, True]
    files, begun = zoo.digests(), zoo.begun()
    (tmp_path / "zoo.toml").write_text(text % "0.5")
    assert zoo.run().code == 0, "the same files, another judgement"
    assert (zoo.digests(), zoo.begun()) == (files, begun)


def test_a_file_that_will_be_too_large_is_not_made(zoo: Zoo) -> None:
    manifest = zoo.folder / "zoo.toml"
    manifest.write_text(
        manifest.read_text().replace("[[models]]", '[[models]]\ngate = { max_size = "1MB" }')
    )
    ran = zoo.run()
    assert ran.code == 10
    assert set(zoo.statuses().values()) == {("failed", 8)}
    assert all("Q8_0.gguf: " in line and "over max_size" in line for line in ran.errors)
    assert (zoo.digests(), zoo.begun()) == ({}, [])


def test_dry_run_knows_every_byte_and_writes_none(zoo: Zoo, finished: Zoo) -> None:
    ran = zoo.run("--dry-run", "--json")
    assert ran.code == 0
    assert not zoo.shelf.exists()
    document = json.loads(ran.out)
    sizes = {o["path"]: o["size_bytes"] for job in document["jobs"] for o in job["outputs"]}
    assert sizes == {name: (finished.shelf / name).stat().st_size for name in finished.digests()}
    assert document["totals"]["output_bytes"] == sum(sizes.values())
    assert document["totals"]["download_bytes"] == 0
    assert all(
        job["peak_memory_bytes"] > 50 << 20 and job["seconds"] > 0 for job in document["jobs"]
    )
    shown = zoo.run("--dry-run")
    assert "3 jobs" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_more_memory_than_allowed(zoo: Zoo) -> None:
    ran = zoo.run("--max-memory", "20MB")
    assert ran.code == 10
    assert set(zoo.statuses().values()) == {("failed", 7)}
    assert all("20000000" in line for line in ran.errors)
    assert zoo.digests() == {}


def test_too_little_disk_is_known_before_anything_starts(zoo: Zoo, tmp_path: Path) -> None:
    zoo.shelf.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(zoo.shelf)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        ran = zoo.run()
        assert (ran.code, len(ran.errors)) == (7, 1)
        assert "the batch needs" in ran.errors[0]
        assert zoo.begun() == []
    finally:
        subprocess.run(["umount", str(zoo.shelf)], check=True)


def test_two_batches_on_one_shelf(zoo: Zoo) -> None:
    first = zoo.start()
    while not (zoo.shelf / "ledger.jsonl").exists():
        time.sleep(0.01)
    ran = zoo.run()
    assert (ran.code, len(ran.errors)) == (9, 1)
    first.communicate(timeout=120)
    assert first.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_batch_goes_on_later(
    zoo: Zoo, finished: Zoo, number: signal.Signals, code: int
) -> None:
    process = zoo.start()
    while not jobs_of(zoo) or not zoo.shelf.exists():
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    wait_until_gone(zoo)
    assert zoo.litter() == []
    assert zoo.run().code == 0
    assert zoo.digests() == finished.digests()


def killed_at_random(zoo: Zoo, times: int, longest: float = 3.0) -> int:
    """Kill the driver so many times, run by run; how many runs did not end before."""
    draw, deaths = random.Random(times), 0
    for _ in range(times):
        process = zoo.start()
        try:
            process.communicate(timeout=draw.uniform(0.1, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            deaths += 1
            wait_until_gone(zoo)
        for path in zoo.digests():
            assert not Path(path).name.startswith(".")
    return deaths


@pytest.mark.slow
def test_a_killed_driver_loses_nothing(zoo: Zoo, finished: Zoo) -> None:
    wanted = finished.digests()
    assert killed_at_random(zoo, 40) >= 1
    assert set(zoo.digests().items()) <= set(wanted.items()), "whole or absent"
    assert zoo.run().code == 0
    assert zoo.digests() == wanted
    assert zoo.litter() == []


def run_job(text: str, mark: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantcli", "run-job"],
        input=text,
        env=environment(mark),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"action": "explode"}', '{"action": "convert"}'])
def test_a_job_document_that_is_none(text: str) -> None:
    done = run_job(text + "\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: job document: ")
    assert done.stderr.count("\n") == 1


def test_a_job_ends_when_nobody_waits_for_it(tmp_path: Path, demo: Path) -> None:
    job = {"source": str(demo), "types": ["Q2_K"], "output": str(tmp_path / "x.gguf")}
    job |= {"method": "gptq", "threads": 1}
    done = run_job(json.dumps({"action": "convert", "job": job}) + "\n", str(tmp_path))
    assert done.returncode == 143
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".gguf")] == []
    assert survivors(str(tmp_path)) == []
