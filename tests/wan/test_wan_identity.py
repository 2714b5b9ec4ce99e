"""Content hashes: complete for small files, sampled for large ones, independent of names and paths."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch

from helpers.tiny import tiny_model
from wanscope.errors import ModelError
from wanscope.wan import identity


def test_small_files_are_hashed_whole(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"weights")
    assert identity.file_hash(path) == hashlib.sha256(b"weights").hexdigest()


def sparse(path, size: int, changes: dict[int, bytes]):
    with path.open("wb") as file:
        file.truncate(size)
        for place, data in changes.items():
            file.seek(place)
            file.write(data)
    return path


def test_large_files_are_sampled(tmp_path, monkeypatch):
    size = 200 << 20
    base = identity.file_hash(sparse(tmp_path / "a", size, {}))
    assert identity.file_hash(sparse(tmp_path / "b", size, {})) == base
    assert identity.file_hash(sparse(tmp_path / "c", size + 1, {})) != base
    assert identity.file_hash(sparse(tmp_path / "d", size, {100: b"header"})) != base
    assert identity.file_hash(sparse(tmp_path / "e", size, {size - 9: b"end"})) != base
    # A change everywhere, as after any retraining, is detected; one between the samples is not, as documented.
    every = {i * (1 << 20): b"x" * (1 << 19) for i in range(2, 199)}
    assert identity.file_hash(sparse(tmp_path / "f", size, every)) != base
    monkeypatch.setattr(identity, "SAMPLES", 4)
    reads = [identity.EDGE + (size - 2 * identity.EDGE - identity.BLOCK) * i // 5 for i in range(1, 5)]
    with_four = identity.file_hash(tmp_path / "a")
    assert identity.file_hash(sparse(tmp_path / "g", size, {reads[2] + 5: b"y"})) != with_four
    assert identity.file_hash(sparse(tmp_path / "h", size, {reads[2] + identity.BLOCK + 5: b"y"})) == with_four


def test_component_hashes_do_not_depend_on_names(tmp_path):
    for name, files in (("a", ("x", "y")), ("b", ("q", "p"))):
        (tmp_path / name).mkdir()
        for file, data in zip(files, (b"1", b"2"), strict=True):
            (tmp_path / name / f"{file}.safetensors").write_bytes(data)
        config = {"dim": 3, "_name_or_path": name, "_diffusers_version": name}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert identity.folder_hash(tmp_path / "a") == identity.folder_hash(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text('{"dim": 4}')
    assert identity.folder_hash(tmp_path / "a") != identity.folder_hash(tmp_path / "b")


def test_empty_folder(tmp_path):
    with pytest.raises(ModelError, match="contains no weights"):
        identity.folder_hash(tmp_path)


def test_module_hash_depends_on_every_value_and_type():
    module = torch.nn.Linear(3, 2)
    base = identity.module_hash(module)
    assert identity.module_hash(module) == base
    assert identity.module_hash(torch.nn.Linear(3, 2).to(torch.bfloat16)) != base
    module.weight.data[1, 1] += 1e-6
    assert identity.module_hash(module) != base
    assert tiny_model(seed=1).identity["vae"] != tiny_model(seed=2).identity["vae"]


def test_no_file_name_or_time_in_the_hash(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = identity.file_hash(path)
    os.utime(path, (1, 1))
    assert identity.file_hash(path.rename(tmp_path / "b")) == before
