"""Makes one take: denoise, compare with the earlier result, decode, write, move into place.

Shape suffixes: B batch, C channels, T latent frames, h, w latent height and width, F frames, H, W pixels.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import torch

from wanscope import events
from wanscope.errors import DamagedTake, EditNotApplied, Interrupted, ReplayDiffers
from wanscope.recipe import Recipe
from wanscope.sample.conditioning import Conditioning
from wanscope.sample.loop import Denoised, StepState, denoise, initial_noise
from wanscope.sample.plan_edits import edit_plan
from wanscope.study.read_request import ReplayReference
from wanscope.study.records import Records
from wanscope.take.disk import guarded
from wanscope.take.manifest import Earlier, Environment, Manifest, environment, list_files
from wanscope.take.store import EVENTS, POSTER, VIDEO, Take, TakeWriter, latents_sha256
from wanscope.take.video import METADATA_KEY, write_poster, write_video
from wanscope.wan.load import device_name
from wanscope.wan.vae import decode
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.edit.encoded_texts import DonorTexts
    from wanscope.edit.plan import EditPlan
    from wanscope.wan.model import WanModel


@dataclass(frozen=True)
class TakeJob:
    """A recipe to be made now.

    index: its position among all `takes`. reference: an earlier result to compare with. existing: the take that is
    already stored, complete or not.
    """

    recipe: Recipe
    index: int
    takes: int
    reference: ReplayReference | None = None
    existing: Take | None = None


@dataclass
class _Record:
    """Collects the events of this take for events.jsonl, and passes them on to the listener."""

    listener: events.Listener
    began: float = field(default_factory=time.perf_counter)
    lines: list[str] = field(default_factory=list)

    def __call__(self, event: events.Event) -> None:
        at = time.perf_counter() - self.began
        self.lines.append(json.dumps({"at_seconds": round(at, 4), **event.as_dict()}, ensure_ascii=False))
        self.listener(event)


def make_take(
    job: TakeJob,
    model: WanModel,
    conditioning: Conditioning,
    workspace: Workspace,
    *,
    init_latents: Tensor | None = None,
    on_event: events.Listener = events.ignore,
    interrupt: Callable[[], bool] = lambda: False,
    donors: DonorTexts | None = None,
) -> Take:
    """Make the take of `job` and move it into place; the caller holds its lock.

    A take that was made before must have the same bits again on the same machine and versions; otherwise ReplayDiffers
    is raised and the existing take stays. In another environment a difference is emitted as a Note and recorded. A
    complete take that comes out with the same bits is left as it is, unless one of its files does not match its
    checksum: then it is replaced.

    init_latents: the start of a partial denoising, float32 [1, C, T, h, w]. donors: the encoded texts of the recipe's
    edits. Raises Interrupted, ReplayDiffers, EditNotApplied, NumericalError or StorageError.
    """
    recipe, emit = job.recipe, _Record(on_event)
    meter = _Meter(model.device)
    env = environment(device_name(model.device), torch.get_num_threads())
    with TakeWriter(workspace.takes, recipe.id) as writer, guarded(workspace.takes), contextlib.ExitStack() as stack:
        records = Records(recipe, model, writer.folder, stack)
        plan = _plan(recipe, model, donors, emit)
        result = _denoise(job, model, conditioning, init_latents, records, plan, meter, emit, interrupt)
        final_CThw = result.latents[0].cpu().numpy()
        earlier = _compare(job, final_CThw, env, emit)
        if job.existing is not None and _is_intact(job.existing, recipe, emit):
            return job.existing
        if interrupt():
            raise Interrupted("stopped after the last step", "the video was not decoded, and the take is not kept")
        kept = records.finish()
        decode_began = time.perf_counter()
        frames_FHW3 = frames_of(decode(model.vae, result.latents))
        write_began = time.perf_counter()
        _write_files(writer, recipe, final_CThw, frames_FHW3, env, emit.lines)
        now = time.perf_counter()
        channels, frames, height, width = final_CThw.shape
        manifest = Manifest(
            id=recipe.id,
            hash=recipe.hash,
            recipe=recipe,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=env,
            seconds={
                "denoise": result.seconds,
                "decode": write_began - decode_began,
                "write": now - write_began,
                "total": now - emit.began,
            },
            peak_bytes=meter.peaks(),
            evaluations=result.evaluations,
            sigmas=result.sigmas,
            latent_shape=(channels, frames, height, width),
            latents_sha256=latents_sha256(final_CThw),
            prompt_tokens=len(conditioning.cond) if conditioning.cond.ndim == 2 else None,
            earlier=earlier,
            files=list_files(writer.folder),
            **kept,
        )
        take = writer.commit(manifest)
    on_event(events.TakeDone(recipe.id, job.index, job.takes, str(take.folder), time.perf_counter() - emit.began))
    return take


def _plan(recipe: Recipe, model: WanModel, donors: DonorTexts | None, emit: events.Listener) -> EditPlan | None:
    """Return the recipe's edits resolved for this model, or None where nothing is done inside the model.

    The plan is empty where only attention is recorded. Its notes are emitted as events.
    """
    if not recipe.edits and not recipe.capture.inside:
        return None
    if donors is None:
        raise EditNotApplied("the texts of the take's edits were not encoded", "make_take(donors=...) is missing")
    plan = edit_plan(model, recipe.edits, donors, recipe.sampler, recipe.video)
    for note in plan.notes:
        emit(events.Note(f"take {recipe.id}: {note}"))
    return plan


def _denoise(
    job: TakeJob,
    model: WanModel,
    conditioning: Conditioning,
    init_latents: Tensor | None,
    records: Records,
    plan: EditPlan | None,
    meter: _Meter,
    emit: events.Listener,
    interrupt: Callable[[], bool],
) -> Denoised:
    recipe = job.recipe
    steps = recipe.sampler.steps or 0
    edit = recipe.labels.get("edit", "")
    emit(events.TakeStarted(recipe.id, job.index, job.takes, recipe.prompt, recipe.seed, steps, edit))

    def on_step(state: StepState) -> None:
        used = meter.lap()
        emit(events.StepDone(recipe.id, state.step, steps, state.sigma, state.evaluations, state.seconds, used))

    with records.attached(plan) as around_call:
        return denoise(
            model,
            conditioning,
            recipe.sampler,
            initial_noise(model.latent_shape(recipe.video), recipe.seed),
            init_latents=init_latents,
            observers=records.observers,
            interrupt=interrupt,
            on_step=on_step,
            around_call=around_call,
        )


def _write_files(
    writer: TakeWriter,
    recipe: Recipe,
    final_CThw: np.ndarray,
    frames_FHW3: np.ndarray,
    env: Environment,
    lines: list[str],
) -> None:
    writer.write_final(final_CThw)
    carried = {
        "take": recipe.id,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "latents_sha256": latents_sha256(final_CThw),
        "environment": env.model_dump(mode="json"),
    }
    tags = {"title": recipe.prompt, METADATA_KEY: json.dumps(carried, ensure_ascii=False)}
    write_video(writer.folder / VIDEO, frames_FHW3, recipe.video.fps or 0, tags)
    write_poster(writer.folder / POSTER, frames_FHW3[len(frames_FHW3) // 2])
    (writer.folder / EVENTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def frames_of(video_BCFHW: Tensor) -> np.ndarray:
    """Return the frames, uint8 [F, H, W, 3], of a decoded video [1, 3, F, H, W] with values in -1..1."""
    video_FHWC = video_BCFHW[0].permute(1, 2, 3, 0).float()
    return ((video_FHWC + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _compare(job: TakeJob, final_CThw: np.ndarray, env: Environment, emit: events.Listener) -> tuple[Earlier, ...]:
    """Compare with the earlier result, and return the earlier results that the manifest should list.

    Raises ReplayDiffers where the bits differ although the environment is the same.
    """
    kept = job.existing.manifest.earlier if job.existing is not None else ()
    reference = job.reference
    if reference is None:
        return kept
    if reference.latents_sha256 == latents_sha256(final_CThw):
        emit(events.Note(f"take {job.recipe.id}: the same bits as {reference.source}"))
        return kept
    distance = _distance(job, final_CThw)
    changed = reference.environment.differences(env)
    if not changed:
        raise ReplayDiffers(
            f"take {job.recipe.id} was not reproduced",
            f"the machine, versions, device and threads are the same as for {reference.source}, but the final latents "
            f"differ{distance}. The existing take is kept. Please report this with the take.json of both",
        )
    emit(events.Note(f"take {job.recipe.id} differs from {reference.source}{distance}: {'; '.join(changed)}"))
    if job.existing is None:
        return kept
    before = job.existing.manifest
    return (*kept, Earlier(latents_sha256=before.latents_sha256, made=before.made, environment=before.environment))


def _is_intact(existing: Take, recipe: Recipe, emit: events.Listener) -> bool:
    """Return whether the existing take is kept: it has every requested record, and its files match their checksums."""
    if not existing.complete(recipe.capture, recipe.marks):
        return False
    try:
        existing.check_files()
    except DamagedTake as damage:
        emit(events.Note(f"take {recipe.id}: {damage.what} ({damage.why}); it is replaced"))
        return False
    return True


def _distance(job: TakeJob, final_CThw: np.ndarray) -> str:
    """Return the relative L2 distance of the latents as a clause, or "" where the earlier ones cannot be read."""
    existing, reference = job.existing, job.reference
    if existing is None or reference is None or existing.manifest.latents_sha256 != reference.latents_sha256:
        return ""
    with contextlib.suppress(DamagedTake, OSError, ValueError):
        before = existing.final
        if before.shape == final_CThw.shape:
            relative = np.linalg.norm(final_CThw - before) / max(float(np.linalg.norm(before)), 1e-30)
            return f" by {relative:.1e} of their norm"
    return ""


class _Meter:
    """Measures peak memory: of the device since this take began, and of the process since its start."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._peak = device, 0
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)

    def lap(self) -> int | None:
        """Return the device's peak since the last lap in bytes, or None on the CPU."""
        if not self._cuda:
            return None
        used = torch.cuda.max_memory_allocated(self.device)
        self._peak = max(self._peak, used)
        torch.cuda.reset_peak_memory_stats(self.device)
        return used

    def peaks(self) -> dict[str, int]:
        """Return the peaks in bytes: `process`, and on a GPU also `device`."""
        self.lap()
        peaks = {"process": process_peak_bytes()}
        return {**peaks, "device": self._peak} if self._cuda else peaks


def process_peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
