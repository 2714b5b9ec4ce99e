"""A donor: the text, embedding or state that an injection puts into a block."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_serializer, model_validator

from wanscope.edit.canonical_fields import as_value_error
from wanscope.edit.expression import parse_expression
from wanscope.edit.field_types import Text
from wanscope.errors import nearest
from wanscope.spec.settings import Spec


class Donor(Spec):
    """What is injected: a prompt, an expression over prompts and embeddings, or a stored embedding.

    expression: see `edit/expression.py`. names: the prompts or `{embedding: file}` that its names refer to.
    embedding: a .safetensors file with one token matrix [L, D] of the model's own text encoder, or the key, label or
    prompt of an embedding in the catalog. sha256 is filled in for the recipe. after_block: inject the hidden state that
    the donor's own pass has after this many blocks into every selected block, instead of its state at that block.
    """

    prompt: Text | None = None
    expression: str | None = None
    names: dict[str, Donor] = Field(default_factory=dict)
    embedding: str | None = None
    sha256: str | None = None
    after_block: Annotated[int, Field(ge=0, strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"prompt": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, handler: Any) -> Any:
        if self == Donor.model_construct(prompt=self.prompt):
            return self.prompt
        return {key: value for key, value in handler(self).items() if value is not None and value != {}}

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("prompt", "expression", "embedding") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a donor is exactly one of a prompt, an expression and an embedding")
        if self.expression is None and self.names:
            raise ValueError("names are only used with an expression")
        if self.sha256 is not None and self.embedding is None:
            raise ValueError("sha256 is only used with an embedding")
        if self.expression is not None:
            with as_value_error():
                parsed = parse_expression(self.expression)
                parsed.check_names(self.names)
            unused = [name for name in self.names if name not in parsed.names]
            if unused:
                raise ValueError(f"the expression does not use {unused[0]!r}; {nearest(unused[0], parsed.names)}")
            for name, inner in self.names.items():
                if inner.expression is not None or inner.after_block is not None:
                    raise ValueError(f"the name {name!r} can only refer to a prompt or a stored embedding")
        return self

    def prompts(self) -> list[str]:
        """Return the prompts that the donor is made of."""
        if self.prompt is not None:
            return [self.prompt]
        return [text for inner in self.names.values() for text in inner.prompts()]

    def files(self) -> list[Donor]:
        """Return the stored embeddings that the donor is made of."""
        return [self] if self.embedding is not None else [d for inner in self.names.values() for d in inner.files()]
