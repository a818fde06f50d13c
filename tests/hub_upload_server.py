"""The local hub for tests that upload: it makes repositories, takes content and commits it."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from hub_server import Entry, Fault, Handler, HubServer, Revision, is_large

TOKEN = "hf_" + "s3cret" * 5
JSON = {"Content-Type": "application/json"}


class _UploadHandler(Handler):
    hub: "UploadHub"

    def do_POST(self) -> None:
        self._take("POST")

    def do_PUT(self) -> None:
        self._take("PUT")

    def _take(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((method, path, ""))
        authorization = self.headers.get("Authorization", "")
        self.hub.tokens.append(authorization)
        fault = self.hub.fault(method, path)
        if fault and fault.cut is not None:
            self.rfile.read(fault.cut)
            self.close_connection = True
            return None
        body = self._body()
        if fault:
            # A careless hub that repeats what it was sent.
            told = {"X-Error-Message": f"no: {authorization}"}
            return self.send(fault.status, told | dict(fault.headers), b"")
        if method == "PUT":
            return self._store(path.rpartition("/")[2], body)
        routes = (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/models/(.+)/preupload/main", self._preupload),
            (r"/(.+)\.git/info/lfs/objects/batch", self._batch),
            (r"/api/models/(.+)/commit/main", self._commit),
        )
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, path):
                return answer(body, *match.groups())
        return self.send(404, {}, b"")

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, answer: object, status: int = 200) -> None:
        self.send(status, dict(JSON), json.dumps(answer).encode())

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        exists = repo_id in self.hub.repos
        if not exists:
            private = asked.get("visibility") == "private"
            self.hub.repos[repo_id] = {"main": Revision({}, private)}
        self._json({"url": f"{self.hub.url}/{repo_id}"}, 409 if exists else 200)

    def _validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        found = yaml.safe_load(content.split("---\n")[1])
        errors = [] if found.get("license", "mit").islower() else ['"license" must be one of [mit]']
        told = [{"message": message} for message in errors]
        self._json({"errors": told, "warnings": []}, 400 if errors else 200)

    def _preupload(self, body: bytes, repo_id: str) -> None:
        files = self.hub.repos[repo_id]["main"].files
        self._json(
            {
                "files": [
                    {
                        "path": asked["path"],
                        "uploadMode": "lfs" if is_large(asked["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": files[asked["path"]].digest if asked["path"] in files else None,
                    }
                    for asked in json.loads(body)["files"]
                ]
            }
        )

    def _batch(self, body: bytes, repo_id: str) -> None:
        objects = json.loads(body)["objects"]
        for asked in objects:
            if self.hub.full:
                asked["error"] = {"code": 413, "message": "storage limit reached"}
            elif asked["oid"] not in self.hub.stored:
                asked["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
        self._json({"objects": objects})

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.send(400, {}, b"")
        self.hub.stored[oid] = body
        return self.send(200, {"ETag": f'"{oid}"'}, b"")

    def _commit(self, body: bytes, repo_id: str) -> None:
        before = self.hub.repos[repo_id]["main"]
        files = dict(before.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = Entry(self.hub.stored[value["oid"]], True)
            elif line["key"] == "file":
                files[value["path"]] = Entry(base64.b64decode(value["content"]), False)
            else:
                self.hub.messages.append(value["summary"])
        made = self.hub.repos[repo_id]["main"] = Revision(files, before.private)
        url = f"{self.hub.url}/{repo_id}/commit/{made.commit}"
        self._json({"commitUrl": url, "commitOid": made.commit})


class UploadHub(HubServer):
    """A hub with `repos` at first; `stored` is LFS content by sha256.

    `messages` are those of all commits. With `full` it takes no content. Faults of `status` answer
    with the request's own authorization, which must not reach any message.
    """

    def __init__(
        self,
        faults: Sequence[Fault] = (),
        full: bool = False,
        repos: Mapping[str, Path] | None = None,
    ) -> None:
        self.stored: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.full = full
        super().__init__(repos or {}, faults)

    def handler(self) -> type[Handler]:
        return _UploadHandler

    def asked(self, method: str, words: str) -> int:
        """How many requests there were of that method, with `words` in the path."""
        return sum(words in path for how, path, _ in self.requests if how == method)

    def content(self, repo_id: str) -> dict[str, bytes]:
        """What the repository holds, by name."""
        return {name: entry.content for name, entry in self.repos[repo_id]["main"].files.items()}
