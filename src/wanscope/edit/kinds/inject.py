"""Inject: puts a donor's text or its hidden states (activation patching) into chosen blocks."""

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
from wanscope.edit.planned import PlannedEdit, Resolved, ResolveInputs
from wanscope.edit.planned_texts import Boost, PlannedText
from wanscope.edit.sites import BRANCHES, Branch, Part
from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from wanscope.edit.encoded_texts import DonorText, DonorTexts
    from wanscope.edit.named_files import NamedFiles

MAX_DIFFERENCE = 10.0
SHORT_DONOR = 0.5  # of the prompt's tokens; for a shorter donor, a note says what mode `tokens` does with it
_alternatives = re.compile(r"\[[^\[\]]*\|[^\[\]]*\]")


class Inject(EditWithStrength):
    """Injects a donor into chosen blocks: the text of another prompt, or its hidden states (activation patching).

    on: `context` (what cross-attention reads), `hidden` (a block's input, from the donor's own pass on the same
    latents), or `both`.
    mode, for the context: `mix` the outputs of two cross-attentions, one to each text, `append` the donor's tokens to
    the prompt's with weight `strength`, or blend `tokens` position by position.
    operation, for tokens and hidden states a with the donor's b at strength s: `blend` (1 - s) a + s b, `replace` b
    wherever s is above 0, `add` a + s b.
    words: limits mode `tokens` to the positions of these words of the prompt.
    difference: first moves the donor to exactly this relative L2 distance from the prompt (raw embeddings); `amplify`
    chooses the method. boost: multiplies the difference after projection. keep_norm: whether the two keep the norm of
    each token; by default, boost does and difference does not.
    donor_negative: with branch `both`, the donor for the unconditional pass.
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
        # With `on: both` and modes mix or append, the strength is also a share or a weight, so it must be in 0 to 1.
        adds_alone = self.operation == "add" and (self.mode == "tokens" or self.on == "hidden")
        return (-10.0, 10.0) if adds_alone else (0.0, 1.0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.operation != "blend" and self.on == "context" and self.mode != "tokens":
            raise ValueError(f"operation {self.operation} needs mode: tokens or on: hidden")
        if self.mode != "mix" and self.on == "hidden":
            raise ValueError(f"mode {self.mode} applies to the context; it needs on: context")
        if self.words and (self.mode != "tokens" or self.on != "context"):
            raise ValueError("words needs mode: tokens and on: context")
        if self.boost is not None and self.on == "hidden":
            raise ValueError("boost multiplies a difference of contexts; it needs on: context")
        if self.amplify != "push_apart" and self.difference is None:
            raise ValueError(f"amplify {self.amplify} needs a difference to reach; add difference: 0.6")
        if self.keep_norm is not None and self.difference is None and self.boost is None:
            raise ValueError("keep_norm needs difference or boost")
        if self.donor_negative is not None and self.branch != "both":
            raise ValueError("donor_negative is the donor of the uncond pass; it needs branch: both")
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

    def resolve(self, inputs: ResolveInputs) -> Resolved:
        """Return the donor of each branch, at the requested difference. Raises RecipeError if it cannot be reached."""
        texts, main = inputs.texts, inputs.main
        found = self._encoded(texts, inputs.where)
        for note in filter(None, (found.note, *map(_unread_syntax, self.donor.prompts()))):
            inputs.note(note)
        own = frozenset((self.donor.prompt,)) if self.donor.prompt is not None else frozenset()
        donor: dict[Branch, PlannedText] = {}
        for branch in BRANCHES:
            embedding_LD, prompts = found.embedding, own
            if branch == "uncond" and self.donor_negative is not None:
                embedding_LD, prompts = texts.raw[self.donor_negative], frozenset((self.donor_negative,))
            donor[branch] = inputs.deduplicated(PlannedText(embedding_LD, prompts, self.boosted(main[branch])))
        if self.mode == "tokens" and self.on != "hidden":
            tokens, own_tokens = len(donor["cond"].embedding), len(main["cond"].embedding)
            if self.branch != "uncond" and tokens < SHORT_DONOR * own_tokens:
                inputs.note(
                    f"the donor has {tokens} tokens and the prompt {own_tokens}, so most of the prompt is blended "
                    "with padding; mode: mix blends attention outputs instead of tokens"
                )
        only_block_0 = not inputs.table_SL[:, 1:].any()
        idle = [self._idle_reason(donor[branch], main[branch], only_block_0) for branch in self.branches]
        if inputs.table_SL.any() and all(idle):
            inputs.notes.append(f"{inputs.where} changes nothing: {idle[0]}")
        return Resolved(donor=donor)

    def boosted(self, main: PlannedText) -> Boost | None:
        """Return the boost of the donor's context relative to `main`; None if the edit has no boost."""
        keep_norm = True if self.keep_norm is None else self.keep_norm
        return None if self.boost is None else Boost(main, self.boost, keep_norm)

    def _idle_reason(self, donor: PlannedText, main: PlannedText, only_block_0: bool) -> str:
        """Return why the edit changes nothing; empty if it does. only_block_0: whether it acts in block 0 only."""
        if self.operation == "add" and (self.mode == "tokens" or self.on != "context"):
            return ""
        if self.on == "hidden" and only_block_0 and not self.donor.after_block:
            return "the hidden states that enter block 0 do not depend on the text"
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

    # ---- the one-line form

    blocks_word: ClassVar[str] = "into"
    reserved: ClassVar[tuple[str, ...]] = ("where", "after", "after_block")
    readers: ClassVar[Mapping[str, Reader]] = {
        "donor": lambda line, token: _donor_in(token) or contents(token.text),
        "words": lambda line, token: items_of(token.text),
    }

    @classmethod
    def read_beginning(cls, line: Line) -> None:
        if not line.here() or is_setting(line.here()):
            return  # the donor may follow as donor=...; if it does not, the checks of the fields report it
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
            inner = _donor_in(Token(given.text.rstrip(","), given.at))
            if inner is None:
                break  # a field of the edit
            line.take()
            names[name] = inner
        if not names:
            line.fail(token or line.end(), "'where' is followed by the names' donors", "where beach='a beach'")
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
    """Return a note on a donor's text that looks like a file or a template but is read as a plain prompt; else ""."""
    if text.rstrip().endswith(".safetensors"):
        name = text.strip()
        return f"the donor is the text {text!r}, not a file; a file is {{embedding: {name}}} or file({quoted(name)})"
    if _alternatives.search(text):
        return f"the donor {text!r} is used literally, including the brackets; sweep the donor for alternatives"
    return ""


def _donor_in(token: Token) -> dict[str, Any] | None:
    """Read a donor: a prompt in quotes, a file, or an embedding in the catalog. None for anything else."""
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
