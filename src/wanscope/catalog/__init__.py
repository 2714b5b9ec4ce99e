"""The catalog: an index of takes, embeddings as content-addressed files, and what was computed from them.

`Catalog` in catalog.py is the entry point. Nothing here imports torch or DuckDB before it is used.
"""
