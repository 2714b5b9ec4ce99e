"""A catalog consists of plain tables: whatever else a DuckDB file may have is refused before it is used.

A view in place of a table, or a macro with the name of a built-in function, would run its author's SQL with the rights
of whoever reads the table: `CREATE VIEW takes AS SELECT * FROM read_text('/home/...')` copies a file into the catalog
that merges it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# `system.main.` keeps a macro of the file from standing in for DuckDB's own list of macros.
_FOREIGN = """
SELECT 'the view ' || view_name FROM system.main.duckdb_views() WHERE NOT internal
UNION ALL
SELECT 'the macro ' || function_name FROM system.main.duckdb_functions()
WHERE NOT internal AND database_name NOT IN ('system', 'temp')
UNION ALL
SELECT 'a computed column in ' || table_name FROM system.main.duckdb_tables()
WHERE NOT internal AND sql ILIKE '%GENERATED ALWAYS AS%'
"""


def foreign_objects(con: DuckDBPyConnection) -> list[str]:
    """Return what the file has in addition to plain tables, sorted; an empty list for a catalog of wanscope."""
    return sorted({name for (name,) in con.execute(_FOREIGN).fetchall()})
