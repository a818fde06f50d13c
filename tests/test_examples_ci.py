"""configs/ci: a pipeline that converts in parts, keeps what it made, and fails on a missed gate."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from ci_runner import GitHub, GitLab, Runner
from conftest import DEMO
from example_shell import CONFIGS

from quantcli.errors import BatchError

SECRET = "hf_" + "0secret0" * 4
ZOO = """
[defaults]
types = ["Q4_K_M", "Q8_0"]
gate = { max_kld = 0.5 }
evaluate = "text.txt"
[[models]]
source = "./one"
[[models]]
source = "./two"
gate = { max_kld = %s }
"""


def workflow() -> dict[Any, Any]:
    return yaml.safe_load((CONFIGS / "ci/github-actions.yml").read_text())


def gitlab() -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / "ci/gitlab-ci.yml").read_text())


def test_github_workflow() -> None:
    document = workflow()
    assert set(document) == {"name", True, "permissions", "concurrency", "env", "jobs"}  # True: on
    assert document["permissions"] == {"contents": "read"}
    convert, judge = document["jobs"]["convert"], document["jobs"]["judge"]
    assert convert["strategy"]["fail-fast"] is False
    shards = convert["strategy"]["matrix"]["shard"]
    assert shards == list(range(1, len(shards) + 1))
    assert judge["needs"] == "convert"
    steps = [*convert["steps"], *judge["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    assert all("@v" in step["uses"] for step in steps if "uses" in step)
    kept = [step for step in steps if step.get("uses", "").startswith("actions/upload-artifact")]
    assert [step["if"] for step in kept] == ["always()", "always()"]
    # Values reach the shell by the environment: none becomes a part of a script, or of a log.
    assert not any("${{" in step.get("run", "") for step in steps)
    secrets = [step["name"] for step in steps if "secrets." in str(step)]
    assert secrets == ["Convert", "Judge"]
    assert "secrets." not in str(document["env"])


def test_gitlab_pipeline() -> None:
    document = gitlab()
    jobs = {name for name, value in document.items() if "script" in value}
    assert set(document) == jobs | {"stages", "default", "variables", "workflow"}
    assert [document[name]["stage"] for name in document["stages"]] == document["stages"]
    assert document["convert"]["allow_failure"] == {"exit_codes": [BatchError.exit_code]}
    assert document["judge"]["needs"] == ["convert"]
    assert "allow_failure" not in document["judge"]
    assert "HF_TOKEN" not in str(document), "a variable of the project"
    assert all(isinstance(line, str) for name in jobs for line in document[name]["script"])


@pytest.mark.parametrize("document", [workflow(), gitlab()], ids=["github", "gitlab"])
def test_quantcli_does_not_come_from_pypi(document: dict[Any, Any]) -> None:
    """There it is the name of another project, which would run with the token."""
    where = document.get("env") or document["variables"]
    assert where["QUANTCLI"].removeprefix("git+").startswith("https://")
    assert str(document).count("pip install") == str(document).count('pip install "$QUANTCLI"') == 2


@pytest.fixture(params=[GitHub, GitLab])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Runner:
    """A repository with two models, the second of which cannot meet its gate."""
    repository = tmp_path / "repository"
    for name in ("one", "two"):
        shutil.copytree(DEMO, repository / name)
    (repository / "text.txt").write_text((DEMO.parents[2] / "README.md").read_text()[:4000])
    (repository / "zoo.toml").write_text(ZOO % "1e-9")
    return request.param(tmp_path, SECRET)


@pytest.mark.slow
def test_pipelines(runner: Runner) -> None:
    codes = runner.pipeline()
    shelf = runner.work / "shelf"
    assert {code for name, code in codes.items() if name.startswith("convert")} == {0}
    assert [code for name, code in codes.items() if name.startswith("judge")] == [10]
    assert "is over max_kld" in runner.log
    names = {"one/one-Q4_K_M.gguf", "one/one-Q8_0.gguf", "two/two-Q4_K_M.gguf", "two/two-Q8_0.gguf"}
    last = list(runner.handed.values())[-1] / "shelf"
    assert {path.relative_to(last).as_posix() for path in last.rglob("*.gguf")} == names
    assert (last / "index.html").is_file()
    totals = json.loads((last / "summary.json").read_text())["totals"]
    assert (totals["done"], totals["failed"]) == (1, 1)

    # Another judgement of the same files: they come from the cache.
    (runner.folder / "repository/zoo.toml").write_text(ZOO % "0.5")
    before = {path.name: path.stat().st_mtime_ns for path in shelf.rglob("*.gguf")}
    codes = runner.pipeline()
    assert set(codes.values()) == {0}, runner.log
    assert {path.name: path.stat().st_mtime_ns for path in shelf.rglob("*.gguf")} == before

    assert SECRET not in runner.log
    for path in shelf.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
