from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    from helpers.comfy_server import Comfy

    server = Comfy(tmp_path_factory.mktemp("comfy"))
    yield server
    server.stop()
