"""`Catalog`: everything a workspace has stored and computed, in one object.

    catalog = Catalog()                            # the default workspace's; or a workspace, or a .duckdb file
    key = catalog.put(embedding, prompt="a red circle", model="marbles")
    made = catalog.compute("expression", {"a": key, "b": other}, expression="a + 0.5*b", label="warmer")
    catalog.similar(made.key).to_pandas()

Tables are returned as Arrow tables: `.to_pandas()`, `.to_pylist()`. Every call opens the file only briefly, so several
programs can use one catalog; a call waits up to `wait_seconds` for the others and then raises CatalogBusy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wanscope.catalog import embeddings, takes, upkeep
from wanscope.catalog.connect import NAME, WAIT_SECONDS, Database
from wanscope.catalog.content import Tokens
from wanscope.catalog.embeddings import Embedding, New
from wanscope.catalog.files import EmbeddingFiles
from wanscope.catalog.rows import count, find_key, insert, select
from wanscope.catalog.turns import forget_lost
from wanscope.errors import EmbeddingNotFound, RequestError
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from wanscope.catalog.exchange import Exchanged
    from wanscope.catalog.operations import Lineage, Operation
    from wanscope.catalog.search import Index

__all__ = ["Catalog", "Embedding", "New"]

FOLDER = "embeddings"


class Catalog:
    """The catalog of a workspace. Nothing is created before something is written.

    path: a workspace or its folder, a .duckdb file, or None for the default workspace. wait_seconds: how long to wait
    for other programs that use the file. Raises RequestError where the path cannot be a catalog.
    """

    def __init__(self, path: str | Path | Workspace | None = None, *, wait_seconds: float = WAIT_SECONDS) -> None:
        if isinstance(path, str | Path) and Path(path).suffix == ".duckdb":
            file = Path(os.path.expanduser(path)).absolute()
            if file.is_dir():
                raise RequestError(f"{file} is a folder", "a catalog is a file; name the workspace instead")
            self.workspace = Workspace(file.parent)
        else:
            self.workspace = Workspace.find(path)
            file = self.workspace.folder / NAME
        self.db = Database(file, wait_seconds)
        self.files = EmbeddingFiles(file.parent / FOLDER)
        self._index: Index | None = None

    def __repr__(self) -> str:
        return f"Catalog({str(self.db.path)!r})"

    @property
    def path(self) -> Path:
        """The catalog's .duckdb file."""
        return self.db.path

    @property
    def exists(self) -> bool:
        """Whether anything has been written yet."""
        return self.db.path.exists()

    # embeddings

    def put(self, values: Any, **about: Any) -> str:
        """Store a token matrix [L, D] and return its key; one that is already stored is not stored again.

        about: prompt, model, encoder, environment, space, source, label, tags, seconds (see `New`). Raises RecipeError
        for values that are not a finite float matrix.
        """
        return self.put_many([New(values, **about)])[0]

    def put_many(self, items: Iterable[New]) -> list[str]:
        """Store several, in batches of one transaction each; return the keys in the same order."""
        return embeddings.put_many(self.db, self.files, items)

    def get(self, name: str, *, count: bool = True) -> Embedding:
        """Return an embedding by its key, the start of its key, its label or its prompt.

        count: record that it was used. Raises EmbeddingNotFound, or CatalogDamaged where its file is not as written.
        """
        return embeddings.get(self.db, self.files, name, count=count)

    def save(self, name: str, path: str | Path) -> Path:
        """Write an embedding as a .safetensors file, which edits can use as a donor; return its path.

        The file has one matrix [L, D] in the embedding's dtype.
        """
        return embeddings.save(self.get(name), Path(os.path.expanduser(path)))

    def stored(self, prompts: Sequence[str], encoder: str, environments: Sequence[str]) -> dict[str, Embedding]:
        """Return the stored embeddings of prompts by prompt, from this encoder and one of these environments.

        They count as used.
        """
        return embeddings.stored(self.db, self.files, prompts, encoder, environments)

    def annotate(
        self, name: str, *, label: str | None = None, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> str:
        """Set a label ('' removes it), add and remove tags; return the key."""
        return embeddings.annotate(self.db, name, label, add, remove)

    def prompts(self, key: str) -> list[str]:
        """Return the prompts that an embedding is stored for."""
        with self.db.reading() as con:
            found = con.execute("SELECT DISTINCT prompt FROM embedding_prompts WHERE key = ? ORDER BY prompt", [key])
            return [prompt for (prompt,) in found.fetchall()]

    def tags(self, key: str) -> list[str]:
        """Return the tags of an embedding."""
        with self.db.reading() as con:
            found = con.execute("SELECT tag FROM embedding_tags WHERE key = ? ORDER BY tag", [key]).fetchall()
            return [tag for (tag,) in found]

    def list(self, *, tags: Sequence[str] = (), limit: int | None = None) -> pa.Table:
        """Return embeddings, newest first; with `tags`, those that have all of them."""
        with self.db.reading() as con:
            return embeddings.listed(con, tags=tags, limit=limit)

    # operations

    def compute(
        self,
        operation: str,
        inputs: Sequence[Any] | Mapping[str, Any],
        *,
        label: str | None = None,
        tags: Sequence[str] = (),
        **parameters: Any,
    ) -> Embedding:
        """Apply a vector operation to stored embeddings; store and return the result, and record how it was made.

        operation: difference, weighted_sum, product, normalize, interpolate, expression, amplify or boost, with the
        parameters of the functions in `wanscope.edit`. inputs: keys, labels, prompts or values [L, D]; by name for an
        expression. Raises RecipeError for an unknown operation or wrong parameters, EmbeddingNotFound for an input.
        """
        from wanscope.catalog.operations import compute

        key, _ = compute(self.db, self.files, operation, inputs, parameters, label=label, tags=tags)
        return self.get(key, count=False)

    def operations(self, limit: int | None = None) -> list[Operation]:
        """Return the recorded operations, newest first."""
        from wanscope.catalog.operations import operations

        with self.db.reading() as con:
            return operations(con)[:limit]

    def lineage(self, name: str) -> Lineage:
        """Return the operations that made an embedding, back to the embeddings that were encoded."""
        from wanscope.catalog.operations import lineage

        with self.db.reading() as con:
            return lineage(con, name)

    def recompute(self, name: str) -> list[tuple[Operation, bool]]:
        """Repeat the operations that made an embedding, or one operation by its id.

        Returns each operation and whether it gave the stored bytes again.
        """
        from wanscope.catalog.operations import recompute

        return recompute(self.db, self.files, name)

    # search

    def search(self, text: str = "", *, tags: Sequence[str] = (), limit: int = 50) -> pa.Table:
        """Return embeddings whose prompt or label contains every word of `text`, and that have all `tags`."""
        from wanscope.catalog.search import by_words

        with self.db.reading() as con:
            return by_words(con, text, tags, limit)

    def similar(
        self,
        query: Any,
        *,
        count: int = 20,
        metric: Literal["cosine", "l2"] = "cosine",
        tokens: bool = False,
        any_encoder: bool = False,
    ) -> pa.Table:
        """Return the nearest stored embeddings, best first, with exact cosine and L2 distance of mean tokens.

        query: the key, label or prompt of a stored embedding, an Embedding, or values [L, D]. tokens: reorder the best
        ones by their whole token matrices. Only embeddings of the query's encoder and space are compared, unless
        `any_encoder` is set or the query is an array of values.
        """
        import pyarrow as pa

        from wanscope.catalog import search

        query_tokens, encoding, own_key = self._query(query)
        rows = search.similar(
            self._searcher(),
            query_tokens,
            metric=metric,
            count=count,
            tokens=tokens,
            encoding=None if any_encoder else encoding,
            without=own_key,
        )
        schema = pa.schema(
            [("key", pa.string()), ("cosine", pa.float64()), ("l2", pa.float64())]
            + ([("token_cosine", pa.float64()), ("token_l2", pa.float64())] if tokens else [])
            + [("prompt", pa.string()), ("label", pa.string()), ("tokens", pa.int32()), ("dim", pa.int32())]
            + [("model", pa.string())]
        )
        return pa.Table.from_pylist(rows, schema)

    def _query(self, query: Any) -> tuple[Tokens, tuple[str, str] | None, str | None]:
        """Return the query's values, its (encoder, space), and its own key."""
        if isinstance(query, str):
            query = self.get(query, count=False)
        if isinstance(query, Embedding):
            return query.tokens, (query.row["encoder"], query.row["space"]), query.key
        return Tokens.of(query), None, None

    def _searcher(self) -> Index:
        from wanscope.catalog.search import Index

        if self._index is None:
            self._index = Index(self.db, self.files)
        return self._index

    def duplicates(self, threshold: float | None = None, limit: int = 100) -> pa.Table:
        """Return equal values that are stored more than once, for several models or encoders.

        threshold: return instead the pairs whose mean tokens have at least this cosine, at most `limit` of them.
        """
        import pyarrow as pa

        from wanscope.catalog import search

        if threshold is None:
            with self.db.reading() as con:
                return search.same_content(con)
        rows = search.near_duplicates(self._searcher(), threshold, limit)
        names = [("key_a", pa.string()), ("key_b", pa.string()), ("cosine", pa.float64()), ("l2", pa.float64())]
        return pa.Table.from_pylist(rows, pa.schema(names))

    def similarities(self, names: Sequence[str]) -> pa.Table:
        """Return cosine and L2 distance for every pair of some embeddings, of mean tokens and of token matrices."""
        import pyarrow as pa

        from wanscope.catalog.search import similarity_table

        if len(set(names)) < 2:
            raise EmbeddingNotFound(
                "there is nothing to compare", "a table of similarities needs at least two embeddings"
            )
        with self.db.reading() as con:
            keys = [find_key(con, name) for name in names]
        return pa.Table.from_pylist(similarity_table(self.db, self.files, keys))

    # takes and results

    def index(self, *, rebuild: bool = False) -> takes.Indexed:
        """Update the rows of takes and studies from their folders.

        rebuild: start from nothing and add rows for embedding files that have none; a catalog file that cannot be
        opened is moved away first.
        """
        from dataclasses import replace

        from wanscope.catalog.exchange import adopt

        aside = self.db.set_aside() if rebuild else None
        found = takes.index(self.db, self.workspace, rebuild=rebuild)
        if not rebuild:
            return found
        adopted, unreadable = adopt(self.db, self.files)
        with self.db.writing() as con:
            forget_lost(con, self.db.path)
        return replace(
            found,
            adopted=adopted,
            set_aside=None if aside is None else str(aside),
            unreadable={**found.unreadable, **{name: name for name in unreadable}},
        )

    def takes(self) -> pa.Table:
        """Return the index of takes, newest first."""
        with self.db.reading() as con:
            return select(con, "SELECT * FROM takes ORDER BY made DESC NULLS LAST, id")

    def add_metrics(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Store figures of takes; return how many. They replace earlier ones.

        Each row has take, name, value, unit, source, and step where the figure is for a step.
        """
        full = [{"step": -1, "unit": "", **row} for row in rows]
        with self.db.writing() as con:
            insert(con, "metrics", full, new=False)
        return len(full)

    def add_atlas(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Store measured effects of blocks, as rows of the table atlas; return how many. They replace earlier ones."""
        full = [dict(row) for row in rows]
        with self.db.writing() as con:
            insert(con, "atlas", full, new=False)
        return len(full)

    # maintenance

    def stats(self) -> dict[str, Any]:
        """Return counts, sizes, the sources of savings, and timings."""
        with self.db.reading() as con:
            return upkeep.stats(con, self.db)

    def analyze(self, name: str) -> dict[str, float]:
        """Return figures of one embedding, which are computed once and stored."""
        return upkeep.analyze(self.db, self.files, name)[1]

    def check(self, *, deep: bool = False) -> upkeep.Check:
        """Compare rows and files; `deep` reads every file."""
        return upkeep.check(self.db, self.files, deep=deep)

    def cleanup(self, **conditions: Any) -> upkeep.Cleanup:
        """Remove embeddings by age and use; by default only report which (see `upkeep.cleanup`)."""
        return upkeep.cleanup(self.db, self.files, **conditions)

    def sql(self, query: str) -> pa.Table:
        """Return the rows of one SELECT over the tables; it can read nothing else and change nothing."""
        from wanscope.catalog.jail import run_sql

        return run_sql(self.db, query)

    def count(self, table: str) -> int:
        """Return the number of rows of a table. Raises RequestError where there is no such table."""
        if table not in upkeep.TABLES:
            raise RequestError(f"there is no table {table!r}", ", ".join(upkeep.TABLES))
        with self.db.reading() as con:
            return count(con, table)

    # sharing

    def export(self, folder: str | Path, *, anonymous: bool = False, half: bool = False) -> Exchanged:
        """Export everything as Parquet to a new folder, with a data card.

        anonymous: without prompts and other text. half: values as fp16 numbers.
        """
        from wanscope.catalog.exchange import export

        return export(self.db, self.files, Path(folder), anonymous=anonymous, half=half)

    def import_(self, folder: str | Path, *, origin: str | None = None) -> Exchanged:
        """Import an export. origin: the name under which its rows are listed; the folder's name by default."""
        from wanscope.catalog.exchange import read_export

        return read_export(self.db, self.files, Path(folder), origin=origin)

    def merge(self, other: str | Path | Workspace | Catalog, *, origin: str | None = None) -> Exchanged:
        """Import another catalog: a workspace, its .duckdb file, or a Catalog."""
        from wanscope.catalog.exchange import merge

        theirs = other if isinstance(other, Catalog) else Catalog(other, wait_seconds=self.db.wait_seconds)
        return merge(self.db, self.files, theirs.db, theirs.files, origin or theirs.workspace.folder.name)
