"""Reading weight files, and putting weights into modules so that nothing is missing, left over or unpickled.

A module is built with empty parameters and real buffers (RoPE tables stay in float32, whatever the weights' dtype),
then every parameter is filled: a name too many, a name too few or a wrong shape is an error that lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from wanscope.errors import ModelError
from wanscope.wan.pickles import refuse_pickle

SHOWN = 6
ALIGNMENT = 64  # bytes; what torch's own CPU allocator gives
M = TypeVar("M", bound=nn.Module)


class WeightFile:
    """An open safetensors file: names, shapes and tensors without `prefix`; tensors are read one at a time."""

    def __init__(self, path: Path, handle, prefix: str = "") -> None:
        self.path, self._handle, self.prefix = path, handle, prefix
        self.metadata: dict[str, str] = handle.metadata() or {}
        self.all_names: list[str] = list(handle.keys())
        self.names = [name.removeprefix(prefix) for name in self.all_names if name.startswith(prefix)]

    def strip(self, prefixes: tuple[str, ...], known: str) -> None:
        """Take the first prefix under which `known` is a tensor."""
        for prefix in prefixes:
            if prefix + known in self.all_names:
                self.prefix = prefix
                self.names = [name.removeprefix(prefix) for name in self.all_names if name.startswith(prefix)]
                return

    @property
    def others(self) -> list[str]:
        """Names outside the prefix: parts of something else."""
        return [name for name in self.all_names if not name.startswith(self.prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle.get_slice(self.prefix + name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors writes it: F32, BF16, F8_E4M3 ..."""
        return self._handle.get_slice(self.prefix + name).get_dtype()

    def read(self, name: str) -> torch.Tensor:
        return self._handle.get_tensor(self.prefix + name)


@contextmanager
def open_weights(path: Path) -> Iterator[WeightFile]:
    """A safetensors file, open for reading. ModelError for pickles, missing and damaged files."""
    refuse_pickle(path)
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            yield WeightFile(path, handle)
    except SafetensorError as error:
        raise ModelError(
            f"{path} cannot be read", f"it is not a whole safetensors file ({error})", "download it again"
        ) from None


def listed(names: list[str]) -> str:
    """A few names and how many more."""
    shown = ", ".join(sorted(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_names(have: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]], what: str) -> None:
    """ModelError, with names, unless a file has exactly the tensors a module wants, in the same shapes."""
    missing = [name for name in want if name not in have]
    extra = [name for name in have if name not in want]
    wrong = [name for name in want if name in have and tuple(have[name]) != tuple(want[name])]
    if not (missing or extra or wrong):
        return
    parts = []
    if extra:
        parts.append(f"{len(extra)} tensors would be dropped: {listed(extra)}")
    if missing:
        parts.append(f"{len(missing)} tensors are missing: {listed(missing)}")
    if wrong:
        shapes = [f"{n} is {tuple(have[n])} and should be {tuple(want[n])}" for n in sorted(wrong)]
        parts.append(f"{len(wrong)} tensors have another shape: {listed(shapes)}")
    raise ModelError(f"{what} does not fit the model", "; ".join(parts))


def fill(
    build: Callable[[], M],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str, torch.dtype], torch.Tensor],
    dtype: torch.dtype,
    *,
    what: str,
    keep_fp32: tuple[str, ...] = (),
    tied: Mapping[str, str] | None = None,
) -> M:
    """The module that `build` makes, filled from a file.

    shapes: the file's tensors under the module's names. read(name, dtype): one of them, in that dtype. keep_fp32:
    parts of names whose parameters stay float32, as diffusers keeps them. tied: names that are another one's tensor.
    """
    from accelerate import init_empty_weights  # reading a header needs none of it

    with init_empty_weights(include_buffers=False):
        module = build()
    tied = tied or {}
    want = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name not in tied}
    check_names(shapes, want, what)
    state = {
        name: read(name, torch.float32 if any(part in name.split(".") for part in keep_fp32) else dtype)
        for name in want
    }
    module.load_state_dict(
        {**state, **{name: state[source] for name, source in tied.items()}}, strict=True, assign=True
    )
    return module.eval().requires_grad_(False)


def align(module: nn.Module) -> None:
    """Copy weights that lie at odd addresses to aligned memory.

    Tensors mapped from a file lie where its header happens to end, and CPU kernels round differently there: the same
    weights from two files would give videos that differ in their last bits. (So do diffusers' from_pretrained and a
    model in memory.) A GPU gets aligned copies anyway.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
