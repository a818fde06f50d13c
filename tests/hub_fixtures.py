"""A pytest plugin: fixtures that run the real client of this process against a local hub."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from broken import write_single
from hub_client import Start
from hub_server import HubServer
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from quantcli.checkpoint import hub_calls


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the waiting of our code and of the client instead of waiting."""
    recorded: list[float] = []
    clock = SimpleNamespace(sleep=recorded.append, time=lambda: 1e9)
    for module in (hub_calls, _http, file_download):
        monkeypatch.setattr(module, "time", clock)
    return recorded


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Start]:
    """Start a hub and point the client of this process at it; the cache is empty."""
    servers: list[HubServer] = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def start(repos: dict | HubServer, faults: tuple = (), extra_names: tuple = ()) -> HubServer:
        started = isinstance(repos, HubServer)
        server = repos if started else HubServer(repos, faults, extra_names)
        servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return server

    yield start
    huggingface_hub.close_session()
    for server in servers:
        server.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_single(tmp_path / "source")
