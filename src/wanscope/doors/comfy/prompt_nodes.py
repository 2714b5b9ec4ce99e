"""Nodes on CONDITIONING: algebra, the amplifier, the catalogue, words and their attention maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wanscope.doors.comfy import catalog, node_log
from wanscope.doors.comfy.base import (
    CONDITIONING,
    MAPS,
    MODEL,
    WORDS,
    Inputs,
    Node,
    choice,
    number,
    shown,
    socket,
    switch,
    text,
    unit,
    whole,
)
from wanscope.doors.comfy.embeds import at_most, conditioning, first_prompt, only_first
from wanscope.doors.comfy.native_nodes import BLOCKS, END, START
from wanscope.doors.comfy.patterns import blocks_of
from wanscope.edit import parse_expression
from wanscope.edit.amplify import MODES, amplify
from wanscope.edit.embedding_algebra import between
from wanscope.errors import RecipeError
from wanscope.runtime.comfy import native
from wanscope.runtime.comfy.live import Live, LiveEdit
from wanscope.runtime.comfy.live_kinds import Watch


class EmbeddingExpression(Node):
    TITLE = "Embedding Expression"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "A prompt computed from others: `a + 0.5*(b - c)`. The names are the inputs; `norm(x)` scales every token to "
        "length 1, `mean(x)` is the mean token. Prompts of unequal length are filled up with zeros, and it is said."
    )
    REQUIRED: ClassVar[Inputs] = {
        "expression": text("a + 0.5*(b - c)", "What is computed, over the names a, b, c and d."),
        "a": socket(CONDITIONING, "Prompt a; the result's other settings come from it."),
    }
    OPTIONAL: ClassVar[Inputs] = {name: socket(CONDITIONING, f"Prompt {name}.") for name in "bcd"}
    RETURN_TYPES = (CONDITIONING, "STRING")
    RETURN_NAMES = ("conditioning", "note")

    def run(self, expression: str, a: Any, **others: Any) -> dict[str, Any]:
        given = {"a": a, **{name: value for name, value in others.items() if value is not None}}
        parsed = parse_expression(expression)
        parsed.check_names(given)
        made = parsed.evaluate({name: first_prompt(given[name], name) for name in parsed.names})
        tokens, cut = at_most(made.embedding)
        several = only_first(*(given[name] for name in parsed.names))
        note = " ".join(filter(None, [f"{len(tokens)} tokens.", made.note, cut, several]))
        return shown(note, conditioning(tokens, a), note)


class InterpolatePrompts(Node):
    TITLE = "Interpolate Prompts"
    CATEGORY = "wanscope/native"
    DESCRIPTION = "A prompt at a place between two, straight or along the great circle of every token."
    REQUIRED: ClassVar[Inputs] = {
        "a": socket(CONDITIONING, "At position 0."),
        "b": socket(CONDITIONING, "At position 1."),
        "position": unit(0.5, "The place between them."),
        "method": choice(("linear", "spherical"), "linear", "How the path runs."),
    }
    RETURN_TYPES = (CONDITIONING,)
    RETURN_NAMES = ("conditioning",)

    def run(self, a: Any, b: Any, position: float, method: Any) -> dict[str, Any]:
        made = between(first_prompt(a, "a"), first_prompt(b, "b"), position, method)
        tokens, cut = at_most(made.embedding)
        note = " ".join(filter(None, [made.note, cut, only_first(a, b)]))
        return shown(note, conditioning(tokens, a))


class AmplifyPrompt(Node):
    TITLE = "Amplify Prompt Difference"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Moves the donor until its difference from the main prompt is exact: relative L2 over real tokens, in percent."
    )
    REQUIRED: ClassVar[Inputs] = {
        "main": socket(CONDITIONING, "The prompt that the video is made from."),
        "donor": socket(CONDITIONING, "The prompt that is moved."),
        "target_percent": number(60.0, 1.0, 300.0, 1.0, "The difference to reach."),
        "mode": choice(MODES, "push_apart", "Along which line it is moved."),
        "keep_norm": switch(False, "Keep every token's length; some differences can then not be reached."),
    }
    RETURN_TYPES = (CONDITIONING, "STRING")
    RETURN_NAMES = ("donor", "info")

    def run(self, main: Any, donor: Any, target_percent: float, mode: Any, keep_norm: bool) -> dict[str, Any]:
        a, b = first_prompt(main, "main"), first_prompt(donor, "donor")
        made = amplify(a, b.to(a.device), target_percent / 100, mode, keep_norm=keep_norm)
        tokens, cut = at_most(made.embedding)
        info = " ".join(filter(None, [made.describe() + ".", cut, only_first(main, donor)]))
        return shown(info, conditioning(tokens, donor), info)


class SaveEmbedding(Node):
    TITLE = "Save to Catalogue"
    CATEGORY = "wanscope/native"
    DESCRIPTION = "Keeps a prompt's embedding in the catalogue, exactly, under a label and its text."
    REQUIRED: ClassVar[Inputs] = {
        "conditioning": socket(CONDITIONING, "What is kept; handed on unchanged."),
        "label": text("", "A name to load it by; it may be empty."),
        "prompt": text("", "The text it was made from, to find it by.", multiline=True),
    }
    RETURN_TYPES = (CONDITIONING, "STRING")
    RETURN_NAMES = ("conditioning", "key")
    OUTPUT_NODE = True

    def run(self, conditioning: Any, label: str, prompt: str) -> dict[str, Any]:
        key = catalog.catalog().put(
            first_prompt(conditioning, "conditioning").detach().cpu(),
            label=label.strip() or None,
            prompt=prompt.strip() or None,
            encoder=catalog.ENCODER,
            source="comfyui",
        )
        return shown(f"kept as {key[:12]}", conditioning, key)


class LoadEmbedding(Node):
    TITLE = "Load from Catalogue"
    CATEGORY = "wanscope/native"
    DESCRIPTION = "A stored embedding as conditioning, found by its label, its text, or its key."
    REQUIRED: ClassVar[Inputs] = {"name": text("", "A label, a prompt, or the beginning of a key.")}
    RETURN_TYPES = (CONDITIONING, "STRING")
    RETURN_NAMES = ("conditioning", "key")

    @classmethod
    def IS_CHANGED(cls, name: str) -> str:
        store = catalog.catalog()
        return store.get(name, count=False).key if store.exists else name

    def run(self, name: str) -> dict[str, Any]:
        found = catalog.catalog().get(name.strip())
        return shown(f"{found.key[:12]}: {found.prompt or ''}", conditioning(found.tensor()), found.key)


@dataclass(frozen=True)
class Words:
    """WANSCOPE_WORDS: words of a prompt and the columns of their tokens."""

    words: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]


class WordsOfPrompt(Node):
    TITLE = "Words of a Prompt"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Encodes a prompt and finds words in it, for Watch Attention and Bend Attention. Each word takes all tokens "
        "that hold a part of it, at every place where it occurs."
    )
    REQUIRED: ClassVar[Inputs] = {
        "clip": socket("CLIP", "The Wan text encoder."),
        "prompt": text("", "The prompt; use the conditioning of this node as the positive one.", multiline=True),
        "words": text("", "Words or phrases of the prompt, with commas between."),
    }
    RETURN_TYPES = (CONDITIONING, WORDS)
    RETURN_NAMES = ("conditioning", "words")

    def run(self, clip: Any, prompt: str, words: str) -> dict[str, Any]:
        tokens = clip.tokenize(prompt)
        wanted = tuple(word.strip() for word in words.split(",") if word.strip())
        if not wanted:
            raise RecipeError("no word is named", "maps are of words of the prompt", "words: ball, red")
        pieces = _pieces(clip, tokens)
        found = Words(wanted, tuple(columns_of(word, pieces) for word in wanted))
        encoded = clip.encode_from_tokens_scheduled(tokens)
        said = "; ".join(f"{w}: tokens {', '.join(map(str, c))}" for w, c in zip(wanted, found.columns, strict=True))
        return shown(said, encoded, found)


def _pieces(clip: Any, tokens: dict[str, Any]) -> list[str]:
    """The text of every token, padding and the closing one as empty texts."""
    batches = next(iter(tokens.values()))
    inner = clip.tokenizer
    name = next(iter(tokens))
    tokenizer = getattr(inner, name, inner)
    pieces = []
    for token, *_ in batches[0]:
        piece = tokenizer.inv_vocab.get(int(token), "") if isinstance(token, int) else ""
        pieces.append("" if piece in ("<pad>", "</s>", "<s>", "<unk>") else str(piece))
    return pieces


def columns_of(word: str, pieces: list[str]) -> tuple[int, ...]:
    """The tokens that hold a part of the word, wherever it stands in the text as a whole word.

    pieces: the text of every token, `▁` where a word begins. Raises RecipeError for a word that is not there.
    """
    joined, owner = "", []
    for i, piece in enumerate(pieces):
        shown_piece = piece.replace("▁", " ")
        joined += shown_piece
        owner += [i] * len(shown_piece)
    low, wanted = joined.lower(), word.lower()
    out: set[int] = set()
    at = low.find(wanted)
    while at >= 0:
        before, after = low[at - 1 : at], low[at + len(wanted) : at + len(wanted) + 1]
        if not before.isalnum() and not after.isalnum():
            out |= set(owner[at : at + len(wanted)])
        at = low.find(wanted, at + 1)
    if not out:
        raise RecipeError(f"the prompt has no word {word!r}", f"it reads {joined.strip()[:200]!r}", "words: ball")
    return tuple(sorted(out))


@dataclass(frozen=True, eq=False)
class Maps:
    """WANSCOPE_MAPS: where the attention maps will be after sampling."""

    live: Live
    words: tuple[str, ...]

    def last(self) -> Tensor:
        """[K, T, Y, X], the mean over blocks, steps and heads in the last run. RecipeError before one.

        Runs of this copy of the model come before those of copies that were edited further, in one prompt.
        """
        found = [(self.live.edits, run) for run in self.live.runs]
        heard = self.live.heard
        if heard is not None and (not found or heard[1].prompt != found[-1][1].prompt):
            found.append(heard)
        mine = self.live.edits[-1]
        for edits, run in reversed(found):
            kept = run.maps.get(edits.index(mine))
            if kept:
                count, sum_KN, grid = kept
                return (sum_KN / count).unflatten(1, grid)
        raise RecipeError(
            "no attention was kept",
            "the watched model was not sampled before this node ran",
            "connect the model output of Watch Attention to the sampler, and the decoded images to this node",
        )


class WatchAttention(Node):
    TITLE = "Watch Attention"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Keeps where the video looks at chosen words of the prompt: exact attention probabilities, averaged over the "
        "heads, the chosen blocks and the steps. The result of sampling stays the same to the bit."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy that keeps the maps."),
        "words": socket(WORDS, "What Words of a Prompt makes."),
        "blocks": BLOCKS,
        "start_percent": START,
        "end_percent": END,
    }
    HIDDEN: ClassVar[Inputs] = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES = (MODEL, MAPS)
    RETURN_NAMES = ("model", "maps")

    def run(
        self,
        model: Any,
        words: Words,
        blocks: Any,
        start_percent: float,
        end_percent: float,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        chosen = blocks_of(blocks, native.depth(model))
        if not chosen.chosen:
            raise RecipeError("no block is watched", "maps are means over blocks", "blocks: all")
        now = native.live_of(model)
        edit = LiveEdit(
            Watch(chosen.ranges), columns=words.columns, words=words.words, start=start_percent, end=end_percent
        )
        live = node_log.with_edit(now, edit)
        said = f"watching {', '.join(words.words)}: {chosen.describe()}"
        node_log.follow(live, unique_id, said)
        return shown(said, native.attach(model, live), Maps(live, words.words))


class AttentionOverlay(Node):
    TITLE = "Attention Overlay"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "The attention map of one word over the decoded video, and as a mask. The mask is the map scaled to its "
        "largest value, or with a threshold above 0 the places above that share of it. The images make this node wait "
        "for the sampling."
    )
    REQUIRED: ClassVar[Inputs] = {
        "maps": socket(MAPS, "What Watch Attention makes."),
        "images": socket("IMAGE", "The decoded video of the same run."),
        "word": whole(1, 1, 20, "Which of the words, counted from 1."),
        "opacity": unit(0.6, "How strongly the map is drawn."),
        "threshold": unit(0.0, "Above 0: the mask is 1 where the map is above this share of its largest value."),
    }
    RETURN_TYPES = ("IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("overlay", "mask", "report")

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> float:
        return float("nan")  # the maps change beside the graph

    def run(self, maps: Maps, images: Tensor, word: int, opacity: float, threshold: float) -> dict[str, Any]:
        if word > len(maps.words):
            raise RecipeError(f"there is no word {word}", f"{len(maps.words)} are watched", "word: 1")
        map_TYX = maps.last()[word - 1]
        frames, height, width = images.shape[:3]
        grown = F.interpolate(map_TYX[None, None], size=(frames, height, width), mode="trilinear", align_corners=False)
        scaled = (grown[0, 0] / grown.amax().clamp_min(1e-12)).to(images.device)
        mask = (scaled > threshold).float() if threshold else scaled
        color = heat(scaled)
        weight = opacity * scaled[..., None]
        report = (
            f"{maps.words[word - 1]}: mean attention {float(map_TYX.mean()):.4f}, largest {float(map_TYX.max()):.4f}"
        )
        return shown(report, (1 - weight) * images[..., :3] + weight * color, mask, report)


def heat(share: Tensor) -> Tensor:
    """Colors [..., 3] from dark blue over red to yellow for shares from 0 to 1."""
    stops = torch.tensor(
        [[0.0, 0.0, 0.3], [0.5, 0.0, 0.6], [0.9, 0.2, 0.2], [1.0, 0.7, 0.1], [1.0, 1.0, 0.7]], device=share.device
    )
    place = share.clamp(0, 1) * (len(stops) - 1)
    low = place.floor().long().clamp_max(len(stops) - 2)
    part = (place - low)[..., None]
    return (1 - part) * stops[low] + part * stops[low + 1]
