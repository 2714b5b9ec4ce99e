"""The catalogue: takes as an index of their folders, embeddings as content-addressed files, and what was computed.

`Catalog` in catalog.py is the door; nothing here imports torch or DuckDB before it is used.
"""
