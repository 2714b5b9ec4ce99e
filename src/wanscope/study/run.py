"""Running a study: everything is checked first, what is complete is skipped, and nothing that was finished is lost.

    run(source)  ->  read -> expand -> find the weights -> which takes are missing -> tokens, space
                 ->  load -> encode all prompts -> free the encoder -> place the transformer
                 ->  for each take: lock -> make -> rename into place

`source` is a study (or its file), a recipe or several, or a take that is to be made again (its id, take.json, MP4).
A take that fails does not stop the others. Stopped or killed anywhere, the same call goes on where it was. Two
processes on one study share the work: each take is made by who holds its lock, and both wait for all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wanscope import events
from wanscope.errors import Interrupted, StorageError, WanscopeError
from wanscope.study import recipe_model
from wanscope.study.embedding_reuse import RunCatalog
from wanscope.study.encode_texts import Texts, encode_prompts, needed_texts
from wanscope.study.lock import held
from wanscope.study.prepare import Prepared, Task, check, prepare, standing_take
from wanscope.study.read_request import Made, Source
from wanscope.study.study_folder import IndexRow, StudyFolder
from wanscope.take.disk import require_writable
from wanscope.take.store import Take, recover, unfinished, with_records_of
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.wan.model import WanModel

WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Failure:
    """A take that could not be made. `exception` is what it ended with."""

    take: str
    name: str
    prompt: str
    seed: int
    error: str
    exception: Exception


@dataclass(frozen=True)
class StudyResult:
    """What a run leaves. takes: all that are complete, in the study's order, whether made now or before.

    folder: of the study; None for recipes that belong to none. made: how many were made now.
    """

    name: str
    folder: Path | None
    takes: tuple[Take, ...]
    failed: tuple[Failure, ...]
    made: int
    seconds: float


def run(
    source: Source,
    *,
    workspace: Workspace | Path | str | None = None,
    model: WanModel | None = None,
    memory: str = "auto",
    device: str = "auto",
    on_event: events.Listener = events.ignore,
    interrupt: Callable[[], bool] = lambda: False,
) -> StudyResult:
    """Make every take of `source` that is not there yet.

    model: one that is loaded already; it stays as it is. memory, device: for loading otherwise. Between two steps
    `interrupt()` may ask to stop, which raises Interrupted as Ctrl-C does; finished takes stay.

    RecipeError, ModelError, MemoryPlanError, TakeNotFound or StorageError before any work where the request cannot
    be met. Later, a StorageError ends the run (the next take would meet the same disk); any other failure is the
    take's own and is in `failed`.
    """
    began = time.monotonic()
    try:
        prepared = prepare(source, Workspace.find(workspace), model, on_event)
        check(prepared, model, device, memory)
    except KeyboardInterrupt:
        raise Interrupted("stopped before any work", "", "run the same again") from None
    session = _Session(prepared, model, memory, device, on_event, interrupt)
    try:
        session.run()
    except KeyboardInterrupt:
        raise session.stopped() from None
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
        self.prepared, self.space, self.tasks = prepared, prepared.space, prepared.tasks
        self.given, self.memory, self.device = model, memory, device
        self.emit, self.interrupt = on_event, interrupt
        self.made = 0
        self.catalog = RunCatalog(self.space, on_event)
        self.folder = StudyFolder(self.space, prepared.name) if prepared.expansion is not None else None

    def run(self) -> None:
        require_writable(self.space.takes)
        if self.folder is not None and self.prepared.expansion is not None:
            for note in self.folder.begin(self.prepared.expansion):
                self.emit(note)
            self.folder.record(self.rows())
        done = sum(task.done is not None for task in self.tasks)
        self.emit(events.StudyStarted(self.prepared.name, self.where, len(self.tasks), done))
        for task in self.tasks:
            if task.done is not None and task.recipe.id not in self.prepared.replays:
                self.skipped(task)
        try:
            self.tidy()
            for key, tasks in self.prepared.by_model().items():
                self.make_group(key, tasks)
        finally:
            if self.folder is not None:
                self.folder.record(self.rows())
            self.catalog.close()

    @property
    def where(self) -> str:
        return str(self.folder.folder if self.folder is not None else self.space.takes)

    def result(self, seconds: float) -> StudyResult:
        failed = tuple(_failure(task, task.error) for task in self.tasks if task.error is not None)
        skipped = len(self.tasks) - self.made - len(failed)
        self.emit(events.StudyDone(self.prepared.name, self.where, self.made, skipped, len(failed), seconds))
        takes = tuple(task.done for task in self.tasks if task.done is not None)
        folder = self.folder.folder if self.folder is not None else None
        return StudyResult(self.prepared.name, folder, takes, failed, self.made, seconds)

    def rows(self) -> Iterator[IndexRow]:
        for task in self.tasks:
            for row in task.rows:
                if task.error is not None:
                    yield replace(row, status="failed", error=_said(task.error))
                elif task.done is not None:
                    yield replace(row, status="complete", seconds=task.done.manifest.seconds.get("total"))
                else:
                    yield row

    def skipped(self, task: Task) -> None:
        folder = str(self.space.take_folder(task.recipe.id))
        self.emit(events.TakeSkipped(task.recipe.id, task.index, len(self.tasks), folder, "complete"))

    # making

    def make_group(self, key: recipe_model.ModelKey, tasks: list[Task]) -> None:
        """All takes that one model makes."""
        recipes = [task.recipe for task in tasks]
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
        starts = {task.start.spec: task.start.latents(model) for task in tasks if task.start is not None}
        waiting = [task for task in tasks if not self.attempt(task, model, texts, starts)]
        if waiting:
            self.emit(events.Note(f"waiting for {len(waiting)} takes that another process is making"))
        while waiting:
            time.sleep(WAIT_SECONDS)
            waiting = [task for task in waiting if not self.attempt(task, model, texts, starts)]
        if self.given is None:
            del model
            recipe_model.free_memory()

    def attempt(self, task: Task, model: WanModel, texts: Texts, starts: dict) -> bool:
        """Make a take, or find that it is complete by now. False when another process is making it."""
        if self.interrupt():
            raise self.stopped()
        take = task.recipe.id
        with held(self.space.takes, take) as ours:
            if not ours:
                return False
            recover(self.space.takes, take)
            standing = standing_take(self.space, take)
            recipe, replayed = task.recipe, take in self.prepared.replays
            if standing is not None and standing.complete(recipe.capture, recipe.marks) and not replayed:
                task.done = standing
                self.skipped(task)
            else:
                init = starts[task.start.spec] if task.start is not None else None
                self.make(task, standing, model, texts, init)
        if self.folder is not None and task.done is not None:
            self.folder.link(task.rows)
        if task.done is not None:
            self.catalog.index([task.done.folder])
        return True

    def make(self, task: Task, standing: Take | None, model: WanModel, texts: Texts, init: Tensor | None) -> None:
        from wanscope.study.make_take import Job, make_take

        recipe = task.recipe
        if standing is not None:
            recipe = with_records_of(standing.recipe, recipe)
        made = self.prepared.replays.get(recipe.id)
        if made is None and standing is not None:
            made = Made(standing.manifest.latents_sha256, standing.manifest.environment, str(standing.folder))
        job = Job(recipe, task.index, len(self.tasks), made, standing)
        try:
            conditioning = texts.conditioning(recipe)
            task.done = make_take(
                job,
                model,
                conditioning,
                self.space,
                init_latents=init,
                on_event=self.emit,
                interrupt=self.interrupt,
                donors=texts.donors(recipe) if recipe.edits or recipe.capture.inside else None,
            )
            self.made += task.done is not standing
        except Interrupted:
            raise self.stopped() from None
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - one take's failure is reported, and the study goes on
            task.error = error
            self.emit(events.TakeFailed(recipe.id, task.index, len(self.tasks), _said(error)))
            recipe_model.free_memory()

    def tidy(self) -> None:
        """Remove what killed processes left, unless their takes are being made right now."""
        for take in unfinished(self.space.takes):
            with held(self.space.takes, take) as ours:
                if ours:
                    recover(self.space.takes, take)

    def stopped(self) -> Interrupted:
        done = sum(task.done is not None for task in self.tasks)
        return Interrupted(
            f"stopped with {done} of {len(self.tasks)} takes complete",
            "they stay, and the one in progress is not kept",
            "run the same again to go on",
        )


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, WanscopeError) else f"{type(error).__name__}: {error}"


def _failure(task: Task, error: Exception) -> Failure:
    recipe = task.recipe
    name = task.rows[0].name if task.rows else recipe.id
    return Failure(recipe.id, name, recipe.prompt, recipe.seed, _said(error), error)
