"""The validation's own arithmetic, and the packaged weights and report."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from scipy.stats import binomtest

from wanscope.marbles import validate
from wanscope.wan.load import load
from wanscope.wan.variants import MARBLES_WEIGHTS


@pytest.mark.parametrize(("right", "count"), [(200, 200), (191, 200), (0, 5), (3, 4)])
def test_interval_is_scipys_wilson(right, count):
    reference = binomtest(right, count).proportion_ci(method="wilson")
    assert validate.wilson(right / count, count) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_pairs_are_fixed_and_hold_out_what_they_say():
    first, again = (list(validate.scenes("x", 30, 1, held_out=False)) for _ in range(2))
    assert first == again
    assert not any(scene.held_out for _, scene, _ in first)
    assert all(scene.held_out for _, scene, _ in validate.scenes("x", 10, 1, held_out=True))
    assert [s for _, s, _ in first] != [s for _, s, _ in validate.scenes("y", 30, 1, held_out=False)]


def test_readers_meet_their_bound_on_rendered_truth():
    rows = validate.check_readers(40)
    assert len(rows) == 11 and all(row.passed and row.bound == 0.995 for row in rows)


def test_a_figure_under_its_bound_fails_and_is_shown():
    row = validate.Row("one object", "shape", 0.9, 200, 0.85, 0.93, bound=0.95)
    assert not row.passed
    report = {
        "passed": False,
        "rows": [{**row.__dict__, "passed": row.passed}],
        "wrong": [{"part": "one object", "prompt": "a red circle", "seed": 3, "read": "nothing"}],
        "device": "cpu",
        "machine": "m",
        "seconds": 1.0,
    }
    page = validate.as_markdown(report)
    assert "0.95 **not met**" in page and "| one object | a red circle | 3 | nothing |" in page


def test_the_vae_reconstructs_held_out_clips():
    rows = {(row.part, row.what): row for row in validate.check_vae(load("marbles", device="cpu"), 3)}
    assert rows["VAE, 17 frames", "PSNR, mean (dB)"].value >= 30
    assert rows["VAE, 33 frames", "PSNR, mean (dB)"].value >= 30


def test_the_packaged_report_is_about_the_packaged_weights():
    report = json.loads((MARBLES_WEIGHTS / "report.json").read_text(encoding="utf-8"))
    assert report["model"] == load("marbles", device="cpu").identity
    assert report["passed"] == all(row["bound"] is None or row["value"] >= row["bound"] for row in report["rows"])
    parts = {row["part"] for row in report["rows"]}
    assert {"one object", "two objects", "combinations never shown", "VAE, 17 frames"} <= parts
    pairs = next(row["count"] for row in report["rows"] if row["part"] == "one object")
    # 200 pairs are what the bounds are asked on: a shorter report may be packaged, but it never counts as passed.
    assert pairs >= 40 and (pairs >= 200 or not report["passed"])


def test_weights_are_small_and_in_their_dtypes():
    files = [path for path in Path(MARBLES_WEIGHTS).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    for part, name, dtype in (
        ("vae", "diffusion_pytorch_model", "F16"),
        ("transformer", "diffusion_pytorch_model", "F16"),
        ("text_encoder", "model", "F32"),
    ):
        with safe_open(MARBLES_WEIGHTS / part / f"{name}.safetensors", "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {dtype}  # noqa: SIM118


def test_export_and_unpack_keep_the_weights(tmp_path):
    from wanscope.marbles.train.export import unpack

    unpack(MARBLES_WEIGHTS, tmp_path)
    for kind, part in ((AutoencoderKLWan, "vae"), (WanTransformer3DModel, "transformer")):
        a, b = (kind.from_pretrained(folder / part).state_dict() for folder in (MARBLES_WEIGHTS, tmp_path))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert json.loads((tmp_path / "training.json").read_text())["denoiser_steps"] > 0
