"""Running a study: everything is checked first, complete takes are skipped, and finished takes are never lost.

    run(source)  ->  read -> expand -> locate weights -> key -> check   (prepare.py)
                 ->  load -> encode all prompts -> free the encoder -> place the transformer
                 ->  for each take: lock -> make -> rename into place

`source` is a study (or its file), one or several recipes, or a take to make again (its id, take.json or MP4). A take
that fails does not stop the others. A run that was stopped or killed at any point is continued by the same call. Two
processes on one study share the work: the one that holds a take's lock makes it, and both return when all takes are
done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wanscope import events
from wanscope.errors import DamagedTake, Interrupted, StorageError, StorageRefused, WanscopeError
from wanscope.study import recipe_model
from wanscope.study.check_takes import PlannedTake, Prepared
from wanscope.study.embedding_reuse import RunCatalog
from wanscope.study.encode_texts import Texts, encode_prompts, needed_texts
from wanscope.study.lock import held
from wanscope.study.prepare import prepare
from wanscope.study.read_request import ReplayReference, Request, StudySource
from wanscope.study.study_folder import IndexRow, StudyFolder
from wanscope.take.disk import ending, guarded, require_writable
from wanscope.take.manifest import check_sizes
from wanscope.take.store import Take, existing_take, recover, unfinished, with_records_of
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.wan.model import WanModel

WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Failure:
    """A take that could not be made. `exception` is the error that ended it."""

    take: str
    name: str
    prompt: str
    seed: int
    error: str
    exception: Exception


@dataclass(frozen=True)
class StudyResult:
    """The result of a run.

    folder: that of the study; None for recipes without a study. takes: all complete takes in the study's order, whether
    made now or before. made: how many takes were made now.
    """

    name: str
    folder: Path | None
    takes: tuple[Take, ...]
    failed: tuple[Failure, ...]
    made: int
    seconds: float


def run(
    source: StudySource | Request,
    *,
    workspace: Workspace | Path | str | None = None,
    model: WanModel | None = None,
    memory: str = "auto",
    device: str = "auto",
    on_event: events.Listener = events.ignore,
    interrupt: Callable[[], bool] = lambda: False,
) -> StudyResult:
    """Make every take of `source` that does not exist yet.

    model: a model that is already loaded; its weights stay loaded afterwards. memory, device: how a model is loaded
    otherwise. interrupt: called between steps; where it returns True, the run stops with Interrupted, as on Ctrl-C, and
    finished takes are kept.

    Raises RecipeError, ModelError, MemoryPlanError, TakeNotFound or StorageError before any work where the request
    cannot be met. Later, a StorageError ends the run, because the next take would fail in the same way; any other
    failure belongs to its take and is listed in `failed`.
    """
    began = time.monotonic()
    try:
        prepared = prepare(source, Workspace.find(workspace), model, device, memory, on_event)
    except KeyboardInterrupt:
        raise Interrupted("stopped before any work", "run it again to start") from None
    session = _Session(prepared, model, memory, device, on_event, interrupt)
    try:
        with guarded(prepared.space.takes):
            session.run()
    except KeyboardInterrupt:
        raise session.stopped() from None
    except StorageRefused:  # before any work
        raise
    except StorageError as error:
        raise type(error)(error.what, f"{error.why}; {session.kept}", error.fix) from error
    return session.result(time.monotonic() - began)


class _Session:
    def __init__(
        self,
        prepared: Prepared,
        model: WanModel | None,
        memory: str,
        device: str,
        on_event: events.Listener,
        interrupt: Callable[[], bool],
    ) -> None:
        self.prepared, self.space, self.takes = prepared, prepared.space, prepared.takes
        self.done = {take.id: take.existing for take in prepared.takes if take.existing is not None and take.complete}
        self.errors: dict[str, Exception] = {}
        self.given, self.memory, self.device = model, memory, device
        self.emit, self.interrupt = on_event, interrupt
        self.made = 0
        self.catalog = RunCatalog(self.space, on_event)
        self.folder = StudyFolder(self.space, prepared.name) if prepared.expansion is not None else None

    def run(self) -> None:
        require_writable(self.space.takes)
        if self.folder is not None and self.prepared.expansion is not None:
            for note in (*self.prepared.expansion.notes, *self.folder.begin(self.prepared.expansion)):
                self.emit(note)
            self.folder.record(self.rows())
        self.emit(events.StudyStarted(self.prepared.name, self.where, len(self.takes), len(self.done)))
        for take in self.takes:
            if take.id in self.done and take.id not in self.prepared.replays:
                self.skipped(take)
        try:
            self.tidy()
            for key, takes in self.prepared.groups.items():
                self.make_group(key, takes)
            self.look_again()
        except BaseException:
            with contextlib.suppress(StorageError):  # what ended the run is the error to report
                self.close()
            raise
        self.close()

    def close(self) -> None:
        """Write the study's table and bring the catalog up to date."""
        if self.folder is not None:
            self.folder.record(self.rows())
        self.catalog.close()

    def look_again(self) -> None:
        """Report takes that were complete during the run and are not any more: removed or cut short by others."""
        for take in self.takes:
            done = self.done.get(take.id)
            if done is None:
                continue
            try:
                with held(self.space.takes, take.id, WAIT_SECONDS):  # another process may be replacing it right now
                    check_sizes(done.folder, Take.open(done.folder).manifest.files)
            except DamagedTake as damage:
                del self.done[take.id]
                gone = DamagedTake(
                    f"the take was complete and is not any more: {damage.what}",
                    damage.why,
                    "run the same again, and leave the workspace alone until it is done",
                )
                self.errors[take.id] = gone
                self.emit(events.TakeFailed(take.id, take.index, len(self.takes), _error_text(gone)))

    @property
    def where(self) -> str:
        return str(self.folder.folder if self.folder is not None else self.space.takes)

    def result(self, seconds: float) -> StudyResult:
        failed = tuple(_failure(take, self.errors[take.id]) for take in self.takes if take.id in self.errors)
        skipped = len(self.takes) - self.made - len(failed)
        self.emit(events.StudyDone(self.prepared.name, self.where, self.made, skipped, len(failed), seconds))
        takes = tuple(self.done[take.id] for take in self.takes if take.id in self.done)
        folder = self.folder.folder if self.folder is not None else None
        return StudyResult(self.prepared.name, folder, takes, failed, self.made, seconds)

    def rows(self) -> Iterator[IndexRow]:
        for take in self.takes:
            error, done = self.errors.get(take.id), self.done.get(take.id)
            for row in take.rows:
                if error is not None:
                    yield replace(row, status="failed", error=_error_text(error))
                elif done is not None:
                    yield replace(row, status="complete", seconds=done.manifest.seconds.get("total"))
                else:
                    yield row

    def skipped(self, take: PlannedTake) -> None:
        folder = str(self.space.take_folder(take.id))
        self.emit(events.TakeSkipped(take.id, take.index, len(self.takes), folder, "complete"))

    # making

    def make_group(self, key: recipe_model.ModelKey, takes: Sequence[PlannedTake]) -> None:
        """Make all takes that use one model."""
        recipes = [take.recipe for take in takes]
        needed = needed_texts(recipes)
        known = self.catalog.recall(needed, recipes[0], self.given, self.device)
        encode = len(known) < len(needed)
        model = self.given or recipe_model.load_model(key, recipes, self.device, self.memory, self.emit, encoder=encode)
        if encode:
            recipe_model.place_encoder(model)
        texts = encode_prompts(model, recipes, self.emit, known, self.catalog)
        if self.given is None:
            model.free_encoder()
        recipe_model.place(model, recipes, self.emit)
        starts = {take.start.spec: take.start.latents(model) for take in takes if take.start is not None}
        waiting = [take for take in takes if not self.attempt(take, model, texts, starts)]
        if waiting:
            count = f"{len(waiting)} take{'s'[: len(waiting) != 1]}"
            self.emit(events.Note(f"waiting for {count} that another process is making"))
        while waiting:
            time.sleep(WAIT_SECONDS)
            waiting = [take for take in waiting if not self.attempt(take, model, texts, starts)]
        if self.given is None:
            del model
            recipe_model.free_memory()

    def attempt(self, take: PlannedTake, model: WanModel, texts: Texts, starts: dict) -> bool:
        """Make a take, unless it is complete by now. Return False where another process is making it."""
        if self.interrupt():
            raise self.stopped()
        recipe = take.recipe
        with held(self.space.takes, take.id) as ours:
            if not ours:
                return False
            recover(self.space.takes, take.id)
            existing, replayed = existing_take(self.space.take_folder(take.id)), take.id in self.prepared.replays
            if existing is not None and existing.complete(recipe.capture, recipe.marks) and not replayed:
                self.done[take.id] = existing
                self.skipped(take)
            else:
                init = starts[take.start.spec] if take.start is not None else None
                self.make(take, existing, model, texts, init)
        done = self.done.get(take.id)
        if self.folder is not None and done is not None:
            self.folder.link(take.rows)
        if done is not None:
            self.catalog.index([done.folder])
        return True

    def make(
        self, take: PlannedTake, existing: Take | None, model: WanModel, texts: Texts, init: Tensor | None
    ) -> None:
        """Make one take; `init` is what it starts from, [1, C, T, h, w]. Its failure is recorded and emitted."""
        from wanscope.study.make_take import TakeJob, make_take

        recipe = take.recipe
        if existing is not None:
            recipe = with_records_of(existing.recipe, recipe)
        reference = self.prepared.replays.get(take.id)
        if reference is None and existing is not None:
            manifest = existing.manifest
            reference = ReplayReference(manifest.latents_sha256, manifest.environment, str(existing.folder))
        job = TakeJob(recipe, take.index, len(self.takes), reference, existing)
        try:
            conditioning = texts.conditioning(recipe)
            done = make_take(
                job,
                model,
                conditioning,
                self.space,
                init_latents=init,
                on_event=self.emit,
                interrupt=self.interrupt,
                donors=texts.donors(recipe) if recipe.edits or recipe.capture.inside else None,
            )
            self.done[take.id] = done
            self.made += done is not existing
        except Interrupted:
            raise self.stopped() from None
        except StorageError:
            raise
        except Exception as error:  # one take's failure is reported, and the study continues
            if (storage := ending(error, self.space.takes)) is not None:
                raise storage from error
            self.errors[take.id] = error
            self.emit(events.TakeFailed(take.id, take.index, len(self.takes), _error_text(error)))
            recipe_model.free_memory()

    def tidy(self) -> None:
        """Remove the temporary folders of killed processes, except those of takes that are being made right now."""
        for take in unfinished(self.space.takes):
            with held(self.space.takes, take) as ours:
                if ours:
                    recover(self.space.takes, take)

    def stopped(self) -> Interrupted:
        return Interrupted(
            f"stopped with {len(self.done)} of {len(self.takes)} takes complete",
            "they are kept, and the one in progress is not. Run it again to continue",
        )

    @property
    def kept(self) -> str:
        """A clause that says what an error does not take away."""
        return f"{len(self.done)} of {len(self.takes)} takes are complete and stay"


def _error_text(error: Exception) -> str:
    return str(error) if isinstance(error, WanscopeError) else f"{type(error).__name__}: {error}"


def _failure(take: PlannedTake, error: Exception) -> Failure:
    recipe = take.recipe
    name = take.rows[0].name if take.rows else take.id
    return Failure(take.id, name, recipe.prompt, recipe.seed, _error_text(error), error)
