"""configs/cluster: shell scripts and manifests of Kubernetes, run as far as one machine can.

What a cluster would set (SLURM_*, JOB_COMPLETION_INDEX) is set here; the arrays and the merge are
real batches. test_batch_dask.py has the real thing for Dask.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from example_shell import CONFIGS, run_shell, shell_environment
from zoo import Zoo, clone, make_zoo

from quantcli.errors import BatchError, NetworkError, OutputExistsError, ResourceError, UsageError
from quantcli.planning.ram import parse_size

CLUSTER = CONFIGS / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
# Fields of batch/v1 Job in the API reference of Kubernetes 1.29, as far as one may want them here.
JOB_SPEC = {"completionMode", "completions", "parallelism", "backoffLimit", "template"}
JOB_SPEC |= {"backoffLimitPerIndex", "maxFailedIndexes", "podFailurePolicy"}
JOB_SPEC |= {"activeDeadlineSeconds", "ttlSecondsAfterFinished"}
CONTAINER = {"name", "image", "command", "args", "env", "resources", "volumeMounts"}
VOLUMES = {"configMap", "persistentVolumeClaim", "emptyDir"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_bash(path: Path) -> None:
    assert path.stat().st_mode & 0o100
    assert path.read_text().startswith("#!/bin/bash\n# ")
    assert run_shell(["bash", "-n", path], CLUSTER, {}).stdout == ""


def test_slurm_directives_stand_before_the_first_command() -> None:
    for path in CLUSTER.glob("slurm-*.sh"):
        head, _, body = path.read_text().partition("\nset -euo pipefail\n")
        assert "#SBATCH --cpus-per-task=" in head
        assert "#SBATCH --mem=" in head
        assert "#SBATCH" not in body
        assert ("#SBATCH --array=1-8" in head) == ("SLURM_ARRAY_TASK_ID" in body)


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The documents of a manifest, by kind."""
    found = list(yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text()))
    assert len({document["kind"] for document in found}) == len(found)
    return {document["kind"]: document for document in found}


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-merge"])
def test_kubernetes_jobs_keep_to_the_api(name: str) -> None:
    job = documents(name)["Job"]
    assert job["apiVersion"] == "batch/v1"
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert set(spec) <= JOB_SPEC
    assert set(pod) <= {"restartPolicy", "containers", "volumes"}
    assert pod["restartPolicy"] == "Never", "podFailurePolicy demands it"
    (container,) = pod["containers"]
    assert set(container) <= CONTAINER
    volumes = {volume["name"]: set(volume) - {"name"} for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert all(len(kinds) == 1 and kinds <= VOLUMES for kinds in volumes.values())
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert limits["memory"] == requests["memory"]
    assert parse_size(requests["memory"], "memory") >= 4 << 30
    env = {entry["name"]: entry for entry in container["env"]}
    told = [env[n]["valueFrom"]["resourceFieldRef"]["resource"] for n in ("CORES", "MEMORY_MIB")]
    assert told == ["requests.cpu", "requests.memory"]
    assert set(env["HF_TOKEN"]) == {"name", "valueFrom"}, "never in the manifest"
    assert "secretKeyRef" in env["HF_TOKEN"]["valueFrom"]


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-merge"])
def test_kubernetes_repeats_what_is_worth_it(name: str) -> None:
    spec = documents(name)["Job"]["spec"]
    action: dict[int, str] = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("Ignore", "FailJob", "FailIndex", "Count")
        assert len(rule.keys() & {"onExitCodes", "onPodConditions"}) == 1
        if on := rule.get("onExitCodes"):
            assert (on["containerName"], on["operator"]) == ("quantcli", "In")
            assert on["values"] == sorted(set(on["values"]))
            action |= dict.fromkeys(on["values"], rule["action"])
    assert action[UsageError.exit_code] == "FailJob"
    of_parts = "backoffLimitPerIndex" in spec
    assert action[BatchError.exit_code] == ("FailIndex" if of_parts else "FailJob")
    for error in (NetworkError, ResourceError, OutputExistsError):
        assert error.exit_code not in action
    assert of_parts == (spec.get("completionMode") == "Indexed")


def test_kubernetes_parts() -> None:
    spec = documents("kubernetes")["Job"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (parts,) = [entry["value"] for entry in container["env"] if entry["name"] == "PARTS"]
    assert parts == str(spec["completions"]), "one string, as Kubernetes wants it"
    (claim,) = [v["persistentVolumeClaim"] for v in volumes(spec) if "persistentVolumeClaim" in v]
    storage = documents("kubernetes")["PersistentVolumeClaim"]
    assert claim["claimName"] == storage["metadata"]["name"]
    assert storage["spec"]["accessModes"] == ["ReadWriteMany"]


def volumes(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["template"]["spec"]["volumes"]


def expanded(text: str, environment: dict[str, str]) -> str:
    """As the kubelet does in `command` and `args`: $(NAME), where there is such a variable."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


def pod(name: str, zoo: Zoo, index: int | None, parts: int) -> subprocess.CompletedProcess[str]:
    """Run the container's command, its volumes being folders beside the zoo."""
    (container,) = documents(name)["Job"]["spec"]["template"]["spec"]["containers"]
    environment = shell_environment(zoo.folder) | {"CORES": "1", "MEMORY_MIB": "2048"}
    environment["PARTS"] = str(parts)
    if index is not None:
        environment["JOB_COMPLETION_INDEX"] = str(index)
    command = [*container["command"], *container["args"]]
    where = {"/zoo/zoo.toml": str(zoo.folder / "zoo.toml"), "/shared/shelf": str(zoo.shelf)}
    for old, new in where.items():
        command = [word.replace(old, new) for word in command]
    command = [expanded(word, environment) for word in command]
    return run_shell(command, zoo.folder, environment)


def by_kubernetes(zoo: Zoo) -> subprocess.CompletedProcess[str]:
    for index in range(2):
        assert pod("kubernetes", zoo, index, parts=2).returncode == 0
    return pod("kubernetes-merge", zoo, None, parts=2)


def by_slurm(zoo: Zoo) -> subprocess.CompletedProcess[str]:
    environment = shell_environment(zoo.folder)
    environment |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "2048"}
    for number in "12":
        mine = environment | {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "2"}
        script = ["bash", CLUSTER / "slurm-array.sh", "zoo.toml", "shelf"]
        assert run_shell(script, zoo.folder, mine).returncode == 0
    merge = ["bash", CLUSTER / "slurm-merge.sh", "zoo.toml", "shelf"]
    return run_shell(merge, zoo.folder, environment)


def by_parallel(zoo: Zoo) -> subprocess.CompletedProcess[str]:
    if shutil.which("parallel") is None:
        pytest.skip("GNU parallel is not installed")
    script = [CLUSTER / "gnu-parallel.sh", "zoo.toml", "shelf", "2"]
    return run_shell(script, zoo.folder, shell_environment(zoo.folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A zoo that one batch converted."""
    zoo = make_zoo(tmp_path_factory.mktemp("finished") / "zoo")
    assert zoo.run().code == 0
    return zoo


@pytest.mark.slow
@pytest.mark.parametrize("way", [by_slurm, by_kubernetes, by_parallel])
def test_arrays_make_the_same_shelf(
    way: Callable[[Zoo], subprocess.CompletedProcess[str]], finished: Zoo, tmp_path: Path
) -> None:
    zoo = clone(finished, tmp_path / "zoo")
    merged = way(zoo)
    assert merged.returncode == 0, merged.stdout
    assert zoo.digests() == finished.digests()
    assert {path.name for path in zoo.shelf.glob("ledger-*")} == {
        "ledger-1-of-2.jsonl",
        "ledger-2-of-2.jsonl",
    }
    assert zoo.begun() == [], "nothing was left for the merge"
    assert zoo.summary()["totals"]["done"] == 3


@pytest.mark.slow
def test_the_merge_tells_what_failed(finished: Zoo, tmp_path: Path) -> None:
    zoo = clone(finished, tmp_path / "zoo")
    zoo.damage("llama")
    codes = [pod("kubernetes", zoo, index, parts=2).returncode for index in range(2)]
    assert sorted(codes) == [0, BatchError.exit_code]
    merged = pod("kubernetes-merge", zoo, None, parts=2)
    assert merged.returncode == BatchError.exit_code, merged.stdout
    assert zoo.statuses() == {"llama": ("failed", 3), "qwen3": ("done", 0), "gemma2": ("done", 0)}
