"""Reads weight files and fills modules, so that no weight is missing or left over and nothing is unpickled.

A module is built with empty parameters and real buffers (RoPE tables stay in float32, whatever the weights' dtype).
Then every parameter is filled. Extra names, missing names and wrong shapes are errors that list them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from wanscope.errors import ModelError
from wanscope.wan.file_kinds import shard_files, unreadable
from wanscope.wan.pickles import refuse_pickle

SHOWN = 6
ALIGNMENT = 64  # bytes, as in torch's own CPU allocator
M = TypeVar("M", bound=nn.Module)


class WeightFile:
    """Open safetensors: names, shapes and tensors without `prefix`; tensors are read one at a time.

    handles: of one file, or of all shards of a set.
    """

    def __init__(self, path: Path, handles: Sequence[Any], prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self._handle_of = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
        self.metadata: dict[str, str] = handles[0].metadata() or {}
        self.all_names: list[str] = list(self._handle_of)
        self.names = [name.removeprefix(prefix) for name in self.all_names if name.startswith(prefix)]

    def strip(self, prefixes: tuple[str, ...], known: str) -> None:
        """Set the prefix to the first one of `prefixes` for which the tensor `known` exists."""
        for prefix in prefixes:
            if prefix + known in self.all_names:
                self.prefix = prefix
                self.names = [name.removeprefix(prefix) for name in self.all_names if name.startswith(prefix)]
                return

    @property
    def others(self) -> list[str]:
        """Names without the prefix, which belong to something else."""
        return [name for name in self.all_names if not name.startswith(self.prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, read from the header."""
        return tuple(self._handle_of[self.prefix + name].get_slice(self.prefix + name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype with safetensors' name: F32, BF16, F8_E4M3, ..."""
        return self._handle_of[self.prefix + name].get_slice(self.prefix + name).get_dtype()

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor in the file's dtype and shape, on the CPU."""
        return self._handle_of[self.prefix + name].get_tensor(self.prefix + name)


@contextmanager
def open_weights(path: Path) -> Iterator[WeightFile]:
    """Open a safetensors file, or all shards of the set it belongs to, for reading inside the `with` block.

    Raises ModelError for pickles, missing files and damaged files.
    """
    refuse_pickle(path)
    if not os.path.isfile(path):
        raise ModelError(f"there is no file {path}")
    with ExitStack() as stack:
        handles = []
        for file in shard_files(path):
            try:
                handles.append(stack.enter_context(safe_open(file, framework="pt", device="cpu")))
            except SafetensorError as error:
                raise unreadable(file, error) from None
        try:
            yield WeightFile(path, handles)
        except SafetensorError as error:
            raise unreadable(path, error) from None


def listed(names: list[str]) -> str:
    """Return the first few names, sorted, and the number of the others."""
    shown = ", ".join(sorted(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_names(have: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise ModelError, with names, unless a file has exactly the tensors that a module needs, with the same shapes.

    have, want: {name: shape} of the file and of the module. what: the file's name, for the error.
    """
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
    """Return the module that `build` makes, filled from a file.

    shapes: {name: shape} of the file's tensors under the module's names. read(name, dtype): returns one of them in that
    dtype. what: the file's name, for errors. keep_fp32: parts of the names whose parameters stay in float32, as in
    diffusers. tied: {name: name of the tensor that it shares}. Raises ModelError where names or shapes do not match.
    """
    from accelerate import init_empty_weights  # imported here, because reading a header does not need it

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


def check_finite(model: Any, files: Mapping[str, Path]) -> None:
    """Raise ModelError if a weight is NaN or infinite, naming its tensors and the file or folder they come from.

    model: has the components as attributes. files: {component: where it was loaded from}. For weights that are packed
    (GGUF), the scales were checked when they were read.
    """
    for component, path in files.items():
        module = getattr(model, component, None)
        if not isinstance(module, nn.Module):
            continue
        broken = [name for name, tensor in module.state_dict().items() if not is_finite(tensor)]
        if broken:
            raise ModelError(
                f"{path} contains weights that are not numbers",
                f"{len(broken)} tensors of the {component.replace('_', ' ')} have NaN or infinite values: "
                f"{listed(broken)}. The file is damaged, or was converted to a dtype that cannot hold its values",
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values of a tensor are finite; True for integers and for packed weights."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # fp8 has no reductions
        tensor = tensor.float()
    low, high = torch.aminmax(tensor.detach())  # NaN in any value gives NaN
    return bool(torch.isfinite(low) and torch.isfinite(high))


def align(module: nn.Module) -> None:
    """Copy weights at unaligned addresses to aligned memory.

    The address of a tensor that is mapped from a file depends on the length of the file's header, and CPU kernels round
    differently at unaligned addresses. The same weights from two files would therefore give videos that differ in their
    last bits, as do a model loaded by diffusers' from_pretrained and one built in memory. Copies on a GPU are always
    aligned.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
