"""Inject: a donor's text into chosen blocks, or its hidden states (activation patching)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from wanscope.edit.base import EditWithStrength
from wanscope.edit.donor import Donor
from wanscope.edit.field_types import Text, Words
from wanscope.edit.kinds.bend import word_text
from wanscope.edit.line import Line, Reader, is_setting, items_of, setting_of
from wanscope.edit.line_tokens import Token, contents, is_plain_file, is_quoted, quoted
from wanscope.edit.operations import Append, BlendState, BlendTokens, MixIn, Operation, ReadInstead
from wanscope.edit.planned import PlannedEdit, Resolved, Resolving
from wanscope.edit.planned_texts import Boost, PlannedText
from wanscope.edit.sites import BRANCHES, Branch, Part
from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from wanscope.edit.encoded_texts import DonorText, DonorTexts
    from wanscope.edit.named_files import NamedFiles

MAX_DIFFERENCE = 10.0
SHORT_DONOR = 0.5  # of the prompt's tokens; below that, a note says what mode `tokens` does with a donor so short
_alternatives = re.compile(r"\[[^\[\]]*\|[^\[\]]*\]")


class Inject(EditWithStrength):
    """Injects a donor into chosen blocks: the text of another prompt, or its hidden states (activation patching).

    on: `context` (what cross-attention reads), `hidden` (a block's input, from the donor's own pass on the same
    latents), or `both`.
    mode, on the context: `mix` the outputs of the two cross-attentions, `append` the donor's tokens to the prompt's
    with weight `strength`, or blend `tokens` place by place.
    operation, of tokens and hidden states a with the donor's b at strength s: `blend` (1 - s) a + s b, `replace` b
    wherever s is above 0, `add` a + s b.
    words: limit mode `tokens` to the places of these words of the prompt.
    difference: move the donor first, to this relative L2 distance from the prompt (raw embeddings, exact), by the
    amplifier's mode `amplify`. boost: multiply the difference after projection. keep_norm: whether the two keep every
    token's length; left out, boost does and difference does not.
    donor_negative: with branch `both`, what the other pass gets.
    """

    kind: Literal["inject"] = "inject"
    donor: Donor
    donor_negative: Text | None = None
    on: Literal["context", "hidden", "both"] = "context"
    mode: Literal["mix", "append", "tokens"] = "mix"
    operation: Literal["blend", "replace", "add"] = "blend"
    words: Words = ()
    difference: Annotated[float, Field(gt=0, le=MAX_DIFFERENCE, allow_inf_nan=False)] | None = None
    amplify: Literal["push_apart", "maximize_diff", "orthogonalize"] = "push_apart"
    boost: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    keep_norm: bool | None = None

    example: ClassVar[str] = "inject 'a green square moves left' into late at 0.4"
    takes_donor: ClassVar[bool] = True

    def __init__(self, donor: Any = None, /, **data: Any) -> None:
        super().__init__(**(data if donor is None else {"donor": donor, **data}))

    @property
    def strength_range(self) -> tuple[float, float]:
        # With `on: both` the context is mixed or appended to, whose strength is a share or a weight.
        adds_alone = self.operation == "add" and (self.mode == "tokens" or self.on == "hidden")
        return (-10.0, 10.0) if adds_alone else (0.0, 1.0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.operation != "blend" and self.on == "context" and self.mode != "tokens":
            raise ValueError(f"operation {self.operation} works on tokens or hidden states; mode: tokens or on: hidden")
        if self.mode != "mix" and self.on == "hidden":
            raise ValueError(f"mode {self.mode} is about the context, and on is hidden; on: context")
        if self.words and (self.mode != "tokens" or self.on != "context"):
            raise ValueError("words limit an injection of tokens into the context; mode: tokens")
        if self.boost is not None and self.on == "hidden":
            raise ValueError("boost multiplies a difference of contexts, and on is hidden; on: context")
        if self.amplify != "push_apart" and self.difference is None:
            raise ValueError(f"amplify {self.amplify} is a way to reach a difference, and no difference is given")
        if self.keep_norm is not None and self.difference is None and self.boost is None:
            raise ValueError("keep_norm belongs to difference or boost, and neither is given")
        if self.donor_negative is not None and self.branch != "both":
            raise ValueError("donor_negative is what the uncond pass gets; branch: both")
        return self

    @property
    def title(self) -> str:
        where = {"context": "context", "hidden": "hidden states", "both": "context and hidden states"}
        return f"inject into the {where[self.on]}"

    @property
    def parts(self) -> tuple[Part, ...]:
        found: dict[str, tuple[Part, ...]] = {"both": ("hidden", "context"), "hidden": ("hidden",)}
        return found.get(self.on, ("context",))

    @property
    def appends(self) -> bool:
        return self.mode == "append"

    def replaces(self, table: Any) -> Any:
        if self.on == "hidden" or self.mode == "append" or self.words:
            return super().replaces(table)
        if self.mode == "mix" or self.operation == "blend":
            return table == 1
        return (table != 0) & (self.operation == "replace")

    def operation_at(self, planned: PlannedEdit, part: Part, branch: Branch, step: int, strength: float) -> Operation:
        text = planned.donor[branch]
        if part == "hidden":
            return BlendState(text, self.donor.after_block, self.operation, strength)
        if self.replaces(strength):
            return ReadInstead(text)
        if self.mode == "mix":
            return MixIn(text, strength)
        if self.mode == "append":
            return Append(text, strength)
        return BlendTokens(text, self.operation, strength, bool(self.words))

    def check_encoded(self, texts: DonorTexts, where: str) -> None:
        self._encoded(texts, where)

    def _encoded(self, texts: DonorTexts, where: str) -> DonorText:
        try:
            return texts.donor(self.donor, self.difference, self.amplify, bool(self.keep_norm))
        except RecipeError as error:
            raise RecipeError(f"{where}: {error.what}", error.why, error.fix) from None

    def resolve(self, against: Resolving) -> Resolved:
        """Its donor in each branch, moved to the difference asked for. RecipeError where that cannot be reached."""
        texts, main = against.texts, against.main
        found = self._encoded(texts, against.where)
        for note in filter(None, (found.note, *map(_unread_syntax, self.donor.prompts()))):
            against.note(note)
        own = frozenset((self.donor.prompt,)) if self.donor.prompt is not None else frozenset()
        donor: dict[Branch, PlannedText] = {}
        for branch in BRANCHES:
            embedding_LD, prompts = found.embedding, own
            if branch == "uncond" and self.donor_negative is not None:
                embedding_LD, prompts = texts.raw[self.donor_negative], frozenset((self.donor_negative,))
            donor[branch] = against.once(PlannedText(embedding_LD, prompts, self.boosted(main[branch])))
        if self.mode == "tokens" and self.on != "hidden":
            tokens, own_tokens = len(donor["cond"].embedding), len(main["cond"].embedding)
            if self.branch != "uncond" and tokens < SHORT_DONOR * own_tokens:
                against.note(
                    f"the donor has {tokens} tokens and the prompt {own_tokens}, so most of the prompt is blended "
                    "with padding; mode: mix blends what the texts do instead of their tokens"
                )
        only_block_0 = not against.table_SL[:, 1:].any()
        idle = [self._idle_reason(donor[branch], main[branch], only_block_0) for branch in self.branches]
        if against.table_SL.any() and all(idle):
            against.notes.append(f"{against.where} changes nothing: {idle[0]}")
        return Resolved(donor=donor)

    def boosted(self, main: PlannedText) -> Boost | None:
        """How the difference of its context from the prompt's is multiplied; None where it is left as it is."""
        keep_norm = True if self.keep_norm is None else self.keep_norm
        return None if self.boost is None else Boost(main, self.boost, keep_norm)

    def _idle_reason(self, donor: PlannedText, main: PlannedText, only_block_0: bool) -> str:
        """Why it changes nothing; empty where it does. only_block_0: whether it acts nowhere else."""
        if self.operation == "add" and (self.mode == "tokens" or self.on != "context"):
            return ""
        if self.on == "hidden" and only_block_0 and not self.donor.after_block:
            return "the state that enters block 0 has read no text yet, so the donor's is the same"
        if self.mode != "append" and donor.same_as(PlannedText(main.embedding, donor.prompts, donor.boost)):
            return "the donor is the prompt itself"
        return ""

    def texts(self) -> dict[str, str]:
        out = dict.fromkeys(self.donor.prompts(), "donor")
        if self.donor_negative is not None:
            out.setdefault(self.donor_negative, "donor's negative prompt")
        return out

    def check(self, blocks: int, steps: int, heads: int) -> None:
        super().check(blocks, steps, heads)
        after = self.donor.after_block
        if after is not None and after > blocks:
            raise RecipeError(
                f"the donor is captured after block {after}", f"the model has {blocks} blocks", f"after_block: {blocks}"
            )

    def prompts_brought(self) -> list[str]:
        return [self.donor.prompt] if self.donor.prompt is not None else []

    def named_words(self) -> tuple[str, ...]:
        return self.words

    def stored_donors(self) -> list[Donor]:
        return self.donor.files()

    def with_hashes(self, files: NamedFiles) -> Self:
        return self.model_copy(update={"donor": files.donor(self.donor)}) if self.donor.files() else self

    # ---- in one line

    blocks_word: ClassVar[str] = "into"
    reserved: ClassVar[tuple[str, ...]] = ("where", "after", "after_block")
    readers: ClassVar[Mapping[str, Reader]] = {
        "donor": lambda line, token: _donor_in(token) or contents(token.text),
        "words": lambda line, token: items_of(token.text),
    }

    @classmethod
    def read_beginning(cls, line: Line) -> None:
        if not line.here() or is_setting(line.here()):
            return  # the donor may follow by name, or is found to be missing
        token = line.take()
        donor = _donor_in(token)
        if donor is None:
            why = "a donor is a text in quotes, a .safetensors file or stored('NAME')"
            line.fail(token, why, cls.example)
        line.data["donor"] = donor

    @classmethod
    def read_own(cls, line: Line, word: Token, value: Token | None) -> None:
        donor = line.data.get("donor")
        if word.text != "where":
            text = (value.text if value else line.rest_of_part(word)).strip()
            if not isinstance(donor, dict):
                line.fail(word, "'after' follows a donor", cls.example)
            line.data["donor"] = {**donor, "after_block": int(text) if text.isdigit() else text}
            return
        text = donor.get("prompt") if isinstance(donor, dict) else None
        if text is None:
            line.fail(word, "'where' follows an expression in quotes", cls.example)
        names: dict[str, Any] = {}
        while (token := line.here()) and (found := setting_of(token)):
            name, given = found
            meant = _donor_in(Token(given.text.rstrip(","), given.at))
            if meant is None:
                break  # a field of the edit
            line.take()
            names[name] = meant
        if not names:
            line.fail(token or line.end(), "'where' gives the meaning of the names", "where beach='a beach'")
        line.data["donor"] = {"expression": text, "names": names}

    def write_beginning(self, data: dict[str, Any]) -> list[str]:
        del data["donor"]
        after = [] if self.donor.after_block is None else ["after", str(self.donor.after_block)]
        if self.donor.expression is None:
            return [_donor_text(self.donor), *after]
        names = [f"{name}={_donor_text(inner)}" for name, inner in self.donor.names.items()]
        return [quoted(self.donor.expression), "where", *names, *after]

    def write_field(self, name: str, value: Any) -> str:
        if name == "words":
            return f"[{', '.join(map(word_text, value))}]"
        return quoted(value) if name == "donor_negative" else super().write_field(name, value)


def _unread_syntax(text: str) -> str:
    """A note on what a donor's text looks like and is not read as; empty for plain words."""
    if text.rstrip().endswith(".safetensors"):
        name = text.strip()
        return f"the donor is the words {text!r}, not a file; a file is {{embedding: {name}}} or file({quoted(name)})"
    if _alternatives.search(text):
        return f"the donor {text!r} is read as it is, brackets and all: sweep the donor for alternatives"
    return ""


def _donor_in(token: Token) -> dict[str, Any] | None:
    """A prompt in quotes, a file, or an embedding of the catalog."""
    if is_quoted(token.text):
        return {"prompt": contents(token.text)}
    inside = re.fullmatch(r"(?:file|stored)\((.*)\)", token.text, re.DOTALL)
    if inside and is_quoted(inside[1].strip()):
        return {"embedding": contents(inside[1].strip())}
    return {"embedding": token.text} if token.text.endswith(".safetensors") else None


def _donor_text(donor: Donor) -> str:
    if donor.prompt is not None:
        return quoted(donor.prompt)
    path = donor.embedding or ""
    if not path.endswith(".safetensors"):
        return f"stored({quoted(path)})"
    return path if is_plain_file(path) else f"file({quoted(path)})"
