"""The rarity experiment: its arithmetic on made volumes, its scenes, and a whole run on a tiny transformer."""

import json

import numpy as np
import pytest
import torch

from wanscope.analysis.permutation_tests import paired_permutation
from wanscope.errors import RequestError
from wanscope.marbles import rarity_volume
from wanscope.marbles.train import __main__ as script
from wanscope.marbles.train import denoiser, rarity
from wanscope.wan.vae import encode_moments


def _volumes(rarity_nats, color_nats, noise, repeats=1, scenes=24):
    """V = scene + model + color + rarity + noise, [R, V, C, n]; red is color 0 and rare in variant 0."""
    rng = np.random.default_rng(7)
    scene = 5 * rng.normal(size=(1, 1, 1, scenes))
    model = 3 * rng.normal(size=(repeats, 2, 1, 1))
    color = color_nats * np.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    rare = rarity_nats * np.eye(2).reshape(1, 2, 2, 1)
    return scene + model + color + rare + noise * rng.normal(size=(repeats, 2, 2, scenes))


def test_rarity_and_color_are_separated_from_scene_and_model():
    rare, color = rarity_volume.parts(_volumes(-0.7, 0.3, 0.0, repeats=2))
    assert rare == pytest.approx(np.full((2, 24), -0.7)) and color == pytest.approx(np.full((2, 24), 0.3))
    with pytest.raises(ValueError, match="two variants and two colors"):
        rarity_volume.parts(np.zeros((1, 3, 2, 4)))


def _report(volumes, **read):
    settings = rarity.RaritySettings(repeats=len(volumes), scenes=volumes.shape[-1])
    rows = [
        {"rare": rare, "color": color, "read": 0.9, "clips": 30, **read}
        for rare in ("red", "blue")
        for color in ("red", "blue")
    ]
    report = {
        "figures": rarity_volume.measured(volumes, settings.colors),
        "read": rows,
        "rank": 5,
        "settings": settings.record(),
        "machine": "an abacus",
    }
    return json.loads(json.dumps({**report, "summary": rarity_volume.summary(report)}))


def test_the_report_states_the_outcome():
    less, more = _report(_volumes(-0.5, 0.0, 0.2)), _report(_volumes(0.5, 1.0, 0.2))
    assert "rare color have less volume" in less["summary"][0] and "in line with the hypothesis" in less["summary"][0]
    assert "rare color have more volume" in more["summary"][0] and "contrary to the hypothesis" in more["summary"][0]
    assert more["summary"][1].startswith("The color itself") and not less["summary"][1].startswith("The color itself")
    found = less["figures"]["rarity"]
    assert found["low"] < -0.5 < found["high"] < 0 and found["scenes"] == 24
    rare, _ = rarity_volume.parts(_volumes(-0.5, 0.0, 0.2))
    assert found["p"] == pytest.approx(paired_permutation(rare.T)[0]) and found["mean"] == pytest.approx(rare.mean())
    nothing = _report(_volumes(0.0, 0.0, 0.2))
    assert "show no effect of rarity on the volume of paths" in nothing["summary"][0]
    assert "four times in five" in nothing["summary"][0]
    page = rarity_volume.as_markdown(less)
    assert "| rare minus common | -0.5" in page and "| red rare | red |" in page and "an abacus" in page


def test_conclusions_about_trainings_need_repeats():
    volumes = _volumes(-0.5, 0.0, 0.2, repeats=4)
    over = _report(volumes)["figures"]["over_repeats"]
    means = rarity_volume.parts(volumes)[0].mean(axis=1)
    assert over["mean"] == pytest.approx(means.mean()) and over["low"] < means.mean() < over["high"]
    assert over["smallest_p"] == over["p"] == 0.125
    lines = _report(volumes)["summary"]
    assert any(line.startswith("Over 4 pairs of trainings, no effect is shown") for line in lines)
    assert any("one training per variant" in line for line in _report(volumes[:1])["summary"])


def test_the_rare_color_is_ten_times_rarer_and_the_rest_of_the_scenes_the_same():
    count = 3000
    red, blue = ([rarity.scenes_of(color, 10)(0, i) for i in range(count)] for color in ("red", "blue"))
    for scenes, rare, common in ((red, "red", "blue"), (blue, "blue", "red")):
        shown = [scene.things[0].color for scene in scenes]
        assert 0.06 < shown.count(rare) / shown.count(common) < 0.16
        assert not any(scene.held_out for scene in scenes) and {len(scene.things) for scene in scenes} == {1}
    rest = [(s.background, s.things[0].shape, s.things[0].size, s.things[0].motion) for s in red + blue]
    assert np.mean([a == b for a, b in zip(rest[:count], rest[count:], strict=True)]) > 0.95
    assert rarity.scenes_of("red", 10)(0, 5) == red[5] != rarity.scenes_of("red", 10)(1, 5)


def test_prompts_differ_in_the_color_alone():
    for number, (a, b) in enumerate(rarity_volume.prompts(("red", "blue"), 20)):
        assert a.prompt.replace("red", "blue") == b.prompt != a.prompt and a.seed == b.seed == number


@pytest.fixture
def tiny(monkeypatch):
    kinds = (denoiser.Kind(frames=2, window=16, batch=2, pairs=True), denoiser.Kind(2, 10, 2, pairs=False))
    config = {**denoiser.CONFIG, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2}
    monkeypatch.setattr(rarity, "CONFIG", config)
    monkeypatch.setattr(rarity, "STAGES", (denoiser.Stage(2, kinds, 0.02),))

    def in_float32(vae, video_BCFHW):
        """A processor without bfloat16 needs 100 times as long for it; test_train.py encodes in it, with a tiny VAE."""
        with torch.autocast("cpu", enabled=False):
            return encode_moments(vae, video_BCFHW)

    monkeypatch.setattr(denoiser, "encode_moments", in_float32)
    return rarity.RaritySettings(clips=3, steps=2, scenes=2, sampler_steps=2)


def test_two_variants_are_trained_measured_and_not_made_again(monkeypatch, tmp_path, tiny):
    decoded = []
    real = rarity._decoded_color

    def color(model, walk):
        decoded.append(walk)
        return real(model, walk) if len(decoded) == 1 else "red"

    monkeypatch.setattr(rarity, "_decoded_color", color)
    stop = rarity.export.export
    monkeypatch.setattr(rarity.export, "export", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rarity.run(tiny, tmp_path)
    log = tmp_path / "red_rare_0" / "denoiser.jsonl"
    trained = log.read_text()
    monkeypatch.setattr(rarity.export, "export", stop)
    report = rarity.run(tiny, tmp_path)
    assert log.read_text() == trained  # its training was done, and is not done again
    assert len(decoded) == 2 * 2 * 2 and report["rank"] >= 1
    assert len(report["figures"]["cells"]) == 4 and all(c["log_volume"] is not None for c in report["figures"]["cells"])
    assert sum(row["clips"] for row in report["read"]) <= 6
    places = [tmp_path / f"{color}_rare_0" for color in ("red", "blue")]
    weights = [torch.load(place / "denoiser.pt", weights_only=True)["model"] for place in places]
    assert {len(w) for w in weights} == {len(weights[0])} and weights[0]["blocks.1.ffn.net.2.weight"].shape[1] == 32
    assert len({json.dumps(identity) for identity in report["models"].values()}) == 2

    monkeypatch.setattr(denoiser, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(rarity, "_decoded_color", lambda *_: pytest.fail("decoded again"))
    again = rarity.run(tiny, tmp_path)
    assert json.dumps(again["figures"]) == json.dumps(report["figures"]) and again["read"] == report["read"]
    with pytest.raises(RequestError, match="other settings"):
        rarity.run(rarity.RaritySettings(clips=4, steps=2, scenes=2), tmp_path)


@pytest.mark.parametrize("colors", [("red", "red"), ("red", "cyan"), ("red", "pink")])
def test_colors_that_cannot_be_compared_are_refused_before_any_work(tmp_path, colors, capsys):
    with pytest.raises(RequestError, match="cannot be compared"):
        rarity.run(rarity.RaritySettings(colors=colors), tmp_path / "not_made")
    assert not (tmp_path / "not_made").exists()
    with pytest.raises(SystemExit):
        script.main(["rarity", "--colors", *colors, "--folder", str(tmp_path / "not_made")])
    assert "cannot be compared" in capsys.readouterr().err
