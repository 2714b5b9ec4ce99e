"""Parquet files that somebody else may have made: what they claim is bounded before memory is taken for it.

A file of 100 kB can hold 20 million equal rows, and a text of a megabyte in each of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wanscope.errors import CatalogDamaged

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FREE_ROWS, MOST_ROWS_PER_BYTE = 10_000, 8  # rows of ours differ: each takes about a byte or more
FREE_BYTES, MOST_RATIO = 1 << 28, 100  # of what the rows take in memory


def read_bounded(path: Path) -> pa.Table:
    """Return a table of ours. Raises CatalogDamaged where its rows would take far more than the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = open_bounded(path).schema_arrow
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_binary(field.type)]
    # Equal texts are read once, so that their sizes can be added up before each row gets its own.
    table = pq.read_table(path, read_dictionary=texts)
    shared = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    total = table.nbytes + sum(_expanded(table[name]) for name in shared)
    _check(path, total, "bytes", max(FREE_BYTES, MOST_RATIO * path.stat().st_size))
    plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    return table.cast(pa.schema(plain))


def open_bounded(path: Path) -> pq.ParquetFile:
    """Open a Parquet file. Raises CatalogDamaged where it claims far more rows or bytes than it has."""
    import pyarrow.parquet as pq

    file, size = pq.ParquetFile(path), path.stat().st_size
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    _check(path, file.metadata.num_rows, "rows", max(FREE_ROWS, MOST_ROWS_PER_BYTE * size))
    _check(path, sum(group.num_rows for group in groups), "rows", max(FREE_ROWS, MOST_ROWS_PER_BYTE * size))
    _check(path, sum(group.total_byte_size for group in groups), "bytes", max(FREE_BYTES, MOST_RATIO * size))
    return file


def _expanded(column: pa.ChunkedArray) -> int:
    """Return how many bytes the texts of a column take when each row has its own."""
    from pyarrow.compute import call_function  # the functions themselves are defined when the module is imported

    total = 0
    for chunk in column.chunks:
        lengths = call_function("binary_length", [chunk.dictionary]).cast("int64")
        total += call_function("sum", [lengths.take(chunk.indices)]).as_py() or 0
    return total


def _check(path: Path, found: int, unit: str, most: int) -> None:
    if found > most:
        raise CatalogDamaged(f"{path} is damaged", f"it claims {found} {unit} and can hold at most {most}")
