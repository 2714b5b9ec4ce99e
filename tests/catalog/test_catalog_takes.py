"""Takes are an index of their folders: rows do not depend on how they were added, and damaged takes are listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.studies import STUDY, Events, model
from helpers.takes import recipe, write_take
from wanscope.catalog.catalog import Catalog
from wanscope.events import Note, PromptsEncoded
from wanscope.study.run import run

TABLES = ("takes", "variations", "edits", "metrics")


def rows(catalog: Catalog) -> dict[str, list[dict[str, Any]]]:
    return {name: catalog.sql(f"SELECT * FROM {name} ORDER BY ALL").to_pylist() for name in TABLES}


def test_rebuilding_gives_the_same_rows_as_the_run(tmp_path: Path) -> None:
    run(STUDY, workspace=tmp_path, model=model())
    catalog = Catalog(tmp_path)
    made = rows(catalog)
    assert len(made["takes"]) == 4 == len(made["variations"])
    assert {row["prompt"] for row in made["takes"]} == {"a red circle", "a blue circle"}
    assert {json.loads(row["slots"])["color"] for row in made["variations"]} == {"red", "blue"}
    found = catalog.index(rebuild=True)
    assert (found.takes, found.added, found.removed, found.studies) == (4, 0, 0, 1)
    assert rows(catalog) == made
    catalog.path.unlink()
    catalog.db.log.unlink(missing_ok=True)
    assert Catalog(tmp_path).index(rebuild=True).adopted == 3  # the texts, from their files
    assert rows(Catalog(tmp_path)) == made


def test_a_deleted_folder_disappears_and_a_new_one_is_added(tmp_path: Path) -> None:
    kept, gone = (write_take(tmp_path / "takes", recipe(seed)) for seed in (1, 2))
    catalog = Catalog(tmp_path)
    assert catalog.index().added == 2
    catalog.add_metrics(
        [{"take": t.id, "name": "linearity", "value": 0.5, "source": "trajectory"} for t in (kept, gone)]
    )
    shutil.rmtree(gone.folder)
    new = write_take(tmp_path / "takes", recipe(3))
    found = catalog.index()
    assert (found.takes, found.added, found.removed) == (2, 1, 1)
    assert set(catalog.takes()["id"].to_pylist()) == {kept.id, new.id}
    for rebuild in (False, True):
        catalog.index(rebuild=rebuild)
        analyzed = catalog.sql("SELECT take FROM metrics WHERE source = 'trajectory'")["take"].to_pylist()
        assert analyzed == [kept.id]


def test_a_damaged_folder_is_listed_and_stops_nothing(tmp_path: Path) -> None:
    good, short, broken = (write_take(tmp_path / "takes", recipe(seed)) for seed in (1, 2, 3))
    short.video.write_bytes(b"x")
    (broken.folder / "take.json").write_text("{")
    (tmp_path / "studies" / "bad").mkdir(parents=True)
    (tmp_path / "studies" / "bad" / "index.csv").write_text("name,take\nx,y\n")
    catalog = Catalog(tmp_path)
    found = catalog.index(rebuild=True)
    assert set(found.damaged) == {short.id, broken.id} and "video.mp4" in found.damaged[short.id]
    assert "bad" in found.unreadable
    status = {row["id"]: (row["status"], row["prompt"]) for row in catalog.takes().to_pylist()}
    assert status == {
        good.id: ("complete", "a red circle"),
        short.id: ("damaged", "a red circle"),
        broken.id: ("damaged", None),
    }


def test_stored_texts_are_not_encoded_again_and_give_the_same_bits(tmp_path: Path, monkeypatch) -> None:
    first, second = Events(), Events()
    one = run({**STUDY, "seeds": 1}, workspace=tmp_path, model=model(), on_event=first)
    assert [(e.prompts, e.reused) for e in first.of(PromptsEncoded)] == [(3, 0)]
    for take in one.takes:
        shutil.rmtree(take.folder)

    def never(*_: object) -> None:
        raise AssertionError("the encoder was used")

    monkeypatch.setattr("wanscope.wan.text.encode", never)
    monkeypatch.setattr("wanscope.study.recipe_model.place_encoder", never)
    two = run({**STUDY, "seeds": 1}, workspace=tmp_path, model=model(), on_event=second)
    assert [(e.prompts, e.reused) for e in second.of(PromptsEncoded)] == [(0, 3)]
    assert [t.manifest.latents_sha256 for t in one.takes] == [t.manifest.latents_sha256 for t in two.takes]
    assert Catalog(tmp_path).stats()["embeddings"]["uses"] == 3
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)  # another environment may round differently
        with pytest.raises(AssertionError, match="the encoder was used"):
            run({**STUDY, "seeds": [5]}, workspace=tmp_path, model=model())
    finally:
        torch.set_num_threads(threads)


def test_the_encoder_is_never_loaded_when_every_text_is_stored(tmp_path: Path, monkeypatch) -> None:
    study = {**STUDY, "model": "marbles", "seeds": 1, "video": {"width": 64, "height": 64, "frames": 5}}
    study = {**study, "sampler": {"steps": 1}}
    first = run(study, workspace=tmp_path)
    shutil.rmtree(first.takes[0].folder)

    def never(*_: object) -> None:
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr("wanscope.wan.load._encoder", never)
    second = run(study, workspace=tmp_path)
    assert second.made == 1 and second.failed == ()
    assert second.takes[0].manifest.latents_sha256 == first.takes[0].manifest.latents_sha256


def test_a_damaged_catalog_is_reported_once_and_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "catalog.duckdb").write_bytes(b"broken" * 1000)
    events = Events()
    result = run({**STUDY, "seeds": 1}, workspace=tmp_path, model=model(), on_event=events)
    assert result.made == 2 and result.failed == ()
    told = [note.text for note in events.of(Note) if "without the catalog" in note.text]
    assert len(told) == 1 and "damaged" in told[0] and "wanscope index --rebuild" in told[0]
    assert (tmp_path / "catalog.duckdb").read_bytes() == b"broken" * 1000
    assert Catalog(tmp_path).index(rebuild=True).takes == 2
