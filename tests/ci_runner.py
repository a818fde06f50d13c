"""GitHub and GitLab, as far as configs/ci goes: jobs in fresh checkouts, caches, artifacts.

Steps run by bash as the services run them. Every job gets the same path and a new copy of the
repository; what passes from one to the next does so only as a cache or an artifact.
"""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from example_shell import CONFIGS, run_shell, shell_environment


@dataclass
class Runner:
    """Runs jobs of the repository in `folder`/repository; `secret` is HF_TOKEN.

    `log` is all that was printed, `kept` and `handed` are caches and artifacts by their names.
    """

    folder: Path
    secret: str
    log: str = ""
    kept: dict[str, Path] = field(default_factory=dict)
    handed: dict[str, Path] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """The checkout."""
        return self.folder / "work"

    def check_out(self) -> None:
        """A new checkout; unlike git's, files keep their times."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.folder / "repository", self.work)

    def shell(self, lines: list[str], environment: dict[str, str]) -> int:
        """Run lines, until one fails."""
        self.folder.joinpath("script").write_text("\n".join(lines) + "\n")
        given = shell_environment(self.folder) | environment
        done = run_shell(["bash", "-e", self.folder / "script"], self.work, given)
        self.log += done.stdout
        return done.returncode

    def save(self, where: dict[str, Path], name: str, paths: list[str]) -> None:
        """Keep copies of paths of the checkout; a new one takes the place of an old one."""
        store = self.folder / f"store-{len(self.kept)}-{len(self.handed)}-{name}"
        for path in paths:
            if (self.work / path).exists():
                shutil.copytree(self.work / path, store / path, dirs_exist_ok=True)
        where.pop(name, None)  # the newest is the last
        where[name] = store

    def restore(self, store: Path) -> None:
        """Bring them back, over what is there."""
        if store.exists():
            shutil.copytree(store, self.work, dirs_exist_ok=True)


class GitHub(Runner):
    """Runs github-actions.yml."""

    runs = 0

    def pipeline(self) -> dict[str, int]:
        """Run the workflow; exit codes of the jobs."""
        document = yaml.safe_load((CONFIGS / "ci/github-actions.yml").read_text())
        self.runs += 1
        self.handed.clear()
        words = {"github.workspace": str(self.work), "github.run_id": str(self.runs)}
        words |= {"github.run_attempt": "1", "secrets.HF_TOKEN": self.secret}
        words["hashFiles('zoo.toml')"] = "0"  # of a cache that this runner has not
        codes = {}
        for name, job in document["jobs"].items():
            matrix = job.get("strategy", {}).get("matrix", {"shard": [0]})["shard"]
            for shard in matrix:
                mine = words | {"matrix.shard": str(shard), "strategy.job-total": str(len(matrix))}
                env = document["env"] | job.get("env", {})
                codes[f"{name} {shard}"] = self._job(env, job, mine)
        return codes

    def _job(self, env: dict[str, str], job: dict[str, Any], words: dict[str, str]) -> int:
        code = 0
        for step in job["steps"]:
            if code and step.get("if") != "always()":
                continue
            if "run" in step:
                given = {k: filled(v, words) for k, v in (env | step.get("env", {})).items()}
                code = self.shell([step["run"]], given) or code
            else:
                action = step["uses"].partition("@")[0]
                self._action(action, {k: filled(v, words) for k, v in step.get("with", {}).items()})
        return code

    def _action(self, action: str, given: dict[str, str]) -> None:
        if action == "actions/checkout":
            self.check_out()
        elif action == "actions/upload-artifact":
            self.save(self.handed, given["name"], [given["path"]])
        elif action == "actions/download-artifact":
            assert (given["pattern"], given["path"]) == ("shelf-*", "shelf")
            for name, store in self.handed.items():
                if name.startswith("shelf-"):
                    self.restore(store)
        elif action == "actions/cache/restore":
            found = [s for key, s in self.kept.items() if key.startswith(given["restore-keys"])]
            self.restore(found[-1] if found else self.folder / "nothing")
        elif action == "actions/cache/save":
            assert given["key"] not in self.kept, "GitHub's caches never change"
            self.save(self.kept, given["key"], [given["path"]])
        else:
            assert action in ("actions/setup-python", "actions/cache"), action


def filled(value: object, words: dict[str, str]) -> str:
    """With expressions filled in; one that is not known is a KeyError."""
    return re.sub(r"\$\{\{ (.+?) \}\}", lambda found: words[found[1]], str(value))


class GitLab(Runner):
    """Runs gitlab-ci.yml."""

    def pipeline(self) -> dict[str, int]:
        """Run the pipeline; exit codes of the jobs."""
        document = yaml.safe_load((CONFIGS / "ci/gitlab-ci.yml").read_text())
        codes, self.handed = {}, {}
        for name in document["stages"]:
            job = document[name]
            count = job.get("parallel", 1)
            for index in range(1, count + 1):
                codes[f"{name} {index}"] = self._job(document["variables"], job, index, count)
        return codes

    def _job(self, variables: dict[str, str], job: dict[str, Any], index: int, count: int) -> int:
        words = {"CI_PROJECT_DIR": str(self.work), "CI_NODE_INDEX": str(index)}
        words |= {"CI_NODE_TOTAL": str(count), "HF_TOKEN": self.secret}

        def known(text: str) -> str:
            return re.sub(r"\$(\w+)", lambda found: words[found[1]], text)

        self.check_out()
        cache = job.get("cache", {})
        if cache:
            self.restore(self.kept.get(known(cache["key"]), self.folder / "nothing"))
        for store in self.handed.values() if "needs" in job else ():
            self.restore(store)
        given = {name: known(value) for name, value in variables.items()}
        code = self.shell(job["script"], words | given)
        if cache:
            assert cache["when"] == "always"
            self.save(self.kept, known(cache["key"]), cache["paths"])
        assert job["artifacts"]["when"] == "always"
        self.save(self.handed, f"{index}", job["artifacts"]["paths"])
        return 0 if code in job.get("allow_failure", {}).get("exit_codes", ()) else code
