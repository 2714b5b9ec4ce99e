"""One model call under live edits: what each block reads, what its cross-attention gives, and the donors' own streams.

The runtime (`comfy_native.py`, `wan_wrapper.py`) says which rows of the batch are which branch, how raw text is
projected and how a block is run; everything that an edit means is here, once for both.

    context     the row's text is replaced (strength 1, tokens, steering) before the block runs
    attention   `AttentionChange`: mixes, appended tokens, bends and maps, given the queries, keys and values
    hidden      the donor's rows run beside the batch's own, on the same latents, and are blended in before a block

At strength 1 a mix is a replacement, so that it is the donor to the bit.

Shape suffixes: B batch rows, N video tokens, L text rows of the context, l a donor's, C model width, E heads x head
dim, H heads, K head dim, D text dim.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wanscope.edit.amplify import boost
from wanscope.edit.edits import Bend, Inject, Skip, Steer
from wanscope.errors import NumericalError, RecipeError
from wanscope.runtime import bend as bending
from wanscope.runtime.columns import TextRows, columns, mean_columns, pad_spread, pad_tolerance, text_rows
from wanscope.runtime.live import Branch, Live, LiveEdit, Run, Site, Watch

Project = Callable[[Tensor, int], Tensor]  # raw [L, D], rows to pad to -> context [1, rows, C]
# x, context, change of the attention, which rows of the batch these are (None: all) -> x
RunBlock = Callable[[Tensor, Tensor, "AttentionChange | None", "list[int] | None"], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q_BNE, k_BLE, v_BLE -> out_BNE


@dataclass(eq=False)
class _Stream:
    """A donor's own pass on the same latents: its rows' hidden states before the next block."""

    edit: int
    rows: list[int]
    state_BNC: Tensor
    context_BLC: Tensor
    last: int  # the last block whose input is needed
    frozen: bool = False


@dataclass(eq=False)
class Call:
    """One model call. branches: of each batch row, None where it is neither. real: the rows' real tokens in the text.

    grid: latent frames, rows and columns of video tokens. sigma_at: noise level at a share of the whole sampling.
    shared: the rows are prompts that share one video, each for a segment of its frames.
    """

    live: Live
    run: Run
    sigma: float
    branches: tuple[Branch | None, ...]
    real: list[int]
    depth: int
    heads: int
    grid: tuple[int, int, int]
    project: Project
    sigma_at: Callable[[float], float]
    due: Counter[Site] = field(default_factory=Counter)
    applied: Counter[Site] = field(default_factory=Counter)
    shared: bool = False

    def __post_init__(self) -> None:
        self.step = self.run.step(self.sigma)
        present: set[Branch] = {b for b in self.branches if b is not None}
        for branch in present:
            self.run.passes[branch] += 1
        self.table: list[tuple[float, ...]] = []
        for edit in self.live.edits:
            factor = edit.factor(self.sigma, self.sigma_at)
            here = any(b in edit.branches() for b in self.branches)
            values = edit.strengths(self.depth) if factor and here else (0.0,) * self.depth
            self.table.append(tuple(factor * v for v in values))
        self._contexts: dict[tuple[int, Branch, int], Tensor] = {}
        self._streams: list[_Stream] | None = None
        self._visited: set[int] = set()

    @property
    def blocks(self) -> set[int]:
        """The blocks that have to be run through `block`."""
        out = {i for table in self.table for i, v in enumerate(table) if v}
        for edit, table in zip(self.live.edits, self.table, strict=True):
            if _is_hidden(edit):
                last = max((i for i, v in enumerate(table) if v), default=-1)
                out |= set(range(last + 1))
        return out

    def finish(self, left_out: Collection[int] = ()) -> None:
        """Adds the counts to the run's. Raises EditNotApplied where an edit was due and did not act.

        left_out: blocks that the sampler says it did not run. A call that ran no block at all was answered by a cache.
        """
        self._streams = None
        self._contexts.clear()
        if self.blocks and not self._visited:
            self.run.skipped["a call was answered by a step cache, without running the model"] += 1
            return
        for e, table in enumerate(self.table):
            for i, s in enumerate(table):
                if s and i not in self._visited:
                    if i in left_out:
                        self.run.skipped[f"block {i} was left out by skip-layer guidance"] += 1
                    elif self.live.edits[e].edit.kind != "guide":
                        self.count(self.due, e, i, self.rows(self.live.edits[e]))
        self.live.check_call(self.run, self.due, self.applied)

    def rows(self, edit: LiveEdit, branch: Branch | None = None) -> list[int]:
        wanted = (branch,) if branch else edit.branches()
        return [r for r, b in enumerate(self.branches) if b in wanted]

    def count(self, where: Counter[Site], e: int, block: int, rows: Sequence[int]) -> None:
        found: set[Branch] = {b for r in rows if (b := self.branches[r]) is not None}
        for branch in found:
            where[e, block, branch, self.step] += 1

    # one block

    def block(self, i: int, x_BNC: Tensor, context_BLC: Tensor, run: RunBlock, ran: Callable[[], bool]) -> Tensor:
        """Block i under the edits. context_BLC: the text part of what the block reads.

        ran: whether the block itself was run (another node's patch may leave it out, for skip-layer guidance; what was
        due there is then noted, not missed).
        """
        self._visited.add(i)
        edits = list(zip(range(len(self.live.edits)), self.live.edits, self.table, strict=True))
        if self._streams is None:
            self._streams = [s for e, edit, table in edits if _is_hidden(edit) for s in self._start(e, x_BNC, table)]
        applied: Counter[Site] = Counter()
        due: Counter[Site] = Counter()
        x_BNC = self._hidden(i, x_BNC, due, applied)
        context_BLC, real, change = self._context(i, context_BLC, due, applied)
        skipped = self._skipped(i, due)
        own = [r for r in range(len(self.branches)) if r not in skipped]
        for stream in self._streams:
            if not stream.frozen and i < stream.last:
                stream.state_BNC = run(stream.state_BNC, stream.context_BLC, None, stream.rows)
        if not own:
            out_BNC = x_BNC
        else:
            if change is not None:
                change.real = real
            out_BNC = run(x_BNC, context_BLC, change, None)
            if not ran():
                self.run.skipped[f"block {i} was left out by another node's patch"] += 1
                return out_BNC
            if skipped and not self.shared:
                out_BNC = out_BNC.clone()
                out_BNC[skipped] = x_BNC[skipped]
            if change is not None:
                applied.update(change.fired)
        for e, edit, table in edits:
            if isinstance(edit.edit, Skip) and edit.edit.part == "block" and table[i]:
                self.count(applied, e, i, self.rows(edit))
        self.due.update(due)
        self.applied.update(applied)
        return out_BNC

    # hidden states

    def _start(self, e: int, x_BNC: Tensor, table: tuple[float, ...]) -> list[_Stream]:
        edit = self.live.edits[e]
        last = max((i for i, v in enumerate(table) if v), default=-1)
        streams = []
        for branch in edit.branches():
            rows = self.rows(edit, branch)
            if last < 0 or not rows:
                continue
            rows = [0] if self.shared else rows
            context = self.donor_context(e, branch).expand(len(rows), -1, -1)
            streams.append(_Stream(e, rows, x_BNC[rows].clone(), context, last))
        return streams

    def _hidden(self, i: int, x_BNC: Tensor, due: Counter[Site], applied: Counter[Site]) -> Tensor:
        for stream in self._streams or []:
            edit, s = self.live.edits[stream.edit], self.table[stream.edit][i]
            if edit.after_block == i:
                stream.frozen = True
            if not s:
                continue
            self.count(due, stream.edit, i, stream.rows)
            x_BNC = x_BNC.clone()
            assert isinstance(edit.edit, Inject)
            x_BNC[stream.rows] = blended(x_BNC[stream.rows], stream.state_BNC, s, edit.edit.operation)
            self.count(applied, stream.edit, i, stream.rows)
        return x_BNC

    def _skipped(self, i: int, due: Counter[Site]) -> list[int]:
        rows: set[int] = set()
        for e, edit in enumerate(self.live.edits):
            if isinstance(edit.edit, Skip) and edit.edit.part == "block" and self.table[e][i]:
                self.count(due, e, i, self.rows(edit))
                rows |= set(self.rows(edit))
        return sorted(rows)

    # context

    def _context(
        self, i: int, context_BLC: Tensor, due: Counter[Site], applied: Counter[Site]
    ) -> tuple[Tensor, list[int], AttentionChange | None]:
        original_BLC, real = context_BLC, list(self.real)
        change = AttentionChange(self, i)
        for e, edit in enumerate(self.live.edits):
            s = self.table[e][i]
            if not s:
                continue
            spec = edit.edit
            for branch in edit.branches():
                rows = self.rows(edit, branch)
                if not rows:
                    continue
                if isinstance(spec, Inject) and spec.on != "hidden":
                    # a boost is measured from each row's own prompt
                    for group in [rows] if spec.boost is None else [[r] for r in rows]:
                        self.count(due, e, i, group)
                        donor_1lC, donor_real = self._for_row(e, branch, original_BLC, group[0])
                        if spec.mode == "append":
                            change.appends.append((e, group, donor_1lC[:, :donor_real], s))
                            continue
                        whole = s == 1 and spec.operation != "add" and not spec.words
                        same = donor_1lC.shape[1] == context_BLC.shape[1]
                        if spec.mode == "mix" and not (whole and same):
                            change.mixes.append((e, group, donor_1lC, s))
                            continue
                        context_BLC = context_BLC.clone() if context_BLC is original_BLC else context_BLC
                        donor_1lC = _to_length(donor_1lC, context_BLC.shape[1], context_BLC[group[0], -1])
                        operation = "replace" if whole else spec.operation
                        where = sorted({c for words in edit.columns for c in words}) if spec.words else slice(None)
                        for r in group:
                            context_BLC[r, where] = blended(context_BLC[r, where], donor_1lC[0, where], s, operation)
                            real[r] = donor_real if whole else max(real[r], donor_real)
                        self.count(applied, e, i, group)
                elif isinstance(spec, Steer):
                    self.count(due, e, i, rows)
                    context_BLC = context_BLC.clone() if context_BLC is original_BLC else context_BLC
                    direction_C = self.direction(e)
                    for r in rows:
                        context_BLC[r, : real[r]] = steered(context_BLC[r, : real[r]], direction_C, s, spec.operation)
                    self.count(applied, e, i, rows)
                elif isinstance(spec, Bend):
                    self.count(due, e, i, rows)
                    change.bends.append((e, rows, s))
                elif isinstance(spec, Watch):
                    self.count(due, e, i, rows)
                    change.watches.append((e, rows))
                elif isinstance(spec, Skip) and spec.part == "cross_attention":
                    self.count(due, e, i, rows)
                    change.silenced.append((e, rows))
        return context_BLC, real, None if change.empty else change

    def donor_context(self, e: int, branch: Branch) -> Tensor:
        """[1, l, C]: the donor of an edit as blocks read it."""
        edit = self.live.edits[e]
        donor_LD = edit.donor(branch)
        if donor_LD is None:
            raise RecipeError(f"edit {e + 1} ({edit.name}) has no donor", "nothing is connected", "injection_embeds")
        key = (e, branch, -1)
        kept = self.run.contexts if edit.keep_context else self._contexts
        if key not in kept:
            kept[key] = self.project(donor_LD, len(donor_LD))
        return kept[key]

    def _for_row(self, e: int, branch: Branch, context_BLC: Tensor, row: int) -> tuple[Tensor, int]:
        """The donor's context [1, l, C] for one row of the batch, boosted where that is asked, and its real tokens."""
        edit = self.live.edits[e]
        donor_1lC, donor_real = self.donor_context(e, branch), len(cast(Tensor, edit.donor(branch)))
        spec = edit.edit
        if not isinstance(spec, Inject) or spec.boost is None:
            return donor_1lC, donor_real
        key = (e, branch, row)
        if key not in self._contexts:
            count = self.real[row]
            own = boost(
                context_BLC[row, :count].float(),
                donor_1lC[0, :donor_real].float(),
                spec.boost,
                keep_norm=spec.keep_norm is not False,
                pad_D=donor_1lC[0, -1].float() if donor_1lC.shape[1] > donor_real else None,
            ).context.to(donor_1lC.dtype)
            out = donor_1lC.clone()
            out[0, : len(own)] = own
            self._contexts[key] = out
        return self._contexts[key], max(donor_real, self.real[row])

    def direction(self, e: int) -> Tensor:
        """[C]: the mean over pairs of the difference of mean tokens, in the space that blocks read."""
        edit = self.live.edits[e]
        parts = []
        for with_LD, without_LD in edit.pairs:
            a, b = self.project(with_LD, len(with_LD)), self.project(without_LD, len(without_LD))
            parts.append(a[0, : len(with_LD)].double().mean(0) - b[0, : len(without_LD)].double().mean(0))
        if not parts:
            raise RecipeError("a direction has no pair of prompts", "it is learned from at least one", "")
        return torch.stack(parts).mean(0)


@dataclass(eq=False)
class AttentionChange:
    """What is done to one block's text attention. `fired` counts what was."""

    call: Call
    block: int
    mixes: list[tuple[int, list[int], Tensor, float]] = field(default_factory=list)
    appends: list[tuple[int, list[int], Tensor, float]] = field(default_factory=list)
    bends: list[tuple[int, list[int], float]] = field(default_factory=list)
    watches: list[tuple[int, list[int]]] = field(default_factory=list)
    silenced: list[tuple[int, list[int]]] = field(default_factory=list)
    real: list[int] = field(default_factory=list)
    fired: Counter[Site] = field(default_factory=Counter)

    @property
    def empty(self) -> bool:
        return not (self.mixes or self.appends or self.bends or self.watches or self.silenced)

    @property
    def donors(self) -> list[Tensor]:
        """Contexts [1, l, C] whose keys and values are needed beside the row's own."""
        return [donor for _, _, donor, _ in (*self.appends, *self.mixes)]

    def output(
        self, q_BNE: Tensor, k_BLE: Tensor, v_BLE: Tensor, donors: Sequence[tuple[Tensor, Tensor]], attend: Attend
    ) -> Tensor:
        """The text attention's output before its last projection. donors: keys and values [1, l, E] of `donors`."""
        appended, mixed = donors[: len(self.appends)], donors[len(self.appends) :]
        k_BLE, v_BLE, bias_BL = self._append(k_BLE, v_BLE, appended)
        out_BNE = attend(q_BNE, k_BLE, v_BLE) if bias_BL is None else self._biased(q_BNE, k_BLE, v_BLE, bias_BL)
        out_BNE = self._bend(q_BNE, k_BLE, v_BLE, bias_BL, out_BNE)
        for (e, rows, _, s), (k_1lE, v_1lE) in zip(self.mixes, mixed, strict=True):
            other = attend(q_BNE[rows], k_1lE.expand(len(rows), -1, -1), v_1lE.expand(len(rows), -1, -1))
            out_BNE = out_BNE.clone()
            out_BNE[rows] = blended(out_BNE[rows], other, s, "blend")
            self.call.count(self.fired, e, self.block, rows)
        for e, rows in self.silenced:
            out_BNE = out_BNE.clone()
            out_BNE[rows] = 0
            self.call.count(self.fired, e, self.block, rows)
        return out_BNE

    def segment(self, row: int) -> AttentionChange:
        """The change of one row alone, as row 0. Its counts are these."""
        if self.bends or self.watches:
            raise RecipeError(
                "attention maps are of one prompt, and these text embeds hold several", "", "a prompt without |"
            )

        def own(entries: list) -> list:
            return [(e, [0], *rest) for e, rows, *rest in entries if row in rows]

        part = AttentionChange(self.call, self.block, own(self.mixes), own(self.appends), [], [], own(self.silenced))
        part.real, part.fired = [self.real[row]], self.fired if row == 0 else Counter()
        return part

    @property
    def silent_rows(self) -> list[int]:
        """Rows whose cross-attention gives nothing at all, not even its last projection's bias."""
        return sorted({r for _, rows in self.silenced for r in rows})

    def _append(
        self, k_BLE: Tensor, v_BLE: Tensor, donors: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        bias_BL: Tensor | None = None
        if donors:
            k_BLE, v_BLE = k_BLE.clone(), v_BLE.clone()
        for (e, rows, donor, s), (k_1lE, v_1lE) in zip(self.appends, donors, strict=True):
            count = donor.shape[1]
            for r in rows:
                start = self.real[r]
                if start + count > k_BLE.shape[1]:
                    raise RecipeError(
                        f"the prompt's {start} tokens and the donor's {count} are more than {k_BLE.shape[1]}",
                        "appended tokens take the place of padding",
                        "a shorter prompt or donor, or mode mix",
                    )
                k_BLE[r, start : start + count] = k_1lE[0, :count]
                v_BLE[r, start : start + count] = v_1lE[0, :count]
                self.real[r] = start + count
                if s != 1:
                    if bias_BL is None:
                        bias_BL = k_BLE.new_zeros(k_BLE.shape[:2], dtype=torch.float32)
                    bias_BL[r, start : start + count] = math.log(s)
            self.call.count(self.fired, e, self.block, rows)
        return k_BLE, v_BLE, bias_BL

    def _biased(self, q_BNE: Tensor, k_BLE: Tensor, v_BLE: Tensor, bias_BL: Tensor) -> Tensor:
        q, k, v = (_heads(t, self.call.heads).transpose(1, 2) for t in (q_BNE, k_BLE, v_BLE))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BL[:, None, None, :].to(q.dtype))
        return out.transpose(1, 2).flatten(2)

    def _bend(self, q_BNE: Tensor, k_BLE: Tensor, v_BLE: Tensor, bias_BL: Tensor | None, out_BNE: Tensor) -> Tensor:
        for e, rows in ((e, rows) for e, rows, *_ in (*self.bends, *self.watches)):
            edit = self.call.live.edits[e]
            spec = edit.edit
            real = max(self.real[r] for r in rows)
            k = k_BLE[rows]
            if float(pad_spread(k, torch.arange(min(real + 1, k.shape[1]), device=k.device))) > pad_tolerance(k.dtype):
                raise NumericalError(
                    f"the padding behind {real} tokens of the prompt is not equal",
                    "its attention cannot be counted as one column",
                    "a prompt without a node that edits its padding",
                )
            weights = None
            if bias_BL is not None:
                if len(rows) > 1 and not torch.equal(bias_BL[rows], bias_BL[rows[:1]].expand(len(rows), -1)):
                    raise RecipeError("two prompts have tokens appended at different places", "bend one at a time", "")
                weights = bias_BL[rows[0], :real].tolist()
            text = text_rows(real, k.shape[1], k.device, weights)
            q4, k4 = _heads(q_BNE[rows], self.call.heads), _heads(k, self.call.heads)
            if isinstance(spec, Watch):
                self._watch(e, edit, rows, q4, k4, text)
                continue
            assert isinstance(spec, Bend)
            s = next(s for e2, _, s in self.bends if e2 == e)
            index = torch.tensor(sorted({c for group in edit.columns for c in group}), device=k.device)
            p = columns(q4, k4, text, index)
            strength: Tensor | float = s
            if spec.heads:
                per_head = p.new_zeros(self.call.heads)
                per_head[list(spec.heads)] = s
                strength = per_head
            new = bending.bend_maps(p, map_operation(spec, self.call.grid, p.device), strength, self.call.grid)
            v4 = _heads(v_BLE[rows], self.call.heads)[:, index]
            bent, least = bending.bent_output(
                _heads(out_BNE[rows], self.call.heads), p, new, v4, renormalize=spec.renormalize
            )
            if spec.renormalize:
                bending.require_mass(float(least), f"in block {self.block}")
            out_BNE = out_BNE.clone()
            out_BNE[rows] = bent.flatten(2)
            self.call.count(self.fired, e, self.block, rows)
        return out_BNE

    def _watch(self, e: int, edit: LiveEdit, rows: list[int], q4: Tensor, k4: Tensor, text: TextRows) -> None:
        index = [c for group in edit.columns for c in group]
        p_BNl = mean_columns(q4, k4, text, torch.tensor(index, device=q4.device))
        maps, at = [], 0
        for group in edit.columns:
            maps.append(p_BNl[..., at : at + len(group)].sum(-1))
            at += len(group)
        kept = self.call.run.maps.setdefault(e, [0, None, self.call.grid])
        sum_KN = torch.stack(maps, 1).mean(0).float().cpu()
        kept[1] = sum_KN if kept[1] is None else kept[1] + sum_KN
        kept[0] += 1
        self.call.count(self.fired, e, self.block, rows)


def blended(a: Tensor, b: Tensor, s: float, operation: str) -> Tensor:
    """(1 - s) a + s b; b for `replace` or s = 1, to the bit; a + s b for `add`."""
    b = b.to(a.dtype)
    if operation == "add":
        return a + s * b
    return b if operation == "replace" or s == 1 else (1 - s) * a + s * b


def steered(rows_LC: Tensor, direction_C: Tensor, s: float, operation: str) -> Tensor:
    """Rows moved along a direction: its whole length times s (add), without their part along it (ablate), or turned
    toward it with their length kept (rotate)."""
    x, d = rows_LC.double(), direction_C.to(rows_LC.device, torch.float64)
    if operation == "add":
        return (x + s * d).to(rows_LC.dtype)
    length = torch.linalg.vector_norm(d)
    if not length:
        raise RecipeError("the direction is zero", "its prompts are the same to the model", "other prompts")
    u = d / length
    along_L1 = (x @ u)[:, None]
    if operation == "ablate":
        return (x - s * along_L1 * u).to(rows_LC.dtype)
    norm_L1 = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit = x / norm_L1.clamp_min(1e-30)
    away = unit - (unit @ u)[:, None] * u
    away = away / torch.linalg.vector_norm(away, dim=1, keepdim=True).clamp_min(1e-30)
    angle_L1 = (1 - s) * torch.arccos((unit @ u).clamp(-1, 1))[:, None]
    return (norm_L1 * (torch.cos(angle_L1) * u + torch.sin(angle_L1) * away)).to(rows_LC.dtype)


def map_operation(spec: Bend, grid: tuple[int, int, int], device: torch.device) -> bending.MapOperation:
    """What a Bend does to a map on this grid."""
    yx = grid[1:]
    makers: dict[str, Callable[[], bending.MapOperation]] = {
        "amplify": lambda: bending.amplify(spec.factor or 1.0),
        "suppress": lambda: bending.suppress(spec.factor or 1.0),
        "scale": lambda: bending.scale(spec.factor or 1.0, yx),
        "rotate": lambda: bending.rotate(spec.angle or 0.0, yx),
        "translate": lambda: bending.translate(spec.x or 0.0, spec.y or 0.0, yx),
        "flip": lambda: bending.flip(spec.axis or "x", yx),
        "blur": lambda: bending.blur(spec.sigma or 0.0),
        "region": lambda: bending.region(cast(tuple[float, float, float, float], spec.box), yx),
    }
    return makers[spec.operation]().to(device)


def _is_hidden(edit: LiveEdit) -> bool:
    return isinstance(edit.edit, Inject) and edit.edit.on != "context"


def _heads(x_BLE: Tensor, heads: int) -> Tensor:
    return x_BLE.unflatten(-1, (heads, -1))


def _to_length(context_1lC: Tensor, length: int, pad_C: Tensor) -> Tensor:
    """[1, length, C]: cut of its padding, or padded."""
    now = context_1lC.shape[1]
    if now >= length:
        return context_1lC[:, :length]
    return torch.cat([context_1lC, pad_C.expand(1, length - now, -1)], 1)
