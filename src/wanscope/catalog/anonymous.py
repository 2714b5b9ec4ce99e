"""Anonymous exports: without prompts, labels, tags, names and recipes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from wanscope.spec.strict_json import read_json

if TYPE_CHECKING:
    import pyarrow as pa

# The values that replace a table's columns, and the tables that consist of text only.
EMPTIED: dict[str, dict[str, Any]] = {
    "embeddings": {"prompt": None, "label": None, "model": None, "origin": ""},
    "takes": {
        "prompt": None,
        "negative": None,
        "recipe": None,
        "damage": "",
        "model": None,
        "variant": None,
        "origin": "",
    },
    "edits": {"edit": "{}"},
    "vector_operations": {"note": ""},
}
DROPPED = ("embedding_prompts", "embedding_tags", "variations")
_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def without_words(rows: pa.Table, tables: dict[str, pa.Table]) -> tuple[pa.Table, dict[str, pa.Table]]:
    """Return the rows of embeddings and of all other tables without text that people wrote.

    A model's name is kept only where it is a known variant, because the name of a folder could identify a person.
    """
    out = {name: table.slice(0, 0) if name in DROPPED else _emptied(name, table) for name, table in tables.items()}
    out["operation_inputs"], out["operation_parameters"] = _renamed(tables)
    return _emptied("embeddings", rows), out


def _emptied(name: str, table: pa.Table) -> pa.Table:
    import pyarrow as pa

    for column, value in EMPTIED.get(name, {}).items():
        index = table.schema.get_field_index(column)
        kind = table.schema.field(index)
        if column in ("model", "variant"):
            # An embedding's model is part of its key and stays.
            values = [_known_model(model) if name == "takes" else model for model in table[column].to_pylist()]
        else:
            values = [value] * table.num_rows
        table = table.set_column(index, kind, pa.array(values, kind.type))
    return table


def _known_model(model: str | None) -> str | None:
    from wanscope.wan.variants import VARIANTS

    return model if model in VARIANTS else None


def _renamed(tables: dict[str, pa.Table]) -> tuple[pa.Table, pa.Table]:
    """Return inputs and parameters of operations with neutral names x1, x2, ...; expressions are renamed with them."""
    import pyarrow as pa

    inputs, parameters = tables["operation_inputs"], tables["operation_parameters"]
    new: dict[tuple[str, str], str] = {}
    names = []
    for operation, position, name in zip(
        *(inputs[c].to_pylist() for c in ("operation", "position", "name")), strict=True
    ):
        new[operation, name] = f"x{position + 1}"
        names.append(f"x{position + 1}")
    values = []
    for operation, name, value in zip(
        *(parameters[c].to_pylist() for c in ("operation", "name", "value")), strict=True
    ):
        if name == "expression":
            text = read_json(value)
            text = _name.sub(lambda match, op=operation: new.get((op, match[0]), match[0]), text)
            value = json.dumps(text)
        values.append(value)
    at_name, at_value = inputs.schema.get_field_index("name"), parameters.schema.get_field_index("value")
    return (
        inputs.set_column(at_name, inputs.schema.field(at_name), pa.array(names, pa.string())),
        parameters.set_column(at_value, parameters.schema.field(at_value), pa.array(values, pa.string())),
    )
