"""Nodes for CONDITIONING: algebra, the amplifier, the catalog, words and their attention maps.

Shape suffixes: K words, T Y X the grid of video tokens (frames, rows, columns), N video tokens.
"""

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
    boolean,
    choice,
    fraction,
    integer,
    node_output,
    number,
    socket,
    text,
)
from wanscope.doors.comfy.embeds import conditioning, first_only_note, first_prompt, truncate_tokens
from wanscope.doors.comfy.native_nodes import BLOCKS, END, START
from wanscope.doors.comfy.patterns import parse_block_input
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
        "Computes a prompt from others, such as `a + 0.5*(b - c)`. The names are the inputs; `norm(x)` scales every "
        "token to length 1, `mean(x)` is the mean token. Prompts of unequal length are padded with zeros, which the "
        "note reports."
    )
    REQUIRED: ClassVar[Inputs] = {
        "expression": text("a + 0.5*(b - c)", "The expression, with the names a, b, c and d."),
        "a": socket(CONDITIONING, "Prompt a; the result takes its other settings from it."),
    }
    OPTIONAL: ClassVar[Inputs] = {name: socket(CONDITIONING, f"Prompt {name}.") for name in "bcd"}
    RETURN_TYPES = (CONDITIONING, "STRING")
    RETURN_NAMES = ("conditioning", "note")

    def run(self, expression: str, a: Any, **others: Any) -> dict[str, Any]:
        given = {"a": a, **{name: value for name, value in others.items() if value is not None}}
        parsed = parse_expression(expression)
        parsed.check_names(given)
        made = parsed.evaluate({name: first_prompt(given[name], name) for name in parsed.names})
        tokens, cut = truncate_tokens(made.embedding)
        several = first_only_note(*(given[name] for name in parsed.names))
        note = " ".join(filter(None, [f"{len(tokens)} tokens.", made.note, cut, several]))
        return node_output(note, conditioning(tokens, a), note)


class InterpolatePrompts(Node):
    TITLE = "Interpolate Prompts"
    CATEGORY = "wanscope/native"
    DESCRIPTION = "Interpolates between two prompts, linearly or along the great circle of every token."
    REQUIRED: ClassVar[Inputs] = {
        "a": socket(CONDITIONING, "The prompt at position 0."),
        "b": socket(CONDITIONING, "The prompt at position 1."),
        "position": fraction(0.5, "The position between them."),
        "method": choice(("linear", "spherical"), "linear", "The kind of interpolation."),
    }
    RETURN_TYPES = (CONDITIONING,)
    RETURN_NAMES = ("conditioning",)

    def run(self, a: Any, b: Any, position: float, method: Any) -> dict[str, Any]:
        made = between(first_prompt(a, "a"), first_prompt(b, "b"), position, method)
        tokens, cut = truncate_tokens(made.embedding)
        note = " ".join(filter(None, [made.note, cut, first_only_note(a, b)]))
        return node_output(note, conditioning(tokens, a))


class AmplifyPrompt(Node):
    TITLE = "Amplify Prompt Difference"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Moves the donor until its difference from the main prompt is exactly the target: relative L2 over real "
        "tokens, in percent."
    )
    REQUIRED: ClassVar[Inputs] = {
        "main": socket(CONDITIONING, "The main prompt of the video."),
        "donor": socket(CONDITIONING, "The prompt to move."),
        "target_percent": number(60.0, 1.0, 300.0, 1.0, "The difference to reach, in percent."),
        "mode": choice(MODES, "push_apart", "The line along which it is moved."),
        "keep_norm": boolean(False, "Keep every token's length; some differences cannot be reached then."),
    }
    RETURN_TYPES = (CONDITIONING, "STRING")
    RETURN_NAMES = ("donor", "info")

    def run(self, main: Any, donor: Any, target_percent: float, mode: Any, keep_norm: bool) -> dict[str, Any]:
        a, b = first_prompt(main, "main"), first_prompt(donor, "donor")
        made = amplify(a, b.to(a.device), target_percent / 100, mode, keep_norm=keep_norm)
        tokens, cut = truncate_tokens(made.embedding)
        info = " ".join(filter(None, [made.describe() + ".", cut, first_only_note(main, donor)]))
        return node_output(info, conditioning(tokens, donor), info)


class SaveEmbedding(Node):
    TITLE = "Save to Catalog"
    CATEGORY = "wanscope/native"
    DESCRIPTION = "Stores a prompt's embedding exactly in the catalog, under a label and its text."
    REQUIRED: ClassVar[Inputs] = {
        "conditioning": socket(CONDITIONING, "The prompt to store; passed through unchanged."),
        "label": text("", "A name to load it by; may be empty."),
        "prompt": text("", "The prompt's text, to find the embedding by.", multiline=True),
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
        return node_output(f"stored as {key[:12]}", conditioning, key)


class LoadEmbedding(Node):
    TITLE = "Load from Catalog"
    CATEGORY = "wanscope/native"
    DESCRIPTION = "Loads a stored embedding as conditioning, by its label, its text or its key."
    REQUIRED: ClassVar[Inputs] = {"name": text("", "A label, a prompt, or the beginning of a key.")}
    RETURN_TYPES = (CONDITIONING, "STRING")
    RETURN_NAMES = ("conditioning", "key")

    @classmethod
    def IS_CHANGED(cls, name: str) -> str:
        store = catalog.catalog()
        return store.get(name, count=False).key if store.exists else name

    def run(self, name: str) -> dict[str, Any]:
        found = catalog.catalog().get(name.strip())
        return node_output(f"{found.key[:12]}: {found.prompt or ''}", conditioning(found.tensor()), found.key)


@dataclass(frozen=True)
class Words:
    """WANSCOPE_WORDS: words of a prompt and, for each word, the indices of its tokens."""

    words: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]


class WordsOfPrompt(Node):
    TITLE = "Words of a Prompt"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Encodes a prompt and finds words in it, for Watch Attention and Bend Attention. A word includes all tokens "
        "that hold a part of it, wherever it occurs."
    )
    REQUIRED: ClassVar[Inputs] = {
        "clip": socket("CLIP", "The Wan text encoder."),
        "prompt": text(
            "", "The prompt; connect this node's conditioning to the sampler's positive input.", multiline=True
        ),
        "words": text("", "Words or phrases of the prompt, separated by commas."),
    }
    RETURN_TYPES = (CONDITIONING, WORDS)
    RETURN_NAMES = ("conditioning", "words")

    def run(self, clip: Any, prompt: str, words: str) -> dict[str, Any]:
        tokens = clip.tokenize(prompt)
        wanted = tuple(word.strip() for word in words.split(",") if word.strip())
        if not wanted:
            raise RecipeError("no word is named", "attention maps belong to words of the prompt", "words: ball, red")
        pieces = _token_texts(clip, tokens)
        found = Words(wanted, tuple(columns_of(word, pieces) for word in wanted))
        encoded = clip.encode_from_tokens_scheduled(tokens)
        report = "; ".join(f"{w}: tokens {', '.join(map(str, c))}" for w, c in zip(wanted, found.columns, strict=True))
        return node_output(report, encoded, found)


def _token_texts(clip: Any, tokens: dict[str, Any]) -> list[str]:
    """Return the text of every token; "" for padding and the closing token."""
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
    """Return the indices of the tokens that hold a part of the word, wherever it occurs as a whole word.

    pieces: the text of every token, with `▁` where a word begins. Raises RecipeError for a word that does not occur.
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
        raise RecipeError(f"the prompt has no word {word!r}", f"it is {joined.strip()[:200]!r}", "words: ball")
    return tuple(sorted(out))


@dataclass(frozen=True, eq=False)
class Maps:
    """WANSCOPE_MAPS: the edits whose runs hold the attention maps after sampling, and the words watched."""

    live: Live
    words: tuple[str, ...]

    def last(self) -> Tensor:
        """Return the maps of the last run [K, T, Y, X], averaged over blocks, steps and heads, in float32.

        Within one ComfyUI prompt, runs of this copy of the model take precedence over those of copies that were edited
        further. Raises RecipeError if there was no run.
        """
        found = [(self.live.edits, run) for run in self.live.runs]
        downstream = self.live.last_downstream
        if downstream is not None and (not found or downstream[1].prompt != found[-1][1].prompt):
            found.append(downstream)
        watch = self.live.edits[-1]
        for edits, run in reversed(found):
            kept = run.maps.get(edits.index(watch))
            if kept:
                count, sum_KN, grid = kept
                return (sum_KN / count).unflatten(1, grid)
        raise RecipeError(
            "no attention map was recorded",
            "the watched model was not sampled before this node ran",
            "connect the model output of Watch Attention to the sampler, and the decoded images to this node",
        )


class WatchAttention(Node):
    TITLE = "Watch Attention"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Records which parts of the video attend to chosen words of the prompt: exact attention probabilities, "
        "averaged over the heads, the chosen blocks and the steps. The sampled result is bit for bit the same."
    )
    REQUIRED: ClassVar[Inputs] = {
        "model": socket(MODEL, "A Wan model; the output is a copy that records the maps."),
        "words": socket(WORDS, "The output of Words of a Prompt."),
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
        chosen = parse_block_input(blocks, native.depth(model))
        if not chosen.chosen:
            raise RecipeError(
                "no block is watched", "attention maps are averaged over the chosen blocks", "blocks: all"
            )
        now = native.live_of(model)
        edit = LiveEdit(
            Watch(chosen.ranges), columns=words.columns, words=words.words, start=start_percent, end=end_percent
        )
        live = node_log.add_edit(now, edit)
        summary = f"watching {', '.join(words.words)}: {chosen.describe()}"
        node_log.show_runs_in_node(live, unique_id, summary)
        return node_output(summary, native.attach(model, live), Maps(live, words.words))


class AttentionOverlay(Node):
    TITLE = "Attention Overlay"
    CATEGORY = "wanscope/native"
    DESCRIPTION = (
        "Draws the attention map of one word over the decoded video, and returns it as a mask. The mask is the map "
        "divided by its largest value; with a threshold above 0 it is 1 where that is above the threshold. The images "
        "input makes this node wait for the sampling."
    )
    REQUIRED: ClassVar[Inputs] = {
        "maps": socket(MAPS, "The output of Watch Attention."),
        "images": socket("IMAGE", "The decoded video of the same run."),
        "word": integer(1, 1, 20, "The number of the word, counted from 1."),
        "opacity": fraction(0.6, "The opacity of the map."),
        "threshold": fraction(
            0.0, "If above 0, the mask is 1 where the map is above this fraction of its largest value."
        ),
    }
    RETURN_TYPES = ("IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("overlay", "mask", "report")

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> float:
        return float("nan")  # the maps change outside the graph

    def run(self, maps: Maps, images: Tensor, word: int, opacity: float, threshold: float) -> dict[str, Any]:
        if word > len(maps.words):
            raise RecipeError(
                f"there is no word {word}", f"the number of watched words is {len(maps.words)}", "word: 1"
            )
        map_TYX = maps.last()[word - 1]
        frames, height, width = images.shape[:3]
        grown = F.interpolate(map_TYX[None, None], size=(frames, height, width), mode="trilinear", align_corners=False)
        scaled = (grown[0, 0] / grown.amax().clamp_min(1e-12)).to(images.device)
        mask = (scaled > threshold).float() if threshold else scaled
        color = heat_colors(scaled)
        weight = opacity * scaled[..., None]
        report = (
            f"{maps.words[word - 1]}: mean attention {float(map_TYX.mean()):.4f}, largest {float(map_TYX.max()):.4f}"
        )
        return node_output(report, (1 - weight) * images[..., :3] + weight * color, mask, report)


def heat_colors(values: Tensor) -> Tensor:
    """Return colors [..., 3], from dark blue through red to yellow, for values [...] from 0 to 1."""
    stops = torch.tensor(
        [[0.0, 0.0, 0.3], [0.5, 0.0, 0.6], [0.9, 0.2, 0.2], [1.0, 0.7, 0.1], [1.0, 1.0, 0.7]], device=values.device
    )
    position = values.clamp(0, 1) * (len(stops) - 1)
    low = position.floor().long().clamp_max(len(stops) - 2)
    part = (position - low)[..., None]
    return (1 - part) * stops[low] + part * stops[low + 1]
