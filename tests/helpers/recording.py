"""Shared by the tests of recorded cross- and self-attention: copies of reduce arguments, and compiled runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wanscope.capture.attention_sink import Seen
from wanscope.wan.model import WanModel


def copied(seen: Seen) -> Seen:
    """Return a copy with its own maps: the original's are only valid during the call."""
    return Seen(**{name: getattr(seen, name) for name in seen.__dataclass_fields__} | {"maps": seen.maps.copy()})


def check_compiled_twice(
    model: WanModel, sampled: Callable[[], Tensor], latents: Tensor, recorded: Callable[[str], None]
) -> None:
    """Compile the model's blocks, run it plainly, then record twice: at most two graphs come, and only the first time.

    The two are that of recorded calls and that of the others.
    """
    graphs: list[object] = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    assert torch.equal(sampled(), latents)
    before = len(graphs)
    recorded("first")
    compiled = len(graphs)
    recorded("second")
    assert before > 0 and compiled - before <= 2 and len(graphs) == compiled
