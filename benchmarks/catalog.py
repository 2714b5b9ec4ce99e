"""The speed of storing and searching in the catalog, the bytes per embedding, and the recall of searches.

    python benchmarks/catalog.py [--rows 100000] [--out benchmarks/results/catalog.md]

Inserting: token matrices [60, 4096] of Gaussian values, in bf16 (as from UMT5-XXL) and fp32, in batches.
Searching: the mean tokens of `--rows` prompts with 4096 dimensions, stored as one-token matrices (a search reads only
mean tokens). Clustered: centers and members with a decaying spectrum of effective rank about 300, like text embeddings.
I.i.d.: Gaussian, without structure that a compact vector could use. Recall at 20 is the share of the 20 nearest by the
full float32 mean tokens that a search returns. Every time is the median of warm searches, next to brute force by numpy
on the full vectors and by DuckDB on the compact ones, in the same process.

Needs about 25 kB per row on the disk of --folder and 40 kB per row of memory.

Shapes: rows are mean tokens, float32 [N, 4096].
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wanscope.catalog.catalog import Catalog, New
from wanscope.catalog.content import Tokens
from wanscope.catalog.search import CANDIDATES

TOKENS, DIM, PADDED = 60, 4096, 512
RANK = 380  # of the spectrum; with the clusters an effective rank of about 300
NEAREST = 20


def bf16(values: np.ndarray) -> Tokens:
    """Return values [L, D] as truncated bfloat16."""
    bits = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return Tokens("bfloat16", values.shape[0], values.shape[1], bits.tobytes())


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Return the median time of some work over several runs."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def inserting(folder: Path, count: int, batch: int, dtype: str) -> tuple[float, float]:
    """Return (embeddings per second, bytes per file); values are drawn before the clock starts."""
    rng = np.random.default_rng(0)
    draws = [rng.standard_normal((TOKENS, DIM), dtype=np.float32) * 0.1 for _ in range(8)]
    catalog = Catalog(folder)
    catalog.put(draws[0][:1])  # creates the file and imports DuckDB
    seconds = 0.0
    for start in range(0, count, batch):
        news = []
        for i in range(start, start + batch):
            values = np.roll(draws[i % 8], i, axis=1)  # different bytes with the same statistics
            news.append(New(bf16(values) if dtype == "bf16" else values, prompt=f"prompt {i}", encoder="e"))
        began = time.perf_counter()
        catalog.put_many(news)
        seconds += time.perf_counter() - began
    row = catalog.sql(f"SELECT avg(file_bytes) AS n FROM embeddings WHERE tokens = {TOKENS}").to_pylist()[0]
    return count / seconds, row["n"]


def clustered(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw clustered vectors, float32 [count, 4096]: 100 per cluster, with a common mean like text embeddings."""
    scale = np.exp(-np.arange(DIM) / RANK).astype(np.float32)
    centers = rng.standard_normal((max(1, count // 100), DIM), dtype=np.float32) * scale
    mean = rng.standard_normal(DIM, dtype=np.float32) * 3 * np.sqrt((scale**2).mean())
    out = rng.standard_normal((count, DIM), dtype=np.float32)
    out *= 0.5 * scale
    out += centers[rng.integers(0, len(centers), count)]
    out += mean
    return out


def independent(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw i.i.d. Gaussian vectors, float32 [count, 4096]."""
    return rng.standard_normal((count, DIM), dtype=np.float32)


def effective_rank(rows: np.ndarray) -> float:
    """Return (sum of variances)^2 / sum of squared variances of the principal components of a sample of rows [N, D]."""
    sample = rows[:4000].astype(np.float64)
    centered = sample - sample.mean(axis=0)
    gram = centered @ centered.T
    return float(np.trace(gram) ** 2 / (gram**2).sum())


def searching(folder: Path, name: str, rows: np.ndarray, queries: int, report: Callable[[str], None]) -> None:
    """Store rows [N, D] in a catalog, search in it, and report a line of the table."""
    rng = np.random.default_rng(7)
    catalog = Catalog(folder)
    began = time.perf_counter()
    for start in range(0, len(rows), 5000):
        catalog.put_many(
            New(rows[i : i + 1], prompt=f"p{i}", encoder="e") for i in range(start, min(start + 5000, len(rows)))
        )
    filled = time.perf_counter() - began
    # A query is near a stored prompt, like another wording of it.
    picked = rng.choice(len(rows), queries, replace=False)
    asked = rows[picked] + 0.3 * (rows[rng.permutation(picked)] - rows.mean(axis=0))
    began = time.perf_counter()
    catalog.similar(asked[:1], count=NEAREST)
    first = time.perf_counter() - began  # fits the basis, writes the compact vectors, loads them
    cold = Catalog(folder)
    began = time.perf_counter()
    cold.similar(asked[:1], count=NEAREST)
    load = time.perf_counter() - began

    keys = np.array(
        catalog.sql("SELECT key, prompt FROM embeddings ORDER BY CAST(prompt[2:] AS INT)")["key"].to_pylist()
    )
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    hits, took, brute = 0, [], []
    for query in asked:
        began = time.perf_counter()
        found = catalog.similar(query[None], count=NEAREST)["key"].to_pylist()
        took.append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        cosines = units @ (query / np.linalg.norm(query))
        best = np.argpartition(-cosines, NEAREST)[:NEAREST]
        brute.append((time.perf_counter() - began) * 1e3)
        hits += len(set(found) & set(keys[best].tolist()))
    recall = hits / (NEAREST * queries)
    index = catalog._searcher()
    unit, norm = Tokens.of(asked[:1]).pooled
    inside = milliseconds(lambda: index.nearest(unit, norm, "cosine", NEAREST, None), 15)
    compact = index.groups[DIM].basis
    assert compact is not None
    point = compact.compact(unit[None])[0][0].tolist()

    def in_duckdb() -> None:
        with catalog.db.reading() as con:
            con.execute(
                "SELECT key FROM search_vectors ORDER BY array_distance(vector, ?::FLOAT[256]) + rest LIMIT ?",
                [point, CANDIDATES],
            ).fetchall()

    sql = milliseconds(in_duckdb, 5)
    order = sorted(took)
    report(
        f"| {name} | {effective_rank(rows):.0f} | {recall:.4f} | {statistics.median(took):.0f} | "
        f"{order[int(len(order) * 0.95)]:.0f} | {inside:.0f} | {statistics.median(brute):.0f} | {sql:.0f} | "
        f"{load:.2f} | {first:.1f} | {filled:.0f} |"
    )


def vss() -> str:
    """Return whether DuckDB's vector index is available here, in words."""
    import duckdb

    try:
        with duckdb.connect() as con:
            con.execute("INSTALL vss")
            con.execute("LOAD vss")
    except duckdb.Error as error:
        return f"could not be installed here ({type(error).__name__}), so it was not compared"
    return "can be installed here; compare it before using it"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--inserts", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder unless given")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores, {platform.machine()}, no GPU")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    import duckdb

    lines: list[str] = []

    def report(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if options.out is not None:
            options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    report("# The catalog: storing and searching\n")
    report(
        f"`python benchmarks/catalog.py --rows {options.rows}`; DuckDB {duckdb.__version__}, numpy {np.__version__}."
    )
    report(f"Machine: {options.machine}. {options.note}".rstrip() + "\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        report("## Inserting\n")
        report(
            f"Token matrices [{TOKENS}, {DIM}], {options.inserts} in batches of 100, each file synced to the disk.\n"
        )
        report("| dtype | embeddings per second | bytes per file |\n|---|---|---|")
        kept = {}
        for dtype in ("bf16", "fp32"):
            rate, kept[dtype] = inserting(Path(temporary) / dtype, options.inserts, 100, dtype)
            report(f"| {dtype} | {rate:.0f} | {kept[dtype]:,.0f} |")
        padded, trimmed = PADDED * DIM * 4, TOKENS * DIM * 4
        report("\n## Bytes\n")
        report(f"One prompt of {TOKENS} tokens, compared with fp32 padded to {PADDED} tokens.\n")
        report("| as | bytes | step | of the padded fp32 |\n|---|---|---|---|")
        report(f"| fp32, padded to {PADDED} tokens | {padded:,} | | 1 |")
        report(f"| trimmed to real tokens | {trimmed:,} | / {padded / trimmed:.2f} | 1/{padded / trimmed:.1f} |")
        report(f"| in 16 bits (bf16, or fp16) | {trimmed // 2:,} | / 2.00 | 1/{2 * padded / trimmed:.1f} |")
        report(
            f"| zstd over byte planes, with header and mean token | {kept['bf16']:,.0f} | "
            f"/ {trimmed / 2 / kept['bf16']:.2f} | 1/{padded / kept['bf16']:.1f} |"
        )
        report(
            f"| the same for an fp32 encoder | {kept['fp32']:,.0f} | / {trimmed / kept['fp32']:.2f} | "
            f"1/{padded / kept['fp32']:.1f} |"
        )
        report("\n## Searching\n")
        report(
            f"{options.rows:,} stored prompts of {DIM} dimensions, the nearest {NEAREST} by cosine, {options.queries} "
            f"queries; {CANDIDATES} candidates compared exactly. Times are in ms unless noted.\n"
        )
        report(
            "| vectors | effective rank | recall at 20 | search, median | 95% | without rows' texts | "
            "numpy, full vectors | DuckDB, compact vectors | first of a process (s) | fitting (s) | filling (s) |"
        )
        report("|---|---|---|---|---|---|---|---|---|---|---|")
        for name, draw in (("clustered", clustered), ("i.i.d.", independent)):
            rows = draw(options.rows, np.random.default_rng(1))
            searching(Path(temporary) / name.strip("."), name, rows, options.queries, report)
            del rows
        report(f"\nDuckDB's index extension vss {vss()}.")


if __name__ == "__main__":
    main()
