"""A donor: what an injection brings into a block."""

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

    expression: as `edit/expression.py` reads it; names: what its names mean, prompts or `{embedding: file}`.
    embedding: a .safetensors file with one token matrix [L, D] of the model's own text encoder; sha256 is filled in for
    the recipe. after_block: inject the state that the donor's own pass has after this many blocks, in every chosen
    block, instead of the state at each block's own place.
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
            raise ValueError("names belong to an expression, and there is none")
        if self.sha256 is not None and self.embedding is None:
            raise ValueError("sha256 belongs to an embedding, and there is none")
        if self.expression is not None:
            with as_value_error():
                parsed = parse_expression(self.expression)
                parsed.check_names(self.names)
            unused = [name for name in self.names if name not in parsed.names]
            if unused:
                raise ValueError(f"the expression does not use {unused[0]!r}; {nearest(unused[0], parsed.names)}")
            for name, inner in self.names.items():
                if inner.expression is not None or inner.after_block is not None:
                    raise ValueError(f"the name {name!r} stands for a prompt or a stored embedding, nothing else")
        return self

    def prompts(self) -> list[str]:
        """The texts that it is made of."""
        if self.prompt is not None:
            return [self.prompt]
        return [text for inner in self.names.values() for text in inner.prompts()]

    def files(self) -> list[Donor]:
        """Itself or its parts that are stored embeddings."""
        return [self] if self.embedding is not None else [d for inner in self.names.values() for d in inner.files()]
