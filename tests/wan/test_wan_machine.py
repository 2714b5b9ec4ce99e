"""The listing, the doctor and the settings before torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from huggingface_hub import scan_cache_dir

from wanscope.wan import doctor, environment
from wanscope.wan.listing import models
from wanscope.wan.variants import VARIANTS


def test_parameter_counts():
    """Published sizes: 1.3B, 14B, 5B; UMT5-XXL's encoder has 5.68 billion."""
    rows = {row.name: row for row in models()}
    assert list(rows) == list(VARIANTS)
    billions = {name: round(row.transformer_parameters / 1e9, 2) for name, row in rows.items()}
    assert billions["wan2.1-t2v-1.3b"] == 1.42
    assert billions["wan2.1-t2v-14b"] == billions["wan2.2-t2v-a14b"] == 14.29
    assert round(billions["wan2.1-i2v-14b-480p"], 1) == 16.4
    assert billions["wan2.2-ti2v-5b"] == 5.0
    real = [row for name, row in rows.items() if name != "marbles"]
    assert {round(row.encoder_parameters / 1e9, 2) for row in real} == {5.68}
    assert round(rows["wan2.1-t2v-1.3b"].vae_parameters / 1e6) == 127
    assert round(rows["wan2.2-ti2v-5b"].vae_parameters / 1e6) == 705
    two = rows["wan2.2-t2v-a14b"]
    assert two.transformer_bytes == 2 * 2 * two.transformer_parameters and two.experts == 2
    assert not rows["wan2.2-i2v-a14b"].makes_from_text and rows["wan2.2-ti2v-5b"].makes_from_text
    assert rows["marbles"].as_dict()["hub_id"] is None


def test_doctor_on_this_machine(tmp_path):
    checks = doctor.diagnose(tmp_path)
    names = [check.name for check in checks]
    assert names == ["Python", "packages", "torch", "GPU", "memory", "workspace", "hub cache", "video", "marbles"]
    for check in checks:
        assert check.status in ("ok", "warn", "fail") and check.detail
        assert (check.status == "ok") or check.fix, check
        assert check.as_dict()["name"] == check.name
    status = {check.name: check.status for check in checks}
    assert status["packages"] == status["torch"] == status["workspace"] == "ok"


def test_doctor_finds_what_is_wrong(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(doctor.importlib.util, "find_spec", lambda name: None)
        assert doctor.packages().status == doctor.torch_build().status == doctor.gpu().status == "fail"
        assert "pip install" in doctor.packages().fix
    with monkeypatch.context() as m:
        m.setattr(doctor, "MARBLES_WEIGHTS", tmp_path)
        assert doctor.marbles().status == "fail"
    with monkeypatch.context() as m:
        m.setattr(doctor, "SMALL_DISK_BYTES", 1 << 62)
        assert doctor.disk(tmp_path).status == "warn"
        m.setattr(doctor, "MARBLES_HOST_BYTES", 1 << 62)
        assert doctor.memory().status == "warn"
        m.setattr(doctor, "NEWEST_TESTED", (3, 0))
        assert doctor.python().status == "warn"

    def read_only(**options):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as m:
        m.setattr(doctor.tempfile, "TemporaryFile", read_only)
        check = doctor.disk(tmp_path)
        assert check.status == "fail" and "Read-only" in check.detail and "WANSCOPE_HOME" in check.fix
    with monkeypatch.context() as m:
        import av

        m.setattr(av, "codecs_available", {"mpeg4"})
        assert doctor.video_writing().status == "warn"
        m.setattr(av, "codecs_available", set())
        assert doctor.video_writing().status == "fail"


def test_doctor_looks_for_a_folder_that_is_not_there_yet(tmp_path):
    check = doctor.disk(tmp_path / "a" / "b")
    assert check.status == "ok" and str(tmp_path) in check.detail
    assert not (tmp_path / "a").exists()


def test_doctor_finds_what_the_hub_library_finds_in_its_cache(tmp_path, monkeypatch):
    whole, without = (VARIANTS[name].hub_id for name in ("wan2.1-t2v-14b", "wan2.1-t2v-1.3b"))
    revision = "0123456789" * 4
    for hub_id in (whole, without):
        folder = tmp_path / f"models--{hub_id.replace('/', '--')}"
        (folder / "blobs").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "snapshots").mkdir()
        if hub_id == whole:
            (folder / "refs" / "main").write_text(revision)
            (folder / "snapshots" / revision).mkdir()
            (folder / "snapshots" / revision / "model_index.json").write_text("{}")
    # The library also counts a repository whose download was started and has no file yet.
    assert {repo.repo_id for repo in scan_cache_dir(tmp_path).repos if repo.size_on_disk} == {whole}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert f"{tmp_path}: wan2.1-t2v-14b, " in doctor.hub_cache().detail
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    assert "no Wan model yet" in doctor.hub_cache().detail


@pytest.mark.parametrize(
    ("before", "name", "after"),
    [
        ({}, "PYTORCH_ALLOC_CONF", "expandable_segments:True"),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
            "PYTORCH_CUDA_ALLOC_CONF",
            "max_split_size_mb:64,expandable_segments:True",
        ),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, "PYTORCH_ALLOC_CONF", "expandable_segments:False"),
    ],
)
def test_environment(before, name, after):
    settings = dict(before)
    assert environment.prepare(settings) == after == settings[name]
    assert environment.prepare(settings) == after
    assert len([key for key in settings if "ALLOC_CONF" in key]) == 1


@pytest.mark.gpu
def test_segments_are_expandable_on_a_gpu():
    code = (
        "from wanscope.wan.environment import prepare; prepare(); import torch; "
        "x = torch.zeros(1 << 24, device='cuda'); "
        "assert all(s['is_expandable'] for s in torch.cuda.memory_snapshot())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
