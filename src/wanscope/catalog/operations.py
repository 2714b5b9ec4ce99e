"""Vector operations: computed on stored embeddings, stored with inputs and parameters, and repeatable as a check.

The functions are those of `wanscope.edit`; each operation here defines how one is called. Inputs are used as stored
(trimmed to real tokens, in the encoder's dtype), so that the same call gives the same bytes.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wanscope import __version__
from wanscope.catalog.connect import Database
from wanscope.catalog.content import Tokens
from wanscope.catalog.embeddings import Embedding, New, put_many
from wanscope.catalog.files import EmbeddingFiles
from wanscope.catalog.rows import find_key, insert, now, one, select
from wanscope.errors import CatalogDamaged, EmbeddingNotFound, RecipeError, nearest
from wanscope.spec.strict_json import read_json

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from torch import Tensor

Inputs = Sequence[tuple[str, "Tensor"]]
Function = Callable[..., tuple["Tensor", str]]


@dataclass(frozen=True)
class Operation:
    """One recorded operation: its name, its inputs as (name, key), its parameters and the key of its result."""

    id: str
    operation: str
    result: str
    inputs: tuple[tuple[str, str], ...]
    parameters: dict[str, Any]
    seconds: float
    note: str
    created: str

    def as_data(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        inputs = [{"name": name, "key": key} for name, key in self.inputs]
        return {**self.__dict__, "inputs": inputs}


@dataclass(frozen=True)
class Lineage:
    """Where an embedding comes from: the operations that made it, and the lineage of their inputs.

    shown: its label or prompt. there: whether it is still stored.
    """

    key: str
    shown: str
    there: bool
    operations: tuple[tuple[Operation, tuple[Lineage, ...]], ...] = field(default=())

    def as_data(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        made = [{**op.as_data(), "from": [x.as_data() for x in inputs]} for op, inputs in self.operations]
        return {"key": self.key, "shown": self.shown, "there": self.there, "operations": made}


# operations


def _difference(inputs: Inputs, **parameters: Any) -> tuple[Tensor, str]:
    from wanscope.edit import embedding_algebra

    result = embedding_algebra.difference(*_values(inputs, 2), **parameters)
    return result.embedding, result.note


def _weighted_sum(inputs: Inputs, *, weights: Sequence[float]) -> tuple[Tensor, str]:
    from wanscope.edit import embedding_algebra

    result = embedding_algebra.weighted_sum(_values(inputs), weights)
    return result.embedding, result.note


def _product(inputs: Inputs) -> tuple[Tensor, str]:
    from wanscope.edit import embedding_algebra

    result = embedding_algebra.product(_values(inputs))
    return result.embedding, result.note


def _normalize(inputs: Inputs, *, length: float = 1.0) -> tuple[Tensor, str]:
    from wanscope.edit import embedding_algebra

    result = embedding_algebra.normalize(_values(inputs, 1)[0], length)
    return result.embedding, result.note


def _interpolate(
    inputs: Inputs, *, steps: int, index: int, method: Any = "linear", include_endpoints: bool = True
) -> tuple[Tensor, str]:
    from wanscope.edit import embedding_algebra

    path = embedding_algebra.interpolate(_values(inputs), steps, method, include_endpoints=include_endpoints)
    if not 0 <= index < steps:
        raise RecipeError(f"index {index} is not on the path", f"it has the points 0 to {steps - 1}", "index=0")
    return path.embeddings[index], path.note


def _expression(inputs: Inputs, *, expression: str) -> tuple[Tensor, str]:
    from wanscope.edit.expression import check_name, parse_expression

    for name, _ in inputs:
        check_name(name)
    result = parse_expression(expression).evaluate(dict(inputs))
    return result.embedding, result.note


def _amplify(inputs: Inputs, *, target: float, **parameters: Any) -> tuple[Tensor, str]:
    from wanscope.edit.amplify import amplify

    main_LD, donor_LD, pad_D = _pair(inputs)
    result = amplify(main_LD, donor_LD, target, pad_D=pad_D, **parameters)
    return result.embedding, result.describe()


def _boost(inputs: Inputs, *, factor: float, keep_norm: bool = False) -> tuple[Tensor, str]:
    from wanscope.edit.amplify import boost

    main_LD, donor_LD, pad_D = _pair(inputs)
    result = boost(main_LD, donor_LD, factor, keep_norm=keep_norm, pad_D=pad_D)
    return result.context, result.describe()


FUNCTIONS: dict[str, Function] = {
    "difference": _difference,
    "weighted_sum": _weighted_sum,
    "product": _product,
    "normalize": _normalize,
    "interpolate": _interpolate,
    "expression": _expression,
    "amplify": _amplify,
    "boost": _boost,
}
NAMES = {"difference": ("a", "b"), "amplify": ("main", "donor", "pad"), "boost": ("main", "donor", "pad")}


def _values(inputs: Inputs, count: int | None = None) -> list[Tensor]:
    if count is not None and len(inputs) != count:
        raise RecipeError(f"{len(inputs)} embeddings are given", f"this operation takes {count}")
    return [value for _, value in inputs]


def _pair(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return main prompt [L, D], donor [L, D], and the padding token [D] for where one of them has no token."""
    values = _values(inputs)
    if len(values) not in (2, 3):
        raise RecipeError(
            f"{len(values)} embeddings are given", "this takes a main prompt, a donor, and optionally the padding"
        )
    return values[0], values[1], values[2][0] if len(values) == 3 else None


# computing and recording


def compute(
    db: Database,
    files: EmbeddingFiles,
    operation: str,
    inputs: Sequence[Any] | Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    label: str | None = None,
    tags: Sequence[str] = (),
) -> tuple[str, str]:
    """Compute an operation, store and record its result; return (the result's key, the operation's id).

    inputs: names of stored embeddings (key, label, prompt), Embeddings, or values [L, D], which are stored first; by
    name for an expression. Raises RecipeError for an unknown operation or wrong inputs or parameters.
    """
    if operation not in FUNCTIONS:
        raise RecipeError(f"{operation!r} is not an operation", nearest(operation, FUNCTIONS), "difference")
    named = list(inputs.items()) if isinstance(inputs, Mapping) else _named(operation, inputs)
    keys = _keys(db, files, [value for _, value in named])
    found = {key: files.read(key) for key in dict.fromkeys(keys)}
    headers = [found[key][1] for key in keys]

    began = time.perf_counter()
    value_LD, note = _call(operation, [(n, found[k][0]) for (n, _), k in zip(named, keys, strict=True)], parameters)
    seconds = time.perf_counter() - began
    tokens = Tokens.of(value_LD)
    first = headers[0]
    same = all((h.model, h.encoder, h.space) == (first.model, first.encoder, first.space) for h in headers)
    model, encoder = (first.model, first.encoder) if same else ("", "")
    new = New(
        tokens,
        model=model,
        encoder=encoder,
        space=first.space,
        source="operation",
        label=label,
        tags=tuple(tags),
    )
    (result,) = put_many(db, files, [new])
    record = _record(operation, named, keys, parameters, result, seconds, note, found, tokens)
    with db.writing() as con:
        for table, rows in record.items():
            insert(con, table, rows)
    return result, record["vector_operations"][0]["id"]


def _named(operation: str, inputs: Sequence[Any]) -> list[tuple[str, Any]]:
    names = NAMES.get(operation, ())
    return [(names[i] if i < len(names) else f"x{i + 1}", value) for i, value in enumerate(inputs)]


def _keys(db: Database, files: EmbeddingFiles, values: Sequence[Any]) -> list[str]:
    with db.reading() as con:
        keys = [
            value.key if isinstance(value, Embedding) else find_key(con, value) if isinstance(value, str) else None
            for value in values
        ]
    loose = [i for i, key in enumerate(keys) if key is None]
    for i, key in zip(loose, put_many(db, files, [New(values[i]) for i in loose]), strict=True):
        keys[i] = key
    return [key for key in keys if key is not None]


def _call(operation: str, inputs: Sequence[tuple[str, Tokens]], parameters: Mapping[str, Any]) -> tuple[Tensor, str]:
    try:
        return FUNCTIONS[operation]([(name, tokens.tensor()) for name, tokens in inputs], **parameters)
    except TypeError as error:  # a parameter that the operation does not have, or lacks
        if "argument" not in str(error):
            raise
        why = str(error).partition("() ")[2] or str(error)
        raise RecipeError(f"the operation {operation} cannot be called like this", why, "docs/catalog.md") from None


def _record(
    operation: str,
    named: Sequence[tuple[str, Any]],
    keys: Sequence[str],
    parameters: Mapping[str, Any],
    result: str,
    seconds: float,
    note: str,
    found: Mapping[str, tuple[Tokens, Any]],
    tokens: Tokens,
) -> dict[str, list[dict[str, Any]]]:
    import torch

    made = uuid.uuid4().hex[:16]
    row = {
        "id": made,
        "operation": operation,
        "result": result,
        "created": now(),
        "seconds": seconds,
        "bytes": sum(len(found[key][0].data) for key in keys) + len(tokens.data),
        "note": note,
        "wanscope": __version__,
        "torch": str(torch.__version__),
    }
    inputs = [
        {"operation": made, "position": i, "name": name, "key": key}
        for i, ((name, _), key) in enumerate(zip(named, keys, strict=True))
    ]
    settings = [{"operation": made, "name": k, "value": json.dumps(v)} for k, v in sorted(parameters.items())]
    return {"vector_operations": [row], "operation_inputs": inputs, "operation_parameters": settings}


# looking back


def operations(con: DuckDBPyConnection, where: str = "true", parameters: Sequence[Any] = ()) -> list[Operation]:
    """Return recorded operations, newest first. where, parameters: an SQL condition on vector_operations."""
    rows = select(
        con,
        "SELECT id, operation, result, seconds, note, created FROM vector_operations "
        f"WHERE {where} ORDER BY created DESC, id",
        parameters,
    ).to_pylist()
    ids = [[row["id"] for row in rows]]
    inputs = con.execute(
        "SELECT operation, name, key FROM operation_inputs WHERE operation IN (SELECT unnest(?)) ORDER BY position", ids
    ).fetchall()
    settings = con.execute(
        "SELECT operation, name, value FROM operation_parameters WHERE operation IN (SELECT unnest(?)) ORDER BY name",
        ids,
    ).fetchall()
    return [
        Operation(
            row["id"],
            row["operation"],
            row["result"],
            tuple((name, key) for op, name, key in inputs if op == row["id"]),
            {name: read_json(value) for op, name, value in settings if op == row["id"]},
            row["seconds"],
            row["note"],
            row["created"].isoformat(sep=" ", timespec="seconds"),
        )
        for row in rows
    ]


def lineage(con: DuckDBPyConnection, name: str) -> Lineage:
    """Return where an embedding comes from, back to the embeddings that were encoded."""
    return _lineage(con, find_key(con, name), frozenset())


def _lineage(con: DuckDBPyConnection, key: str, above: frozenset[str]) -> Lineage:
    row = one(con, "SELECT label, prompt FROM embeddings WHERE key = ?", [key])
    shown = "" if row is None else row[0] or row[1] or ""
    if key in above:  # an operation that changed nothing has its input as its result
        return Lineage(key, shown, row is not None)
    made = [
        (op, tuple(_lineage(con, source, above | {key}) for _, source in op.inputs))
        for op in operations(con, "result = ?", [key])
        if key not in {source for _, source in op.inputs}
    ]
    return Lineage(key, shown, row is not None, tuple(made))


def recompute(db: Database, files: EmbeddingFiles, which: str) -> list[tuple[Operation, bool]]:
    """Repeat the operations that made an embedding, oldest first, on their stored inputs.

    which: an operation's id, or an embedding. Returns each operation and whether it gave the stored bytes again.
    Raises EmbeddingNotFound where there is no operation, CatalogDamaged where an input no longer exists.
    """
    with db.reading() as con:
        one = operations(con, "starts_with(id, ?)", [which]) if len(which) >= 6 else []
        wanted = one or _operations_of(lineage(con, which))
    if not wanted:
        raise EmbeddingNotFound(f"{which} was not computed", "no operation of the catalog made it", "wanscope db ops")
    out = []
    for op in wanted:
        for name, key in op.inputs:
            if files.size(key) is None:
                raise CatalogDamaged(f"operation {op.id} cannot be repeated", f"its input {name} ({key}) was removed")
        inputs = [(name, files.read(key)[0]) for name, key in op.inputs]
        value_LD, _ = _call(op.operation, inputs, op.parameters)
        out.append((op, Tokens.of(value_LD) == files.read(op.result)[0]))
    return out


def _operations_of(node: Lineage) -> list[Operation]:
    """Return the operations of a lineage, each after those that made its inputs."""
    found: dict[str, Operation] = {}

    def visit(node: Lineage) -> None:
        for op, inputs in node.operations:
            for source in inputs:
                visit(source)
            found.setdefault(op.id, op)

    visit(node)
    return list(found.values())
