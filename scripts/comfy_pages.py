"""Writes the help page of every ComfyUI node from the node's own description, inputs and outputs.

python scripts/comfy_pages.py            # writes src/wanscope/doors/comfy/web/docs/<id>.md
python scripts/comfy_pages.py --check    # exit status 1 where a page is not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from wanscope.doors.comfy import NODES

FOLDER = Path(__file__).resolve().parents[1] / "src/wanscope/doors/comfy/web/docs"


def kind_of(spec: tuple[Any, ...]) -> str:
    """Return the type of an input, with its choices or bounds."""
    kind = spec[0]
    if isinstance(kind, list):
        return " \\| ".join(kind)
    options = spec[1] if len(spec) > 1 else {}
    bounds = f", {options['min']} to {options['max']}" if "min" in options and "max" in options else ""
    return f"{kind}{bounds}"


def default_of(spec: tuple[Any, ...]) -> str:
    """Return the default of an input, or ""."""
    value = spec[1].get("default") if len(spec) > 1 else None
    if value is None or value == "":
        return ""
    shown = f"{len(value)} zeros" if isinstance(value, str) and len(value) > 12 and set(value) == {"0"} else value
    return f"`{shown}`"


def page(name: str) -> str:
    """Return the help page of a node as Markdown."""
    node = NODES[name]
    lines = [
        f"# {node.TITLE}",
        "",
        node.DESCRIPTION,
        "",
        "## Inputs",
        "",
        "| input | type | default | |",
        "|---|---|---|---|",
    ]
    declared = node.INPUT_TYPES()
    numbered: dict[str, int] = {}
    for kind in ("required", "optional"):
        for key, spec in declared.get(kind, {}).items():
            row = key.replace("_strength", "").rpartition("_")
            if row[0] == "block" and row[2].isdigit():
                numbered[key.replace(row[2], "N")] = int(row[2])
                if int(row[2]):
                    continue
                key = f"{key} ... {key.replace('0', '39')}"
            tip = (spec[1] if len(spec) > 1 else {}).get("tooltip", "")
            optional = " (optional)" if kind == "optional" else ""
            lines.append(f"| `{key}`{optional} | {kind_of(spec)} | {default_of(spec)} | {tip} |")
    lines += ["", "## Outputs", ""]
    pairs = zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)
    lines += [f"- `{output}` ({kind})" for output, kind in pairs]
    return "\n".join([*lines, ""])


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    pages = {FOLDER / f"{name}.md": page(name) for name in NODES}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"not up to date: {path.name}" for path in stale))
        return int(bool(stale))
    for path, text in pages.items():
        path.write_text(text)
    for path in set(FOLDER.glob("*.md")) - set(pages):
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
