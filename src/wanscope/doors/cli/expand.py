"""`wanscope expand`: the variations of a template, one at a time, so that a template of any size can be looked at."""

from __future__ import annotations

from itertools import islice
from typing import Any

from wanscope.doors.cli import output
from wanscope.prompt.template import Mark, Variation, parse

AT_A_TERMINAL = 100


def run_expand(template: str, limit: int | None, json: bool) -> int:
    parsed = parse(template)
    if limit is None and not json and output.interactive():
        limit = AT_A_TERMINAL
    shown = islice(parsed.expand(), limit)
    if json:
        # One document, written as it is made: a template may have more variations than memory.
        slots = [{"name": slot.name, "values": list(slot.values), "count": slot.count} for slot in parsed.slots]
        head = output.json_text({"template": template, "count": parsed.count, "slots": slots})
        print(f'{head[:-1]}, "variations": [', end="")
        for variation in shown:
            print(",\n" if variation.index else "\n", output.json_text(as_dict(variation)), sep=" ", end="")
        print("\n]}")
        return 0
    output.say(f"{count_text(parsed.count)} variation{'s'[: parsed.count != 1]}")
    last = -1
    for variation in shown:
        last = variation.index
        output.say(f"{variation.index}  {variation.text}")
        for kind, text in (("slots", _bindings(variation)), ("marked", _marks(variation.marks))):
            if text:
                output.say(f"     {kind}: {text}")
    if last + 1 < parsed.count:
        output.say(f"... and {count_text(parsed.count - last - 1)} more (--limit N shows more)")
    return 0


def count_text(count: int) -> str:
    return f"{count:,}" if count < 10**15 else f"about 10^{len(str(count)) - 1}"


def as_dict(variation: Variation) -> dict[str, Any]:
    return {
        "index": variation.index,
        "prompt": variation.text,
        "bindings": variation.bindings,
        "marks": [
            {"text": m.text, "start": m.start, "end": m.end, "weight": m.weight, "weighted": m.weighted}
            for m in variation.marks
        ],
    }


def _bindings(variation: Variation) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in variation.bindings.items())


def _marks(marks: tuple[Mark, ...]) -> str:
    return ", ".join(f"{m.text!r}" + (f" weight {m.weight:g}" if m.weighted else "") for m in marks)
