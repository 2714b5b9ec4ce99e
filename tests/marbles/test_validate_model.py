"""The validation's own arithmetic, and the packaged weights and report."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from scipy.stats import binomtest

from wanscope.marbles import world
from wanscope.marbles.validate import model as validate
from wanscope.recipe import Study
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
    assert len(rows) == 13 and all(row.passed and row.bound == 0.995 for row in rows)


def test_a_figure_under_its_bound_fails_and_is_shown():
    row = validate.ReportRow("one object", "shape", 0.9, 200, 0.85, 0.93, bound=0.95)
    slow = validate.ReportRow("speed", "one default video, after loading", 93.0, 3, unit="s", aim=4.0)
    assert not row.passed and slow.passed  # a busy machine is no fault of marbles
    report = {
        "passed": False,
        "rows": [{**one.__dict__, "passed": one.passed} for one in (row, slow)],
        "wrong": [{"part": "one object", "prompt": "a red circle", "seed": 3, "read": "nothing"}],
        "device": "cpu",
        "machine": "an abacus",
        "seconds": 1.0,
    }
    assert validate.rows_of(report) == [row, slow]
    page = validate.as_markdown(report)
    assert "| one object | shape | 0.900 | 0.850 to 0.930 | 200 | 0.95 **not met** |" in page
    assert "| speed | one default video, after loading | 93.00 s |  | 3 | (aim: at most 4) |" in page
    assert "an abacus" in page and "| one object | a red circle | 3 | nothing |" in page


def test_the_whole_report_on_few_pairs(monkeypatch):
    """Every part is there, what an object is shown too many is a row of its own, and no verdict hangs on the clock."""
    asked, timed = [], []

    def readers(count):
        asked.append(count)
        return check_readers(2)  # more have their own test

    def study(**fields):
        timed.append(fields)
        return Study(**fields, sampler={"steps": 1})

    check_readers = validate.check_readers
    monkeypatch.setattr(validate, "check_readers", readers)
    monkeypatch.setattr(validate, "Study", study)
    monkeypatch.setattr(validate, "SPEED_REPEATS", 1)
    model = load("marbles", device="cpu")
    monkeypatch.setattr(validate, "check_vae", lambda model, count: [])  # has its own test
    # Two objects for every one-object caption.
    pair = world.Scene(
        (
            world.Thing("circle", "red", "large", "left", 18.0, 90.0, 30.0, 2.0),
            world.Thing("square", "blue", "large", "left", 18.0, 90.0, 90.0, 2.0),
        ),
        "white",
    )
    monkeypatch.setattr(validate, "generate", lambda model, text, seed: world.render(pair).video)
    threads = torch.get_num_threads()
    report = validate.validate(2, model=model)
    assert torch.get_num_threads() == threads
    assert asked == [20] and len(timed) == 2  # one video to warm up, one that is timed
    assert all(set(fields) == {"name", "prompt", "seeds"} for fields in timed)  # marbles' own size, steps and guidance
    rows = {(row.part, row.what): row for row in validate.rows_of(report)}
    assert rows["one object", "count"].value == 0 and not rows["one object", "count"].passed
    assert rows["two objects", "count"].value == 1 and rows["two objects", "count"].passed
    for what in ("loading, after imports", "one default video, after loading"):
        row = rows["speed", what]
        assert row.value > 0 and row.bound is None and row.aim is not None and row.unit == "s"
    assert "torch" in report["machine"] and report["passed"] is False
    json.dumps(report)


def test_the_vae_reconstructs_held_out_clips():
    rows = {(row.part, row.what): row for row in validate.check_vae(load("marbles", device="cpu"), 2)}
    assert rows["VAE, 17 frames", "PSNR, mean"].value >= 30
    assert rows["VAE, 33 frames", "PSNR, mean"].value >= 30


def test_the_packaged_report_is_about_the_packaged_weights():
    report = json.loads((MARBLES_WEIGHTS / "report.json").read_text(encoding="utf-8"))
    assert report["model"] == load("marbles", device="cpu").identity
    assert report["passed"] == all(row["bound"] is None or row["value"] >= row["bound"] for row in report["rows"])
    rows = {(row.part, row.what): row for row in validate.rows_of(report)}
    parts = {part for part, _ in rows}
    assert {"one object", "two objects", "combinations never shown", "VAE, 17 frames", "speed"} <= parts
    assert rows["one object", "count"].count == rows["one object", "shape"].count == 200
    assert rows["two objects", "count"].count == 100


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
