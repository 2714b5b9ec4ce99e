"""The marbles tokenizer and its UMT5 encoder.

The tokenizer is a Unigram model of whole words (a few are split in two, as in "left|wards"), so that an unknown word is
an unknown token. The encoder learns from captions alone to represent at every token what its object looks like: linear
heads predict the attributes from each token's state and are dropped afterwards. So a token's meaning stays at that
token.

Shape suffixes: B captions, L tokens, D width of the encoder.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from wanscope.marbles import world
from wanscope.marbles.train.optim import set_lr

TEXT_LENGTH = 512
CONFIG: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 3,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "use_cache": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
SUFFIXES = ("wards",)


def vocabulary() -> list[str]:
    """Return every word that captions can contain, in a fixed order."""
    words = {",", *SUFFIXES}
    rng = np.random.default_rng(0)
    for step in range(6000):
        scene = world.sample_scene(rng, 1 + step % 2)
        for word in world.caption(scene, rng).replace(",", " ,").split():
            stem = word.removesuffix(SUFFIXES[0])
            words.add("▁" + stem if word != "," else ",")
    return sorted(words)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a T5-style tokenizer: lower case, final punctuation dropped, `</s>` at the end, padding 0."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -12.0)]
    pieces += [(word, -2.0) for word in vocabulary()]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[.!?;:]+(?=\s|$)"), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


# What the heads predict from a token. "open" means that the caption does not mention the attribute.
_HEADS: dict[str, tuple[str, ...]] = {
    "about": ("", "object 0", "object 1", "relation", "background"),
    "shape": ("open", *world.SHAPES),
    "color": ("open", *world.COLORS),
    "size": ("open", *world.SIZES),
    "motion": ("open", *world.MOTIONS),
    "place": ("open", *world.RELATIONS),
    "background": ("open", *world.BACKGROUNDS),
}
_OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_IGNORED = -100


def _targets(scene: world.Scene, parts: list[world.Phrase], about: str) -> dict[str, int]:
    """Return the class per head for a token about `about`; heads that do not apply are left out."""
    out = {"about": _HEADS["about"].index(about)}
    relation_mentioned = any(part.about == "relation" for part in parts)
    if about.startswith("object"):
        k = int(about[-1])
        thing, text = scene.things[k], f" {next(p.text for p in parts if p.about == about)} "
        for name in ("shape", "color", "size", "motion"):
            value = getattr(thing, name)
            mentioned = name == "motion" or f" {value} " in text
            out[name] = _HEADS[name].index(value if mentioned else "open")
        place = "open"
        if relation_mentioned and scene.relation:
            place = scene.relation if k == 0 else _OPPOSITE[scene.relation]
        out["place"] = _HEADS["place"].index(place)
    if about == "relation" and scene.relation:
        out["place"] = _HEADS["place"].index(scene.relation)
    if about == "background":
        out["background"] = _HEADS["background"].index(scene.background)
    return out


def batch(tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, size: int, length: int = 48) -> dict[str, Any]:
    """Return token ids, mask and per-head classes, each [B, L], of newly drawn captions."""
    texts, spans, scenes, all_parts = [], [], [], []
    for _ in range(size):
        scene = world.sample_scene(rng, 1 if rng.random() < 0.4 else 2, held_out=False)
        parts = world.phrases(scene, rng)
        text, span = "", []
        for part in parts:
            text += "" if not text or part.text == "," else " "
            span.append((len(text), len(text) + len(part.text), part.about))
            text += part.text
        texts.append(text)
        spans.append(span)
        scenes.append(scene)
        all_parts.append(parts)
    encoded = tokenizer(
        texts, padding="max_length", max_length=length, return_offsets_mapping=True, return_tensors="pt"
    )
    classes = {name: torch.full((size, length), _IGNORED) for name in _HEADS}
    for b, (span, scene, parts) in enumerate(zip(spans, scenes, all_parts, strict=True)):
        for i, (start, end) in enumerate(encoded["offset_mapping"][b].tolist()):
            if end == start:
                continue
            about = next((who for s, e, who in span if s < end <= e), "")
            for name, value in _targets(scene, parts, about).items():
                classes[name][b, i] = value
    return {"ids": encoded["input_ids"], "mask": encoded["attention_mask"], "classes": classes}


def train(folder: Path, steps: int = 1500, *, seed: int = 0, lr: float = 2e-3, size: int = 96) -> None:
    """Write `tokenizer/` and `text_encoder/` to `folder`. This takes a few minutes on two cores and is not resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(seed)
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **CONFIG))
    heads = nn.ModuleDict({name: nn.Linear(CONFIG["d_model"], len(values)) for name, values in _HEADS.items()})
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    rng, began = np.random.default_rng([seed, 7]), time.monotonic()
    for step in range(steps):
        set_lr(optimizer, lr, step, 50, steps, steps // 2)
        data = batch(tokenizer, rng, size)
        states_BLD = encoder(input_ids=data["ids"], attention_mask=data["mask"]).last_hidden_state
        losses, right = [], {}
        for name, classes_BL in data["classes"].items():
            known = classes_BL != _IGNORED
            logits = heads[name](states_BLD[known])
            losses.append(nn.functional.cross_entropy(logits, classes_BL[known]))
            right[name] = float((logits.argmax(-1) == classes_BL[known]).float().mean())
        value = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            row = {"step": step, "seconds": round(time.monotonic() - began, 1), "loss": value.item(), **right}
            with (folder / "text.jsonl").open("a") as out:
                out.write(json.dumps(row) + "\n")
    encoder.eval().save_pretrained(folder / "text_encoder")
