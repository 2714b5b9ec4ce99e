from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    from helpers.comfy_server import Comfy

    server = Comfy(tmp_path_factory.mktemp("comfy"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def wrapped(tmp_path_factory):
    """A server that also has the real WanVideoWrapper."""
    wrapper = os.environ.get("WANVIDEOWRAPPER_PATH")
    if not os.environ.get("COMFYUI_PATH") or not wrapper:
        pytest.skip("COMFYUI_PATH or WANVIDEOWRAPPER_PATH is not set")
    from helpers.comfy_server import Comfy

    server = Comfy(tmp_path_factory.mktemp("wrapped"), Path(wrapper))
    yield server
    server.stop()
