"""Uploads with the real client to a local hub: what arrives, what is not sent twice, and faults."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_client import Start
from hub_server import Fault, Revision
from hub_upload_server import TOKEN, UploadHub
from huggingface_hub import constants

from quantcli.checkpoint.hub_upload import upload
from quantcli.errors import (
    AccessError,
    BadInputError,
    NetworkError,
    QuantcliError,
    UsageError,
)

pytest_plugins = ["hub_fixtures"]

REPO = "org/Demo-GGUF"
CARD = b"---\nlicense: mit\n---\n# Demo\n"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path | bytes]:
    """A set as the batch uploads it: two models on disk, a card and a Modelfile in memory."""
    found: dict[str, Path | bytes] = {"README.md": CARD, "Modelfile": b"FROM ./a.gguf\n"}
    for name in ("a.gguf", "b.gguf"):
        found[name] = tmp_path / name
        found[name].write_bytes(name.encode() * 100_000)
    return found


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


def content(files: dict[str, Path | bytes]) -> dict[str, bytes]:
    return {n: c if isinstance(c, bytes) else c.read_bytes() for n, c in files.items()}


def failure(kind: type[QuantcliError], files: dict[str, Path | bytes], **options: bool) -> str:
    with pytest.raises(QuantcliError) as caught:
        upload(REPO, files, message="Add", **options)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert message.isprintable()
    assert len(message) < 500
    assert TOKEN not in message
    return message


def test_all_files_arrive_in_one_commit(hub: Start, files: dict, token: str) -> None:
    server = hub(UploadHub())
    address = upload(REPO, files, message="Demo in two types")
    assert server.content(REPO) == content(files)
    assert server.messages == ["Demo in two types"]
    assert address == f"{server.url}/{REPO}/commit/{server.find(REPO, 'main').commit}"
    assert set(server.stored) == {
        hashlib.sha256(files[name].read_bytes()).hexdigest() for name in ("a.gguf", "b.gguf")
    }
    assert {sent for sent in server.tokens if sent} == {f"Bearer {token}"}


def test_content_that_is_there_is_not_sent_again(hub: Start, files: dict, token: str) -> None:
    server = hub(UploadHub())
    first = upload(REPO, files, message="one")
    assert server.asked("PUT", "/lfs/") == 2
    assert upload(REPO, files, message="two") == first
    assert server.messages == ["one"]
    files["c.gguf"] = files["a.gguf"]
    files["README.md"] = CARD + b"more\n"
    assert upload(REPO, files, message="three") != first
    assert server.asked("PUT", "/lfs/") == 2
    assert server.content(REPO) == content(files)


@pytest.mark.parametrize("private", [True, False])
def test_private_repositories(private: bool, hub: Start, files: dict, token: str) -> None:
    server = hub(UploadHub())
    upload(REPO, files, private=private, message="one")
    assert server.repos[REPO]["main"].private is private


def test_what_is_to_be_private_does_not_become_public(hub: Start, files: dict, token: str) -> None:
    server = hub(UploadHub())
    server.repos[REPO] = {"main": Revision({})}
    assert "is public" in failure(UsageError, files, private=True)
    assert server.stored == {}


CREATE, PREUPLOAD, COMMIT = "/api/repos/create", "/preupload/", "/commit/"
PLACES = [("POST", CREATE), ("POST", PREUPLOAD), ("POST", "/objects/batch"), ("PUT", "/lfs/"),
          ("POST", "/validate-yaml"), ("POST", COMMIT)]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PLACES)
@pytest.mark.parametrize("status", [500, 429])
def test_a_few_failures_are_overcome(
    status: int, method: str, path: str, hub: Start, files: dict, token: str, waits: list[float]
) -> None:
    busy = {"Retry-After": "7"} if status == 429 else {}
    server = hub(UploadHub([Fault(path, method, status, busy, times=1)]))
    upload(REPO, files, message="one")
    assert server.content(REPO) == content(files)
    assert len(waits) == 1
    assert waits[0] >= (7 if status == 429 and path != "/validate-yaml" else 0.5)


@pytest.mark.parametrize("status", [409, 412])
def test_a_commit_by_others_in_between(status: int, hub: Start, files: dict, token: str) -> None:
    server = hub(UploadHub([Fault(COMMIT, "POST", status, times=1)]))
    upload(REPO, files, message="one")
    assert server.content(REPO) == content(files)


@pytest.mark.parametrize(("method", "path"), PLACES)
def test_endless_failures_end(
    method: str, path: str, hub: Start, files: dict, token: str, waits: list[float]
) -> None:
    server = hub(UploadHub([Fault(path, method, 500)]))
    failure(NetworkError, files)
    assert server.asked(method, path) <= 30
    assert 0 < sum(waits) < 300


@pytest.mark.parametrize(("method", "path"), [*PLACES[:4], PLACES[5]])
@pytest.mark.parametrize("status", [401, 403])
def test_without_the_right_to_write(
    status: int, method: str, path: str, hub: Start, files: dict, token: str, waits: list[float]
) -> None:
    server = hub(UploadHub([Fault(path, method, status)]))
    message = failure(AccessError, files)
    assert f"does not let you write to '{REPO}' (HTTP {status}" in message
    assert "HF_TOKEN" in message
    assert waits == []
    assert server.messages == []


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_connection_cut_while_sending(
    cut: int, hub: Start, files: dict, token: str, waits: list[float]
) -> None:
    server = hub(UploadHub([Fault("/lfs/", "PUT", cut=cut, times=1)]))
    upload(REPO, files, message="one")
    assert server.content(REPO) == content(files)
    assert len(waits) == 1


def test_a_connection_cut_every_time(hub: Start, files: dict, token: str) -> None:
    hub(UploadHub([Fault("/lfs/", "PUT", cut=1000)]))
    assert "broke off" in failure(NetworkError, files)


def test_an_upload_goes_on_where_it_failed(hub: Start, files: dict, token: str) -> None:
    second = hashlib.sha256(files["b.gguf"].read_bytes()).hexdigest()
    fault = Fault(second, "PUT", 403)
    server = hub(UploadHub([fault]))
    failure(AccessError, files)
    fault.times = 0
    upload(REPO, files, message="one")
    assert server.asked("PUT", "/lfs/") == 3


@pytest.mark.parametrize("status", [413, 402, 507])
def test_refusals_say_why(status: int, hub: Start, files: dict, token: str) -> None:
    hub(UploadHub([Fault("/lfs/", "PUT", status)]))
    assert f"(HTTP {status}: 'no:" in failure(AccessError, files)


def test_a_full_account(hub: Start, files: dict, token: str) -> None:
    hub(UploadHub(full=True))
    assert "storage limit reached" in failure(AccessError, files)


def test_a_card_that_the_hub_does_not_take(hub: Start, files: dict, token: str) -> None:
    server = hub(UploadHub())
    files["README.md"] = b"---\nlicense: My Own\n---\n"
    assert '"license" must be one of' in failure(BadInputError, files)
    assert server.messages == []


def test_the_token_is_not_repeated(hub: Start, files: dict, token: str) -> None:
    hub(UploadHub([Fault(COMMIT, "POST", 403)]))
    assert "Bearer (token)" in failure(AccessError, files)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "a\nb", "", ".git/config", "a//b"])
def test_names_that_cannot_be(name: str, hub: Start) -> None:
    server = hub(UploadHub())
    failure(UsageError, {name: b"x"})
    assert server.requests == []


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "a/..b", "-/x", "a b/c"])
def test_ids_that_cannot_be(repo_id: str, hub: Start) -> None:
    server = hub(UploadHub())
    with pytest.raises(UsageError, match="is no hub id"):
        upload(repo_id, {"a": b"x"}, message="one")
    assert server.requests == []


def test_what_cannot_be_read_or_sent(
    hub: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub(UploadHub())
    assert "no such file" in failure(AccessError, {"a.gguf": tmp_path / "none"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failure(AccessError, {"a": b"x"})
    assert server.requests == []


SCRIPT = """
import sys
from pathlib import Path
from quantcli.checkpoint.hub_upload import upload
from quantcli.errors import QuantcliError
files = {"a.gguf": Path(sys.argv[1]), "README.md": b"---\\nlicense: mit\\n---\\n"}
try:
    print(upload("org/name", files, message="one"))
except QuantcliError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("status", [None, 401])
def test_a_process_of_its_own(status: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" * 1000)
    faults = [Fault(PREUPLOAD, "POST", status)] if status else []
    with UploadHub(faults) as server:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "a.gguf")],
            env=os.environ
            | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
            | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        stored = server.repos.get("org/name", {"main": Revision({})})["main"].files
    if status is None:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{server.url}/org/name/commit/")
        assert set(stored) == {"a.gguf", "README.md"}
    else:
        assert done.stderr.startswith("AccessError: 127.0.0.1 does not let you write")
        assert len(done.stderr.splitlines()) == 1
        assert TOKEN not in done.stderr
