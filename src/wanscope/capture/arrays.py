"""A take's arrays on disk: zarr v3, one shard per step, one latent frame per inner chunk, crc32c everywhere.

Without the checksums a flipped byte would go unnoticed, and without a fill value of NaN a missing chunk would read as
zeros. A shard is one step, so that an analysis of one step reads one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zarr

DTYPES = {"fp16": "float16", "fp32": "float32"}


def create_array(
    folder: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str, attributes: Mapping[str, Any]
) -> zarr.Array:
    """Create and return a float array [step, ...] at `folder`, filled with NaN.

    shape: of the whole array. chunk: the shape of an inner chunk without the step axis. dtype: fp16 or fp32.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    return zarr.create_array(
        store=str(folder),
        shape=shape,
        shards=(1, *shape[1:]),
        chunks=(1, *chunk),
        dtype=DTYPES[dtype],
        fill_value=float("nan"),
        # Bit shuffling finds what little redundancy there is: noise hardly compresses (1.0 to 1.2 times).
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
        # All shards in one folder (c.0.0.0.0.0): one folder per dimension would be five to make and sync per step.
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes=dict(attributes),
        zarr_format=3,
    )


def open_array(folder: Path) -> zarr.Array:
    """Open the array at `folder`, [step, ...], read-only; its data is read when it is indexed."""
    import zarr

    return zarr.open_array(str(folder), mode="r", zarr_format=3)
