"""The training's pieces against closed forms and against themselves interrupted."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from wanscope.marbles import world
from wanscope.marbles.train import denoiser, optim, text, vae
from wanscope.marbles.train.ghosts import FAINTER, FAINTEST, Ghosts
from wanscope.wan.vae import encode_moments

TINY_VAE = {**vae.CONFIG, "base_dim": 8}
TINY = {**denoiser.CONFIG, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2}

tokenizer_once = cache(text.make_tokenizer)  # its words are those of 6,000 captions


def test_newton_schulz_nears_the_orthogonal_factor():
    torch.manual_seed(0)
    matrix = torch.randn(24, 40)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    near = optim._orthogonalized(matrix[None])[0]
    singular = torch.linalg.svdvals(near)
    assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3  # Muon's quintic settles in this band
    cosine = torch.nn.functional.cosine_similarity(near.flatten(), (u @ v).flatten(), dim=0)
    assert cosine > 0.97


def test_muon_takes_matrices_and_adam_the_rest():
    model = WanTransformer3DModel(**TINY)
    optimizer = optim.Muon(model, 0.02)
    matrices = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert id(model.blocks[0].attn1.to_q.weight) in matrices
    assert id(model.blocks[0].scale_shift_table) not in matrices
    assert id(model.patch_embedding.weight) not in matrices
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_adam_matches_torchs():
    torch.manual_seed(0)
    mine, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(mine.state_dict())
    ours = optim.Muon(mine, 0.1)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for step in range(5):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((mine, ours), (theirs, reference)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, theirs.weight, rtol=1e-4, atol=1e-6)


def test_learning_rate_warms_up_holds_and_decays():
    model = torch.nn.Linear(9, 9)
    optimizer = optim.Muon(model, 1.0)

    def at(step):
        optim.set_lr(optimizer, 1.0, step, warmup=10, total=100, decay=20)
        return optimizer.param_groups[0]["lr"]

    assert [at(0), at(9), at(50), at(90), at(100)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.02])


def test_training_attention_equals_the_softmax_over_512_columns():
    torch.manual_seed(0)
    model = WanTransformer3DModel(**TINY).double().eval()
    x, t = torch.randn(2, 16, 2, 8, 8).double(), torch.tensor([300.0, 800.0]).double()
    lengths, longest = (5, 9), 9
    full = torch.zeros(2, text.TEXT_LENGTH, 128).double()
    for b, length in enumerate(lengths):
        full[b, :length] = torch.randn(length, 128).double()
    with torch.no_grad():
        expected = model(x, t, full, return_dict=False)[0]
        attention = denoiser.TrainingAttention()
        real = torch.arange(longest + 1)[None] < torch.tensor(lengths)[:, None]
        pads = torch.log((512 - torch.tensor(lengths)) / (longest + 1 - torch.tensor(lengths)).double())[:, None]
        attention.bias_B1L = torch.where(real, 0.0, pads)[:, None]
        for block in model.blocks:
            block.attn1.set_processor(denoiser.TrainingAttention())
            block.attn2.set_processor(attention)
        seen = model(x, t, full[:, : longest + 1], return_dict=False)[0]
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)  # the time embedding inside is float32


def test_noised_is_a_straight_line_from_data_to_noise():
    x0 = torch.randn(4, 2, 3, 4, 4)
    x_t, velocity, sigma = denoiser.noised(x0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x_t - sigma.view(-1, 1, 1, 1, 1) * velocity, x0)
    again = denoiser.noised(x0, torch.Generator().manual_seed(0))[0]
    assert torch.equal(x_t, again)


def test_a_ghost_is_shown_only_at_high_noise_and_the_velocity_still_leads_to_the_clip():
    x0, shown = torch.randn(64, 2, 1, 4, 4), torch.randn(64, 2, 1, 4, 4)
    x_t, velocity, sigma = denoiser.noised(x0, torch.Generator().manual_seed(0), shown)
    torch.testing.assert_close(x_t - sigma.view(-1, 1, 1, 1, 1) * velocity, x0)
    plain, _, same = denoiser.noised(x0, torch.Generator().manual_seed(0))
    s = sigma.view(-1, 1, 1, 1, 1)
    assert torch.equal(sigma, same) and 0 < (sigma < denoiser.GHOST_SIGMA).sum() < 64
    expected = torch.where(s >= denoiser.GHOST_SIGMA, (1 - s) * shown + (plain - (1 - s) * x0), plain)
    torch.testing.assert_close(x_t, expected)


def flat(scene: world.Scene) -> np.ndarray:
    """Stands for latents [1, T, h, w]: one value for the bare background, objects drawn by their masks."""
    masks = world.render(scene).masks[::4].max(1).reshape(5, 16, 8, 16, 8).mean((2, 4))
    return (list(world.BACKGROUNDS).index(scene.background) + 10 * masks)[None].astype(np.float32)


def test_a_ghost_is_a_fainter_object_that_looks_the_same_and_stands_elsewhere():
    rng = np.random.default_rng(3)
    things = [world.sample_scene(rng, 1, held_out=False).things[0] for _ in range(400)]
    # few looks, so that many clips are alike
    scenes = [world.Scene((replace(thing, shape="circle", color="red", motion="still"),), "gray") for thing in things]
    scenes += [world.sample_scene(rng, 2, held_out=False) for _ in range(20)]
    latents = np.stack([flat(scene) for scene in scenes])
    ghosts = Ghosts(latents, scenes)
    assert np.all(ghosts.bare_ZThw["gray"] == list(world.BACKGROUNDS).index("gray"))
    seen = 0
    for index in range(60):
        shown = ghosts(index, rng)
        if shown is None:
            continue
        seen += 1
        bare, own = ghosts.bare_ZThw["gray"], latents[index] - ghosts.bare_ZThw["gray"]
        mine = (own > 9.99) & (latents[index] > bare)
        strength = ((shown - bare)[mine] / own[mine]).min()  # a ghost that overlaps only adds
        assert FAINTEST <= strength <= 1.0001
        elsewhere = (shown - bare)[own == 0]
        assert elsewhere.max() <= FAINTER * strength * 10.001  # the ghost is the fainter one
        assert elsewhere.min() >= 0
    assert seen > 30
    lonely = [i for i in range(400, 420) if ghosts(i, rng) is None]
    assert lonely  # a pair whose objects look like no other clip's has no ghost


def test_the_tokenizer_knows_every_caption_and_no_other_word():
    tokenizer = tokenizer_once()
    rng = np.random.default_rng(123)
    for number in range(300):
        caption = world.caption(world.sample_scene(rng, 1 + number % 2), rng)
        ids = tokenizer(caption)["input_ids"]
        assert tokenizer.unk_token_id not in ids and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id in tokenizer("a red elephant")["input_ids"]
    assert tokenizer("A RED circle.")["input_ids"] == tokenizer("a red circle")["input_ids"]
    assert tokenizer.tokenize("moves leftwards") == ["▁moves", "▁left", "wards"]


def test_the_encoders_targets_are_the_truth_of_each_phrase():
    tokenizer = tokenizer_once()
    data = text.batch(tokenizer, np.random.default_rng(0), 40)
    words = {
        name: {f"▁{value}" for value in values} for name, values in text._HEADS.items() if name in ("shape", "color")
    }
    checked = 0
    for b in range(40):
        for i, token in enumerate(tokenizer.convert_ids_to_tokens(data["ids"][b])):
            for name, known in words.items():
                value = data["classes"][name][b, i]
                if token in known and value >= 0:
                    assert text._HEADS[name][value] == token[1:]
                    checked += 1
    assert checked > 80


def test_training_interrupted_and_resumed_gives_the_same_vae(tmp_path, monkeypatch):
    monkeypatch.setattr(vae, "CONFIG", TINY_VAE)
    monkeypatch.setattr(vae, "STAGES", (("frames", 0.5, 1, 32, 2), ("crops", 0.5, 5, 32, 1)))
    vae.train(tmp_path / "whole", 4, 2, save_every=2)
    # The schedule depends on the total, so the first part is a run of the same length that is cut short.
    real = vae.batch

    def cut(seed, step, *rest):
        if step == 2 and not (tmp_path / "cut").exists():
            (tmp_path / "cut").touch()
            raise KeyboardInterrupt
        return real(seed, step, *rest)

    monkeypatch.setattr(vae, "batch", cut)
    with pytest.raises(KeyboardInterrupt):
        vae.train(tmp_path / "parts", 4, 2, save_every=2)
    vae.train(tmp_path / "parts", 4, 2, save_every=2)
    a, b = (AutoencoderKLWan.from_pretrained(tmp_path / name / "vae").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def denoiser_folder(folder: Path) -> Path:
    """A training folder with random latents and a tiny encoder: what `train` reads, made in no time."""
    folder.mkdir()
    tokenizer_once().save_pretrained(folder / "tokenizer")
    sizes = {"d_model": 128, "d_ff": 16, "d_kv": 8, "num_heads": 1, "num_layers": 1}
    UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer_once()), **sizes)).save_pretrained(folder / "text_encoder")
    latents = folder / "latents"
    latents.mkdir()
    rng = np.random.default_rng(0)
    np.save(latents / "000000.npy", rng.normal(size=(12, 16, 5, 16, 16)).astype(np.float16))
    (latents / "statistics.json").write_text(json.dumps({"mean": [0.0] * 16, "std": [1.0] * 16}))
    return folder


def test_clips_are_encoded_part_by_part_in_bfloat16_and_not_again(tmp_path, monkeypatch):
    small = {**TINY_VAE, "base_dim": 4, "dim_mult": [1, 1, 1]}
    torch.manual_seed(0)
    own = AutoencoderKLWan(**small).eval()
    own.save_pretrained(tmp_path / "vae")
    denoiser.encode_set(tmp_path, 2, seed=5, part=1)
    stored = denoiser.load_set(tmp_path)
    assert sorted(p.name for p in (tmp_path / "latents").iterdir()) == ["000000.npy", "000001.npy"]
    assert stored.shape == (2, 16, 5, 16, 16) and stored.dtype == np.float16
    for index, found in enumerate(stored):
        video = torch.from_numpy(world.render(denoiser.scene_of(5, index)).video).permute(3, 0, 1, 2)[None]
        with torch.no_grad():
            exact = encode_moments(own, video.float() / 127.5 - 1)[0, :16].numpy()
        assert 0 < np.abs(found - exact).max() < 0.02 * np.abs(exact).max()  # bfloat16 rounds to 1 in 256

    monkeypatch.setattr(world, "render", lambda *_: pytest.fail("it is there already"))
    denoiser.encode_set(tmp_path, 2, seed=5, part=1)


def test_a_mixed_stage_takes_its_kinds_in_turn_and_resumes_in_the_midst(tmp_path, monkeypatch):
    kinds = (
        denoiser.Kind(frames=2, window=16, batch=1, pairs=True),
        denoiser.Kind(frames=1, window=8, batch=3, pairs=False),
        denoiser.Kind(frames=3, window=10, batch=2, pairs=False),
    )
    monkeypatch.setattr(denoiser, "CONFIG", TINY)
    monkeypatch.setattr(denoiser, "STAGES", (denoiser.Stage(2, kinds[:1], 0.02), denoiser.Stage(4, kinds, 0.004)))
    seen: list[tuple[int, ...]] = []
    real = denoiser.draw

    def drawn(*arguments):
        x0, shown, texts = real(*arguments)
        seen.append(tuple(x0.shape))
        return x0, shown, texts

    monkeypatch.setattr(denoiser, "draw", drawn)
    whole, parts = denoiser_folder(tmp_path / "whole"), denoiser_folder(tmp_path / "parts")
    shutil.copytree(whole, parts, dirs_exist_ok=True)  # the same encoder
    torch.manual_seed(0)
    denoiser.train(whole, 6, 2)
    full, wide, small = (1, 16, 2, 16, 16), (3, 16, 1, 8, 8), (2, 16, 3, 10, 10)
    assert seen == [full, full, small, full, wide, small]

    def stopped(*arguments):
        if len(seen) == 6 + 4:
            raise KeyboardInterrupt
        return drawn(*arguments)

    monkeypatch.setattr(denoiser, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        denoiser.train(parts, 6, 2, save_every=3)
    monkeypatch.setattr(denoiser, "draw", drawn)
    denoiser.train(parts, 6, 2, save_every=3)
    assert seen[6:] == [full, full, small, full, full, wide, small]  # step 3 was not saved and is made again
    a, b = (WanTransformer3DModel.from_pretrained(f / "transformer").state_dict() for f in (whole, parts))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_packaged_schedule_ends_on_mixed_kinds():
    steps = np.cumsum([stage.steps for stage in denoiser.STAGES])
    assert denoiser.stage_of(int(steps[-1]) + 10_000) is denoiser.STAGES[-1]  # a lengthened run goes on with the last
    assert [denoiser.stage_of(int(step)) for step in steps[:-1]] == list(denoiser.STAGES[1:])
    assert len(denoiser.STAGES[-1].kinds) > 1
    cells = {kind.frames * kind.window**2 * kind.batch for kind in denoiser.STAGES[-1].kinds}
    assert max(cells) <= 1.1 * min(cells)  # steps of a stage take about the same time
