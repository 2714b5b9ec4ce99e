"""The cross-attention to the text of one block in one call, where edits change it.

The changes are: several contexts whose outputs are summed by weight, log weights of tokens, bent attention maps, and
recorded maps. The contexts are those of `compose.py`, one composition per batch row.

Shape suffixes: B batch rows, Q video tokens, H heads, N text rows, D model dim, E heads x head dim, K words, l columns
of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wanscope.edit.sites import Branch, Part
from wanscope.errors import NumericalError, RecipeError
from wanscope.runtime.bend import map_operation, require_mass
from wanscope.runtime.columns import TextRows, compute_dtype, mean_columns, pad_spread, pad_tolerance, text_rows
from wanscope.runtime.compose import Composed, Read
from wanscope.runtime.text_attention import (
    attended_with_log_weights,
    bend_steps,
    bent,
    bent_places,
    row_log_weights,
    weighted_sum,
)

ActedPart = tuple[int, Part, Branch]  # edit, part of the block, branch
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q_BQE, k_BNE, v_BNE -> out_BQE


class AttentionChange:
    """The edits of one block's attention to the text, in one call.

    rows: what each batch row reads. heads: attention heads. grid: frames, rows and columns of video tokens. block: its
    index, for messages. acting: the edits that act here. ran: the same, but only once `output` was called, so that it
    counts what was really computed.
    """

    def __init__(self, rows: Sequence[Composed], heads: int, grid: tuple[int, int, int], block: int) -> None:
        self.rows = list(rows)
        self.heads, self.grid, self.block = heads, grid, block
        self.acting: Counter[ActedPart] = Counter()
        self.ran: Counter[ActedPart] = Counter()
        self._watches: list[tuple[list[int], tuple[tuple[int, ...], ...], list[Any]]] = []

    def watch(self, rows: list[int], words: tuple[tuple[int, ...], ...], kept: list[Any]) -> None:
        """Record the attention maps of words in some batch rows.

        words: the token columns of each word. kept: becomes [number of maps, their sum [K, Q] on the CPU, grid].
        """
        self._watches.append((rows, words, kept))

    @property
    def needed(self) -> bool:
        """Whether the model's own attention, reading each row's first context, is not enough."""
        return bool(self._watches) or not all(row.plain for row in self.rows)

    @property
    def donors(self) -> list[Tensor]:
        """The contexts [1, N, D] whose keys and values are needed in addition to the rows' first ones."""
        return [read.context_1ND for row in self.rows for read in row.reads[1:]]

    @property
    def silent_rows(self) -> list[int]:
        """The rows whose cross-attention is skipped: its output is zero, without the output projection's bias."""
        return [r for r, row in enumerate(self.rows) if row.skip]

    def segment(self, row: int) -> AttentionChange:
        """Return the change of one row alone, as row 0.

        It is used where several prompts share one video, each for a segment of its frames. Raises RecipeError if maps
        are recorded or bent.
        """
        if self._watches or any(read.bends for read in self.rows[row].reads):
            raise RecipeError(
                "attention maps need a single prompt, and these text embeds hold several",
                "each prompt belongs to a segment of the video",
                "use a prompt without |",
            )
        part = AttentionChange([self.rows[row]], self.heads, self.grid, self.block)
        if row == 0:
            part.acting, part.ran = self.acting, self.ran
        return part

    def output(
        self, q_BQE: Tensor, k_BNE: Tensor, v_BNE: Tensor, donors: Sequence[tuple[Tensor, Tensor]], attend: Attend
    ) -> Tensor:
        """Return the attention's output [B, Q, E], before the output projection.

        donors: keys and values [1, N, E] of each context in `self.donors`. attend: the model's own attention.
        """
        self.ran.update(self.acting)
        plain = [r for r, row in enumerate(self.rows) if row.plain]
        out: list[Tensor | None] = [None] * len(self.rows)
        if plain:
            every = len(plain) == len(self.rows)
            same = attend(*((t if every else t[plain]) for t in (q_BQE, k_BNE, v_BNE)))
            for at, r in enumerate(plain):
                out[r] = same[at : at + 1]
        donor_keys_values = iter(donors)
        for r, row in enumerate(self.rows):
            first = (k_BNE[r : r + 1], v_BNE[r : r + 1])
            keys_values = [first, *(next(donor_keys_values) for _ in row.reads[1:])]
            if out[r] is None:
                out[r] = self._row(row, q_BQE[r : r + 1], keys_values, attend)
        for rows, words, kept in self._watches:
            self._keep_maps(rows, words, kept, q_BQE, k_BNE)
        found = [o for o in out if o is not None]
        return torch.cat(found) if len(found) > 1 else found[0]

    def _row(self, row: Composed, q_1QE: Tensor, given: Sequence[tuple[Tensor, Tensor]], attend: Attend) -> Tensor:
        if row.skip:
            return torch.zeros_like(q_1QE)
        parts = [self._read(read, q_1QE, k, v, attend) for read, (k, v) in zip(row.reads, given, strict=True)]
        return weighted_sum(parts, [read.weight for read in row.reads]).to(parts[0].dtype)

    def _read(self, read: Read, q_1QE: Tensor, k_1NE: Tensor, v_1NE: Tensor, attend: Attend) -> Tensor:
        if not read.log_weights:
            out_1QE = attend(q_1QE, k_1NE, v_1NE)
        else:
            bias_N = torch.tensor(row_log_weights(read, k_1NE.shape[1]), device=q_1QE.device)
            q, k, v = (self._split_heads(t) for t in (q_1QE, k_1NE, v_1NE))
            out_1QE = attended_with_log_weights(q, k, v, bias_N[None, None, None]).flatten(2)
        return self._bend(read, out_1QE, q_1QE, k_1NE, v_1NE) if read.bends else out_1QE

    def _bend(self, read: Read, out_1QE: Tensor, q_1QE: Tensor, k_1NE: Tensor, v_1NE: Tensor) -> Tensor:
        """Return the output [1, Q, E] of one read with its words' attention maps bent."""
        device, dtype = q_1QE.device, compute_dtype(q_1QE.dtype)
        ready = [map_operation(bend.change, self.grid).to(device) for bend, _ in read.bends]
        steps = bend_steps(read, 0, self.heads, dtype, ready.__getitem__, partial(torch.tensor, device=device))
        places_l = torch.tensor(bent_places(read), device=device)
        q, k, v, out = (self._split_heads(t) for t in (q_1QE, k_1NE, v_1NE, out_1QE))
        out, least = bent(out, q, k, v, self._text(read, k_1NE), places_l, steps, self.grid)
        require_mass(float(least), f"in block {self.block}")
        return out.flatten(2)

    def _text(self, read: Read, k_1NE: Tensor) -> TextRows:
        weights = row_log_weights(read, read.real) if read.log_weights else None
        text = text_rows(read.real, k_1NE.shape[1], k_1NE.device, weights)
        context = read.context_1ND
        if float(pad_spread(context, text.rows)) > pad_tolerance(context.dtype):
            raise NumericalError(
                f"the padding after the {read.real} tokens of the text is not one repeated row in block {self.block}",
                "attention maps are computed with one column for all padding",
                "remove the node that edits the prompt's padding",
            )
        return text

    def _keep_maps(
        self, rows: list[int], words: tuple[tuple[int, ...], ...], kept: list[Any], q_BQE: Tensor, k_BNE: Tensor
    ) -> None:
        index = torch.tensor([c for group in words for c in group], device=q_BQE.device)
        for r in rows:
            text = self._text(self.rows[r].reads[0], k_BNE[r : r + 1])
            p_1Ql = mean_columns(self._split_heads(q_BQE[r : r + 1]), self._split_heads(k_BNE[r : r + 1]), text, index)
            parts = p_1Ql[0].split([len(group) for group in words], dim=-1)
            sum_KQ = torch.stack([part.sum(-1) for part in parts]).float().cpu()
            if not kept:
                kept[:] = [0, torch.zeros_like(sum_KQ), self.grid]
            kept[0] += 1
            kept[1] += sum_KQ

    def _split_heads(self, x_BNE: Tensor) -> Tensor:
        return x_BNE.unflatten(-1, (self.heads, -1))
