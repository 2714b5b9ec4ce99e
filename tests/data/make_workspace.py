"""Makes workspace-0.1.0.tar.gz: a small workspace as wanscope 0.1.0 left it, for tests/study/test_old_workspace.py.

Run it with the source of that version, in a clone of this repository:

    git worktree add /tmp/wanscope-0.1.0 17e90cf
    OMP_NUM_THREADS=3 PYTHONPATH=/tmp/wanscope-0.1.0/src python tests/data/make_workspace.py

Three threads, so that the takes come from another environment than those of a usual test run, and bits may differ.
The archive is what that version wrote, without its lock files. It is one file and not a folder in the repository,
because a workspace has links, which not every checkout keeps, some 200 files, and a database of 5 MB, nearly all of it
empty. Never make it again with a newer version: being old is its purpose.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SMALL = ["--width", "48", "--height", "48", "--frames", "5", "--steps", "4", "--guidance", "3"]
RED, BLUE = "a red circle moves left on a black background", "a blue circle moves left on a black background"
COMMANDS = (
    # Latents and attention of two colors: analyzed, and extended by seeds in the test.
    ["generate", "--template", "a [@color: red|blue] (circle) moves left on a black background", "--seeds", "4", *SMALL,
     "--store-latents", "--store-attention", "--name", "colors"],
    # Two edits at once, of which one takes sites from the other, and the takes without them.
    ["generate", "--template", RED, "--seeds", "3,8", *SMALL, "--name", "edited",
     "--edit", "inject 'a green square moves right' into early at 0.5 branch=both", "--edit", "skip 0"],
    ["analyze", "colors", "--no-report"],
    ["db", "label", BLUE, "--label", "blue one", "--tag", "color"],
    ["db", "compute", "red + 0.5*(blue - red)", "--name", f"red={RED}", "--name", f"blue={BLUE}", "--label", "between"],
)  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            subprocess.run(
                [sys.executable, "-m", "wanscope", *command, "--output-dir", "workspace"], cwd=folder, check=True
            )
        with tarfile.open(HERE / "workspace-0.1.0.tar.gz", "w:gz", compresslevel=9) as archive:
            archive.add(Path(folder) / "workspace", "workspace", filter=without_locks)


def without_locks(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The member without its owner; None for a lock file."""
    name = Path(member.name).name
    if name == ".locks" or name.endswith((".lock", ".line")):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
