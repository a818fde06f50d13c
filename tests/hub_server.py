"""A small Hugging Face hub on localhost, with faults, for tests that use the real client.

Only what the client needs to list and fetch a model is served. Point HF_ENDPOINT at `.url`, and set
HF_HUB_DISABLE_XET=1 and an HF_HOME of the test's own.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

GATED = {"X-Error-Code": "GatedRepo"}
_FOREVER = 1 << 30


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`, for the first `times` of them.

    `status` with `headers` answers instead of the file; `corrupt` flips a bit; `cut` closes the
    connection after so many bytes; `short` leaves out so many bytes at the end, consistently;
    `delay` waits so many seconds before each tenth of the content.
    """

    path: str
    method: str = "GET"
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    corrupt: bool = False
    cut: int | None = None
    short: int = 0
    delay: float = 0.0
    times: int = _FOREVER


@dataclass(frozen=True)
class Entry:
    """A file of a repository."""

    content: bytes
    lfs: bool

    @cached_property
    def digest(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


class Revision:
    """The files of one folder, stored as the hub would: large ones by LFS, the rest by git."""

    def __init__(self, files: Mapping[str, Entry], private: bool = False) -> None:
        self.files, self.private = dict(files), private
        names = "".join(f"{name} {entry.digest}\n" for name, entry in self.files.items())
        self.commit = hashlib.sha1(names.encode()).hexdigest()

    @classmethod
    def of_folder(cls, folder: Path) -> "Revision":
        return cls(
            {
                path.relative_to(folder).as_posix(): Entry(path.read_bytes(), is_large(path))
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        )

    def listing(self, repo_id: str, extra_names: Sequence[str]) -> bytes:
        siblings: list[dict] = [
            {"rfilename": name, "size": 1, "blobId": "0" * 40} for name in extra_names
        ]
        for name, entry in self.files.items():
            size = len(entry.content)
            item: dict = {"rfilename": name, "size": size, "blobId": entry.digest[:40]}
            if entry.lfs:
                item["lfs"] = {"sha256": entry.digest, "size": size, "pointerSize": 134}
            siblings.append(item)
        info = {"_id": "1", "id": repo_id, "sha": self.commit, "siblings": siblings, "tags": []}
        return json.dumps(info | {"private": self.private, "downloads": 0, "likes": 0}).encode()


def is_large(path: str | Path) -> bool:
    path = Path(path)
    return path.suffix in (".safetensors", ".bin", ".gguf") or path.name == "tokenizer.model"


class HubServer:
    """Serves `repos` (id -> folder, or id -> {revision: folder}) until closed; a context manager.

    `requests` records (method, path, Range header or "") of everything asked.
    `extra_names` are listed as files of every repository, whatever they are.
    """

    def __init__(
        self,
        repos: Mapping[str, Path | Mapping[str, Path]],
        faults: Sequence[Fault] = (),
        extra_names: Sequence[str] = (),
    ) -> None:
        self.repos = {
            repo_id: {
                revision: Revision.of_folder(Path(folder))
                for revision, folder in (
                    source if isinstance(source, Mapping) else {"main": source}
                ).items()
            }
            for repo_id, source in repos.items()
        }
        self.faults = list(faults)
        self.extra_names = tuple(extra_names)
        self.requests: list[tuple[str, str, str]] = []
        self.tokens: list[str] = []
        self._lock = threading.Lock()
        handler = type("Handler", (self.handler(),), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def handler(self) -> type["Handler"]:
        return Handler

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def find(self, repo_id: str, revision: str) -> Revision | None:
        for name, candidate in self.repos.get(repo_id, {}).items():
            if revision in (name, candidate.commit):
                return candidate
        return None

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((method, path, self.headers.get("Range", "")))
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        fault = self.hub.fault(method, path)
        if fault and fault.status:
            return self.send(fault.status, dict(fault.headers), b"")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._list(match[1], match[2] or "main")
        # A dataset is a repository whose id begins with "datasets/".
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[1], match[2], match[3], fault)
        return self.send(404, {}, b"")

    def _list(self, repo_id: str, revision: str) -> None:
        if repo_id not in self.hub.repos:
            return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"")
        found = self.hub.find(repo_id, revision)
        if found is None:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        body = found.listing(repo_id, self.hub.extra_names)
        return self.send(200, {"Content-Type": "application/json"}, body)

    def _file(self, repo_id: str, revision: str, name: str, fault: Fault | None) -> None:
        found = self.hub.find(repo_id, revision)
        entry = found.files.get(name) if found else None
        if repo_id.startswith("datasets/") and repo_id not in self.hub.repos:
            return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"")
        if found is None or entry is None:
            return self.send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        headers = {"X-Repo-Commit": found.commit, "ETag": f'"{entry.digest}"'}
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.digest}"'}
            headers |= {"X-Linked-Size": str(len(entry.content))}
        content = bytearray(entry.content)
        if fault and fault.corrupt:
            content[len(content) // 2] ^= 1
        if fault and fault.short:
            del content[-fault.short :]
        return self._send_range(headers, bytes(content), fault)

    def _send_range(self, headers: dict[str, str], content: bytes, fault: Fault | None) -> None:
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{min(end, len(content) - 1)}/{len(content)}"
            content = content[begin : end + 1]
            status = 206
        self.send(status, headers, content, fault)

    def send(
        self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.cut is not None:
            self.wfile.write(body[: fault.cut])
            self.close_connection = True
            return
        step = max(1, len(body) // 10) if fault and fault.delay else max(1, len(body))
        for at in range(0, len(body), step):
            if fault:
                time.sleep(fault.delay)
            self.wfile.write(body[at : at + step])
