"""Downloads from a small local hub: the size is reported first, they are complete and cached, and errors are clear."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from helpers.tiny import tiny_folder
from wanscope import events
from wanscope.errors import ModelError
from wanscope.wan import download, locate
from wanscope.wan.load import load

torch.set_num_threads(1)
SHA = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny-wan"


class Hub(BaseHTTPRequestHandler):
    """A hub with the few responses that a snapshot needs."""

    folder: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        files = {str(p.relative_to(self.folder)): p for p in sorted(self.folder.rglob("*")) if p.is_file()}
        if path == f"/api/models/{NAME}/revision/main":
            info = {"id": NAME, "sha": SHA, "siblings": [{"rfilename": f} for f in files], "tags": [], "downloads": 0}
            return self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        if path == f"/api/models/{NAME}/tree/{SHA}":
            rows = [
                {"type": "file", "path": f, "size": p.stat().st_size, "oid": hashlib.sha1(p.read_bytes()).hexdigest()}
                for f, p in files.items()
            ]
            return self.answer(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
        match = re.fullmatch(f"/{NAME}/resolve/{SHA}/(.+)", path)
        if match and match[1] in files:
            data = files[match[1]].read_bytes()
            etag = hashlib.sha1(data).hexdigest()
            return self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    folder = tiny_folder(tmp_path / "served")
    (folder / "transformer" / "evil.bin").write_bytes(b"\x80\x04.")
    (folder / "notes.md").write_text("not needed")
    handler = type("H", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_size_is_reported_first_and_the_download_is_complete_and_cached(hub, tmp_path):
    handler, endpoint = hub
    seen: list[tuple[str, int]] = []

    def listener(event: events.Event):
        assert isinstance(event, events.Note)
        seen.append((event.text, sum("GET" in line and "/resolve/" in line for line in handler.asked)))

    folder = download.snapshot(NAME, listener, endpoint=endpoint, cache=tmp_path / "cache")
    assert download.missing(folder) == []
    wanted = [p for p in handler.folder.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors")]
    total = download.size(sum(p.stat().st_size for p in wanted))
    assert seen == [(f"downloading {total} of {NAME} to {tmp_path / 'cache'}", 0)]  # before the first file
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.md"))
    assert load(folder, device="cpu").blocks == 4
    asked = len(handler.asked)
    assert download.snapshot(NAME, listener, endpoint=endpoint, cache=tmp_path / "cache") == folder
    assert len(handler.asked) == asked and len(seen) == 1  # the network was not used again


def test_only_the_parts_that_are_needed(hub, tmp_path):
    handler, endpoint = hub
    folder = download.snapshot(NAME, parts=("vae", "tokenizer"), endpoint=endpoint, cache=tmp_path / "cache")
    assert download.missing(folder, ("vae", "tokenizer")) == [] and download.missing(folder)
    assert not any("resolve" in line and "text_encoder" in line for line in handler.asked)
    whole = download.snapshot(NAME, endpoint=endpoint, cache=tmp_path / "cache")
    assert download.missing(whole) == []


def test_missing_repositories_and_files(hub, tmp_path):
    handler, endpoint = hub
    with pytest.raises(ModelError, match="the hub has no model someone/else"):
        download.snapshot("someone/else", endpoint=endpoint, cache=tmp_path / "cache")
    (handler.folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it has no vae/\*\.safetensors \(pickled weights are never loaded\)"):
        download.snapshot(NAME, endpoint=endpoint, cache=tmp_path / "cache")


def test_too_little_space_on_the_disk(hub, tmp_path, monkeypatch):
    _, endpoint = hub
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"does not fit on the disk.*1\.0 kB are free"):
        download.snapshot(NAME, endpoint=endpoint, cache=tmp_path / "cache")


def test_no_network(tmp_path):
    with pytest.raises(ModelError, match=r"cannot be downloaded.*cannot be reached") as error:
        download.snapshot(NAME, endpoint="http://127.0.0.1:9", cache=tmp_path / "cache")
    assert "folder of a copy" in error.value.why


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        download.snapshot(NAME, cache=tmp_path / "cache")


def test_an_interrupted_download_is_not_taken_for_complete(hub, tmp_path):
    _, endpoint = hub
    cache = tmp_path / "cache"
    folder = download.snapshot(NAME, endpoint=endpoint, cache=cache)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be reached"):
        download.snapshot(NAME, endpoint="http://127.0.0.1:9", cache=cache)
    assert download.missing(download.snapshot(NAME, endpoint=endpoint, cache=cache)) == []


def test_a_lone_file_of_a_known_variant_asks_the_hub_for_the_rest(tmp_path, monkeypatch):
    """If the hub is not available, the error lists all that is needed."""
    wanted: list[tuple[str, tuple[str, ...]]] = []

    def snapshot(hub_id, on_event, parts):
        wanted.append((hub_id, parts))
        raise ModelError("no network", "none")

    monkeypatch.setattr(download, "snapshot", snapshot)
    variant = locate.variants.VARIANTS["wan2.1-t2v-14b"]
    with pytest.raises(ModelError, match="contains only a transformer") as error:
        locate._from_hub(variant, tmp_path / "x.safetensors", ["text_encoder", "tokenizer"], events.ignore)
    assert wanted == [("Wan-AI/Wan2.1-T2V-14B-Diffusers", ("text_encoder", "tokenizer"))]
    assert "a text encoder (umt5_xxl_fp16.safetensors" in str(error.value) and "no network" in str(error.value)


def test_sizes_in_words():
    assert [download.size(n) for n in (5, 1500, 2_500_000, 28.6e9)] == ["5 bytes", "1.5 kB", "2.5 MB", "28.6 GB"]
