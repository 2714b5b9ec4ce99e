"""A take is complete or does not exist, is opened lazily, and reports which file is damaged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.takes import path_of, recipe, write_take
from wanscope.errors import DamagedTake, NotCaptured, StorageError, StorageRefused, TakeNotFound
from wanscope.recipe import CaptureSpec, LatentsCapture
from wanscope.take import disk
from wanscope.take.manifest import read_manifest
from wanscope.take.store import Take, TakeWriter, covers, latents_sha256, recover, union
from wanscope.workspace import Workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Take:
    return write_take(tmp_path_factory.mktemp("made") / "takes", recipe(seed=3))


@pytest.fixture
def take(tmp_path: Path) -> Take:
    return write_take(tmp_path / "takes", recipe(seed=3))


def test_a_take_reads_back_what_was_written(made: Take) -> None:
    take = Take.open(made.folder)
    states = path_of(take.recipe)
    assert take.recipe == recipe(seed=3) and take.id == take.recipe.id
    assert np.array_equal(take.latents[:], states)
    assert np.array_equal(take.final, states[-1]) and take.final.dtype == np.float32
    assert take.states.tolist() == [0, 1, 2, 3, 4]
    assert take.frames.shape == (9, 48, 64, 3) and take.frames.dtype == np.uint8
    assert take.sigmas[0] == 1 and take.sigmas[-1] == 0
    assert take.events() == [{"event": "TakeStarted"}]
    take.verify()
    assert take.complete(take.recipe.capture)


def test_the_gram_keeps_every_bit_through_json(made: Take) -> None:
    v = np.diff(path_of(made.recipe).reshape(5, -1).astype(np.float64), axis=0, prepend=0)
    assert np.allclose(Take.open(made.folder).gram, v @ v.T, rtol=1e-12)
    assert Take.open(made.folder).manifest.gram == made.manifest.gram


def test_latents_have_one_shard_per_step_and_one_chunk_per_latent_frame(made: Take) -> None:
    assert made.latents.shards == (1, 16, 3, 6, 8)
    assert made.latents.chunks == (1, 16, 1, 6, 8)
    shards = sorted(p.name for p in (made.folder / "latents.zarr").iterdir())
    assert shards == [*(f"c.{k}.0.0.0.0" for k in range(5)), "zarr.json"]
    assert np.isnan(made.latents.fill_value)
    codecs = json.loads((made.folder / "latents.zarr" / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert codecs["codecs"][-1]["name"] == "crc32c"
    assert codecs["index_codecs"][-1]["name"] == "crc32c"


def flip(path: Path, place: float = 0.5) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * place)] ^= 0x10
    path.write_bytes(bytes(raw))


LISTED = ["video.mp4", "poster.webp", "final.npy", "events.jsonl", "latents.zarr/zarr.json", "latents.zarr/c.2.0.0.0.0"]


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("harm", ["flip", "remove", "cut"])
def test_damage_to_any_file_is_found_and_named(take: Take, name: str, harm: str) -> None:
    path = take.folder / name
    if harm == "flip":
        flip(path)
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedTake, match=path.name):
        Take.open(take.folder).verify()
    assert Take.open(take.folder).complete(take.recipe.capture) == (harm == "flip")


@pytest.mark.parametrize("name", ["latents.zarr/c.2.0.0.0.0", "latents.zarr/c.0.0.0.0.0"])
def test_a_flipped_byte_or_missing_chunk_is_refused_on_opening_the_latents(take: Take, name: str) -> None:
    flip(take.folder / name)
    with pytest.raises(DamagedTake, match=name):
        _ = Take.open(take.folder).latents
    (take.folder / name).unlink()
    with pytest.raises(DamagedTake, match=f"{name}.*missing"):
        _ = Take.open(take.folder).latents


def test_damaged_frames_and_final_latents_are_refused(take: Take) -> None:
    flip(take.folder / "video.mp4")
    flip(take.folder / "final.npy", 0.9)
    with pytest.raises(DamagedTake, match=r"video\.mp4"):
        _ = Take.open(take.folder).frames
    with pytest.raises(DamagedTake, match=r"final\.npy"):
        _ = Take.open(take.folder).final


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.97])
def test_a_changed_take_json_is_refused(take: Take, place: float) -> None:
    path = take.folder / "take.json"
    text = path.read_text()
    spot = next(i for i in range(int(len(text) * place), len(text)) if text[i].isalnum())
    path.write_text(text[:spot] + ("7" if text[spot] != "7" else "8") + text[spot + 1 :])
    with pytest.raises(DamagedTake, match=r"take\.json"):
        Take.open(take.folder)


def test_a_take_json_of_a_newer_version_is_reported_as_such(take: Take) -> None:
    path = take.folder / "take.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 99', 1))
    with pytest.raises(DamagedTake, match="newer wanscope"):
        Take.open(take.folder)


def test_a_file_that_does_not_belong_is_named(take: Take) -> None:
    (take.folder / "notes.txt").write_text("mine")
    with pytest.raises(DamagedTake, match=r"notes\.txt"):
        take.verify()


def test_records_that_were_not_captured_are_named(tmp_path: Path) -> None:
    take = write_take(tmp_path / "takes", recipe(latents=False))
    for name in ("latents", "states", "gram"):
        with pytest.raises(NotCaptured, match="store-latents"):
            getattr(take, name)
    take.verify()


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    takes = tmp_path / "takes"

    def fail() -> None:
        with TakeWriter(takes, "abc") as writer:
            (writer.folder / "x").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(takes.iterdir()) == []


def test_an_interrupted_replacement_of_a_take_is_undone_or_finished(take: Take) -> None:
    takes, place = take.folder.parent, take.folder
    older = takes / f".{take.id}.1.old"
    partial = takes / f".{take.id}.1.partial"
    place.rename(older)
    partial.mkdir()
    recover(takes, take.id)  # killed between the two renames: only the older take exists
    assert sorted(p.name for p in takes.iterdir()) == [take.id]
    Take.open(place).verify()
    older.mkdir()
    recover(takes, take.id)  # killed after them: the new take exists, and the one moved aside is removed
    assert sorted(p.name for p in takes.iterdir()) == [take.id]


def test_opening_a_take_loads_no_torch_zarr_or_av(made: Take) -> None:
    code = (
        "import sys; from wanscope.take.store import Take; t = Take.open(sys.argv[1]); assert t.gram.shape == (5, 5);"
        "print([m for m in ('torch', 'zarr', 'av', 'diffusers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(made.folder)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


CAPTURES = [
    CaptureSpec(),
    *(CaptureSpec(latents=LatentsCapture(dtype=d, every=e)) for d in ("fp16", "fp32") for e in (1, 2, 3)),
]


@pytest.mark.parametrize("have", CAPTURES)
@pytest.mark.parametrize("asked", CAPTURES)
def test_a_union_of_records_covers_both(have: CaptureSpec, asked: CaptureSpec) -> None:
    both = union(have, asked)
    assert covers(both, have) and covers(both, asked)
    assert (both == have) or not covers(have, asked) or covers(have, both)


def test_coarser_records_do_not_cover_finer_ones() -> None:
    fine, coarse = CaptureSpec(latents=LatentsCapture(every=2)), CaptureSpec(latents=LatentsCapture(every=4))
    assert covers(fine, coarse) and not covers(coarse, fine)
    half, full = CaptureSpec(latents=LatentsCapture()), CaptureSpec(latents=LatentsCapture(dtype="fp32"))
    assert covers(full, half) and not covers(half, full)


def test_the_latents_checksum_is_of_the_values() -> None:
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    assert latents_sha256(x) == latents_sha256(np.asfortranarray(x)) == latents_sha256(x.astype(">f4"))
    assert latents_sha256(x) != latents_sha256(x + 1)


# the disk


FILL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from wanscope.errors import StorageError
from wanscope.take.store import TakeWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with TakeWriter(Path(sys.argv[1]), "a" * 16) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    try:
        writer.write_final(np.zeros((16, 5, 16, 16), np.float32))
    except StorageError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no limits on the size of files")
def test_latents_that_fill_the_disk_halfway_are_a_full_disk(tmp_path: Path) -> None:
    """Only the first part is written: numpy's own writing to a file would lose the reason."""
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True)
    assert "is full" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "full"), (errno.EACCES, "cannot be written"), (errno.EROFS, "cannot be written")]
)
def test_a_refusing_disk_is_a_storage_error(tmp_path: Path, code: int, says: str) -> None:
    with pytest.raises(StorageError, match=says), disk.guarded(tmp_path):
        raise OSError(code, "the system's words", str(tmp_path / "file"))


def test_a_full_disk_error_does_not_report_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free space is less than what was to be written; with a quota, it is not informative."""
    monkeypatch.setattr("wanscope.take.disk.free_bytes", lambda folder: 700_000)
    with pytest.raises(StorageError) as full, disk.guarded(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "is full: the data needs more than the 700.0 kB that are left" in str(full.value)
    with pytest.raises(StorageError) as limited, disk.guarded(tmp_path):
        raise OSError(errno.EFBIG, "File too large")
    assert "is full: the system reports: File too large." in str(limited.value) and "kB" not in str(limited.value)


def test_a_programming_error_inside_a_guard_stays_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk.guarded(tmp_path):
        (tmp_path / "none").read_text()


def test_too_little_space_names_both_sizes(tmp_path: Path) -> None:
    disk.require_space(tmp_path / "not" / "yet", 1000, 2)
    with pytest.raises(StorageError, match=r"2 takes need about 1000000\.0 TB, and .* are free"):
        disk.require_space(tmp_path, 10**18, 2)
    with pytest.raises(StorageRefused, match="1 take needs about"):
        disk.require_space(tmp_path, 10**18, 1)


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be"):
        disk.require_writable(tmp_path / "file" / "takes")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no such place here")
@pytest.mark.parametrize("name", ["/proc/x", "/proc/x/y", "/proc"])
def test_a_path_that_is_not_on_a_disk_is_named_as_such(name: str) -> None:
    for check in (disk.require_writable, lambda folder: disk.require_space(folder, 10, 1)):
        with pytest.raises(StorageRefused, match="/proc is not on a disk") as raised:
            check(Path(name))
        assert raised.value.exit_status == 2 and "space" not in str(raised.value)


def test_a_read_only_place_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the system's answer is simulated; a read-only disk gives the same one.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(StorageRefused, match="no permission to write in") as raised:
        disk.require_writable(tmp_path / "new")
    assert raised.value.exit_status == 2 and not (tmp_path / "new").exists()


# the workspace


def test_takes_are_found_by_id_start_folder_file_and_link(take: Take, tmp_path: Path) -> None:
    space = Workspace.find(tmp_path)
    link = tmp_path / "red_seed03.mp4"
    link.symlink_to(take.video)
    for name in (take.id, take.id[:5], take.folder, take.folder / "take.json", take.video, link):
        assert space.find_take(name) == take.folder
    assert space.take_ids() == [take.id]


def test_a_missing_or_unclear_take_is_refused(take: Take, tmp_path: Path) -> None:
    space = Workspace.find(tmp_path)
    with pytest.raises(TakeNotFound, match="no take zzz"):
        space.find_take("zzz")
    twin = take.folder.parent / (take.id[:4] + "zz")
    twin.mkdir()
    (twin / "take.json").write_text("{}")
    with pytest.raises(TakeNotFound, match="any of 2"):
        space.find_take(take.id[:4])


def test_the_suggested_command_uses_the_workspace_that_was_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANSCOPE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)

    def tried(folder: Path | str | None) -> str:
        with pytest.raises(TakeNotFound) as refused:
            Workspace.find(folder).find_take("zzz")
        return refused.value.fix

    assert tried(None) == tried("wanscope-out") == "wanscope takes"
    assert tried("my out") == "wanscope takes --output-dir 'my out'"
    assert tried(tmp_path.parent / "far") == f"wanscope takes --output-dir {tmp_path.parent / 'far'}"
    monkeypatch.setenv("WANSCOPE_HOME", str(tmp_path / "my out"))
    assert tried("my out") == "wanscope takes"


def test_the_workspace_follows_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANSCOPE_HOME", str(tmp_path / "home"))
    assert Workspace.find().folder == tmp_path / "home"
    assert Workspace.find(tmp_path / "given").folder == tmp_path / "given"
    monkeypatch.delenv("WANSCOPE_HOME")
    monkeypatch.chdir(tmp_path)
    assert Workspace.find().folder == tmp_path / "wanscope-out"
    assert not (tmp_path / "wanscope-out").exists()


def test_a_manifest_folder_without_take_json_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(DamagedTake, match="not a finished take"):
        read_manifest(tmp_path)
