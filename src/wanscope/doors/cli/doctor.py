"""`wanscope doctor`: what this machine has, and how to fix what it lacks."""

from __future__ import annotations

from pathlib import Path

from wanscope.doors.cli import output
from wanscope.workspace import Workspace

WORDS = {"ok": "ok", "warn": "mind", "fail": "WRONG"}


def run_doctor(output_dir: Path | None, json: bool) -> int:
    from wanscope.wan.doctor import diagnose

    checks = diagnose(Workspace.find(output_dir).folder)
    failed = [check for check in checks if check.status == "fail"]
    if json:
        output.document({"ok": not failed, "checks": [check.as_dict() for check in checks]})
        return 1 if failed else 0
    width = max(len(check.name) for check in checks)
    for check in checks:
        output.say(f"{WORDS[check.status]:5}  {check.name.ljust(width)}  {check.detail}")
        if check.fix:
            output.say(f"{'':5}  {'':{width}}  do: {check.fix}")
    minded = sum(check.status == "warn" for check in checks)
    if failed:
        output.say(f"\n{len(failed)} of {len(checks)} checks failed: {', '.join(check.name for check in failed)}.")
        return 1
    output.say("\nAll is well." if not minded else f"\nNothing is wrong; {minded} to keep in mind.")
    return 0
