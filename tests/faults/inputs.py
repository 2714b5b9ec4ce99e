"""Inputs that nobody meant: templates, study files, edits, expressions, command lines, and crafted files of ours.

Each is made from a valid one by cutting, repeating, and inserting pieces of its own grammar and hostile pieces. The
outcome is a result or one of the product's errors; anything else is a finding: another exception, more than
`SECONDS`, or more than `BYTES` of memory.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from faults.workspace import STUDY, forked
from helpers.takes import recipe, write_take
from wanscope.catalog.catalog import Catalog
from wanscope.catalog.content import Tokens
from wanscope.catalog.embedding_file import PREFIX as EMB
from wanscope.catalog.embedding_file import Header, pack, sealed
from wanscope.doors.cli import main
from wanscope.edit.expression import parse_expression
from wanscope.edit.shorthand import edit_from, parse, shorthand
from wanscope.errors import WanscopeError
from wanscope.prompt.template import parse as parse_template
from wanscope.recipe import CaptureSpec, Study
from wanscope.spec.strict_yaml import read_yaml
from wanscope.spec.validation import validated
from wanscope.study.expand import expand
from wanscope.study.study_folder import StudyFolder
from wanscope.take.manifest import _checksum
from wanscope.take.store import Take
from wanscope.take.study_table import table_text
from wanscope.workspace import Workspace

SECONDS, BYTES = 60, 400 << 20
BATCH = 2000  # in one fork, which has to load what commands need
HOSTILE = [
    *("\x00", "\ud800", "\u202e", "\ufeff", "\r", "\t", "\n", "\x1b[31m", "\x7f", "é", "漢", "🎈", "𝟙", "Ⅷ", " ", ""),
    *("-1", "0", "1e309", "-0.0", "nan", "inf", "9" * 400, "9" * 5000, "0x10", "010", "1_0", "½", "1e-400", "+5"),
    *("../../x", "/dev/null", "/proc/self/mem", "~root", "x" * 300, "a/b", "CON", ".", "..", "*", "%s", "{}", "{0}"),
    *(
        "[" * 300,
        "(" * 300,
        "{" * 2000,
        "]" * 9,
        "a" * 5000,
        "null",
        "true",
        "~",
        "!!int x",
        "&a",
        "*a",
        "<<: *a",
        "'",
        '"',
    ),
]
GRAMMAR = {
    "template": [
        *"[]()|@:\\,. ",
        "[a|b]",
        "(cat:1.5)",
        "[@who: a|b]",
        "@who",
        ":1.5)",
        "((",
        "))",
        "\\[",
        "a",
        "BREAK",
    ],
    "study": [
        "\n",
        ": ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "#",
        "prompt:",
        "seeds:",
        "video:",
        "sampler:",
        "edits:",
        "sweep:",
    ],
    "edit": [
        "inject",
        "bend",
        "skip",
        "steer",
        "prompts",
        " in ",
        " at ",
        "early",
        "0-3",
        "'a cat'",
        "=",
        "(",
        ")",
        ",",
        "blocks",
    ],
    "expression": [*"+-*/()., ", "beach", "0.5", "lerp", "norm(", "slerp(a, b, 0.5)", "a"],
    "set": ["=", ".", "sampler.steps", "video.width", "[", "]", "{", "}", "null", "edits.0.blocks"],
}
TEMPLATES = [
    "a [red|blue] (circle) moves [left|right]",
    "[@who: two men|two women] and (a cat:1.5) near @who",
    "a [b [c|d]|e (f|g)] \\[h\\] (two words:0.5)",
]
STUDIES = [
    yaml.safe_dump(STUDY, sort_keys=False),
    "model: marbles\nprompt: 'a [@color: red|blue] (circle)'\nnegative: null\nseeds: [0, 3, 7]\n"
    "video: {width: 128, height: 128, duration: 2, fps: 8}\n"
    "sampler: {solver: unipc, steps: 20, shift: 5.0, guidance: {0: 6.5, 10: 3.5, interpolate: linear}}\n"
    "edits:\n  - {kind: inject, donor: a green square, blocks: late, strength: 0.4}\n  - skip 3\n"
    "capture: {latents: true, attention: {tokens: marked, heads: mean}}\n"
    "sweep: {edits.0.blocks: [early, late]}\n"
    "design: {factor: color, blocks: [seed], hypotheses: []}\n",
    "prompt: a cat\nloras: [{path: x.safetensors, weight: 0.5}]\ninit: {take: abc}\nsampler: {denoise: 0.5}\n",
]
EDITS = [
    "inject 'a green square' into late at 0.4",
    "inject 'a green square moves right' into early at 0.5 branch=both",
    "bend circle amplify 2 in 0-3",
    "bend circle translate x=0.25 in 4-9",
    "skip 3",
    "prompts {0: a cat, 10: a dog}",
    '{"kind": "inject", "donor": "a", "blocks": "late", "strength": {"shape": "gaussian_peak"}}',
]
EXPRESSIONS = ["beach + 0.5*(gothic - regular)", "slerp(a, b, 0.3)", "norm(a) * 2 - -b / 3"]
COMMANDS = [
    ["expand", "a [red|blue] (circle)", "--limit", "5"],
    ["generate", "--template", "a [red|blue] circle", "--model", "marbles", "--seeds", "2", "--dry-run"],
    ["generate", "--template", "a circle", "--set", "sampler.steps=3", "--edit", "skip 0", "--dry-run", "--json"],
    ["generate", "study.yaml", "--dry-run"],
    ["takes", "--json"],
    ["show", "abc"],
    ["compare", "abc", "def"],
    ["analyze", "small", "--by", "color", "--contrast", "a", "b"],
    ["export", "small", "--bundle", "--out", "x"],
    ["models"],
    ["db", "list"],
    ["db", "search", "cat", "--tag", "x"],
    ["db", "sql", "SELECT 1"],
    ["db", "label", "abc", "--label", "x"],
    ["db", "check", "--deep"],
    ["db", "cleanup", "--older-than", "3"],
    ["db", "import", "folder"],
    ["db", "merge", "folder"],
    ["db", "compute", "a + b", "--name", "a=x"],
    ["index", "--rebuild"],
]
OPTIONS = [
    "--seeds",
    "--template",
    "--json",
    "--output-dir",
    "--name",
    "--set",
    "--edit",
    "--steps",
    "--width",
    "--fps",
    "--help",
    "--",
]


def mutated(draw: random.Random, text: str, pieces: list[str]) -> str:
    """Return a text with a few changes."""
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        a, b = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
        piece = draw.choice(pieces) if draw.random() < 0.7 else draw.choice(HOSTILE)
        how = draw.randrange(5)
        if how == 0:
            text = text[:a] + piece + text[a:]
        elif how == 1:
            text = text[:a] + text[min(b, a + draw.choice((1, 3, 20))) :]
        elif how == 2:
            text = text[:a] + piece + text[b:]
        elif how == 3:
            text = text[:b] + text[a:b] * draw.choice((1, 2, 50)) + text[b:]
        else:
            text = text[:a] + piece * draw.choice((2, 40, 400)) + text[a:]
        text = text[:200_000]
    return text


def mutated_data(draw: random.Random, data: Any) -> Any:
    """Return plain data with one value or key replaced, removed, or moved one level down."""
    if isinstance(data, dict) and data and draw.random() < 0.85:
        key = draw.choice(list(data))
        out = dict(data)
        how = draw.randrange(6)
        if how == 0:
            del out[key]
        elif how == 1:
            out[draw.choice(HOSTILE)] = out.pop(key)
        else:
            out[key] = mutated_data(draw, out[key])
        return out
    if isinstance(data, list) and data and draw.random() < 0.7:
        at = draw.randrange(len(data))
        return draw.choice(([*data[:at], mutated_data(draw, data[at]), *data[at + 1 :]], data[:at], [*data, *data]))
    absurd = [None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), [], {}, [[]], {"a": {}}, "", *HOSTILE]
    return draw.choice(absurd)


# Each makes an input from a random source, and uses it.


def template(draw: random.Random) -> None:
    parsed = parse_template(mutated(draw, draw.choice(TEMPLATES), GRAMMAR["template"]))
    count = parsed.count
    for index in {0, count // 2, count - 1} if count else ():
        variation = parsed.variation(index)
        assert all(0 <= mark.start < mark.end <= len(variation.text) for mark in variation.marks)


def study(draw: random.Random) -> None:
    if draw.random() < 0.5:
        data = read_yaml(mutated(draw, draw.choice(STUDIES), GRAMMAR["study"]))
    else:
        data = mutated_data(draw, yaml.safe_load(draw.choice(STUDIES)))
    made = expand(validated(Study, data))
    assert len(list(itertools.islice(made.items({}), 3))) == min(3, len(made))


def edit(draw: random.Random) -> None:
    if draw.random() < 0.8:
        made = parse(mutated(draw, draw.choice(EDITS), GRAMMAR["edit"]))
    else:
        made = edit_from(mutated_data(draw, json.loads(EDITS[-1])))
    again = parse(shorthand(made))
    assert again == made, f"{made!r} is written as {shorthand(made)!r}"


def expression(draw: random.Random) -> None:
    made = parse_expression(mutated(draw, draw.choice(EXPRESSIONS), GRAMMAR["expression"]))
    parse_expression(str(made))


def setting(draw: random.Random) -> None:
    from wanscope.doors.cli.request import parse_seeds, parse_set

    with contextlib.suppress(WanscopeError):
        parse_seeds(mutated(draw, "1,2,3", [*"0123456789,-"]))
    parse_set(mutated(draw, "sampler.steps=20", GRAMMAR["set"]))


def command(draw: random.Random) -> None:
    words = list(draw.choice(COMMANDS))
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(1, len(words) + 1)
        how = draw.randrange(4)
        if how == 0:
            words.insert(at, draw.choice(OPTIONS))
        elif how == 1 and at < len(words):
            del words[at]
        elif at < len(words):
            words[at] = mutated(draw, words[at], [*GRAMMAR["template"], *GRAMMAR["edit"], *GRAMMAR["set"]])[:4000]
        else:
            words.append(draw.choice(HOSTILE))
    words = [word.replace("\x00", "") for word in words]  # no system passes one on
    if words[0] == "generate":  # as the first option, so that no other takes it for its value
        words = ["generate", "--dry-run", *(word for word in words[1:] if word != "--dry-run")]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(words)
    assert status in (0, 1, 2), f"{words}: {status}"
    assert "did not foresee" not in err.getvalue(), f"{words}: {err.getvalue()}"
    assert status == 0 or err.getvalue() or out.getvalue(), f"{words}: nothing was said"


def take_json(draw: random.Random) -> None:
    place = Path("take")
    if not place.exists():
        write_take(Path(), recipe()).folder.rename(place)
    text = (place / "take.json").read_text()
    data = json.loads(text)
    data.pop("sha256")
    try:
        if draw.random() < 0.2:
            (place / "take.json").write_text(mutated(draw, text, [*'{}[],:"', "null"]), errors="surrogatepass")
        else:
            data = mutated_data(draw, data)
            with contextlib.suppress(TypeError, ValueError):
                data = {**data, "sha256": _checksum(data)}
            (place / "take.json").write_text(json.dumps(data))
        take = Take.open(place)
        assert repr(take) and take.complete(CaptureSpec()) in (True, False)
        take.verify()
        _ = take.frames, take.latents[:], take.gram
    finally:
        (place / "take.json").write_text(text)


def index_csv(draw: random.Random) -> None:
    space = Workspace(Path("indexed").absolute())
    folder = space.studies / "small"
    folder.mkdir(parents=True, exist_ok=True)
    head = ["name", "take", "variation", "seed", "status", "current", "seconds", "prompt", "error", "slot:who"]
    rows: list[list[object]] = [
        head,
        *([f"x{i}", "a" * 16, i, i, "complete", "yes", "1.0", "a", "", "b"] for i in range(3)),
    ]
    for _ in range(draw.choice((1, 2, 5))):
        row = draw.choice(rows)
        row[draw.randrange(len(row))] = draw.choice(HOSTILE)
    rows = [[str(cell).replace("\ud800", "") for cell in row] for row in rows]
    text = table_text(rows)
    if draw.random() < 0.3:
        text = mutated(draw, text, [*',"\n', "yes"])
    (folder / "index.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    Catalog(space).index()
    StudyFolder(space, "small").rows()


def embedding(draw: random.Random) -> None:
    catalog = Catalog(Path("embedded"))
    tokens = Tokens.of(np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32))
    data, key = pack(tokens, Header("m", "e", prompt="a cat")), tokens.key("m", "e")
    _, _, length, mean, _ = EMB.unpack_from(data)
    start = EMB.size + length
    text = json.dumps(mutated_data(draw, json.loads(data[EMB.size : start]))).encode()
    if draw.random() < 0.3:
        text = mutated(draw, text.decode(), [*'{}[],:"']).encode(errors="surrogatepass")
    cut = draw.randrange(start + mean)
    crafted = sealed(text, data[start : start + mean], data[start + mean :])
    catalog.files.write({key: crafted if draw.random() < 0.9 else crafted[:cut]})
    for use in (catalog.files.pooled, catalog.files.read):
        with contextlib.suppress(WanscopeError):
            use(key)


def exported(draw: random.Random) -> None:
    """Import an export whose tables somebody has made, with checksums that are right."""
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    from wanscope.catalog.export_card import card_sum

    out = Path("export")
    if not out.exists():
        catalog = Catalog(Path("exporting"))
        catalog.put(np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32), prompt="a cat")
        catalog.export(out)
    card = json.loads((out / "card.json").read_text())
    file = draw.choice(sorted(out.glob("*.parquet")))
    kept = file.read_bytes(), (out / "card.json").read_text()
    try:
        table = pq.read_table(file)
        rows = table.to_pylist()
        how = draw.randrange(4)
        if how == 0:
            table = table.drop_columns([draw.choice(table.column_names)])
        elif how == 1 and rows:
            name = draw.choice(table.column_names)
            table = pa.Table.from_pylist(
                [{**row, name: draw.choice([text for text in HOSTILE[:14] if text != "\ud800"])} for row in rows[:1]]
            )
        elif how == 2:
            table = table.append_column(draw.choice(("extra", "key", "x" * 300)), pa.array([1] * table.num_rows))
        else:
            name = draw.choice(table.column_names)
            table = table.set_column(
                table.column_names.index(name), name, pa.array([None] * table.num_rows, pa.int32())
            )
        pq.write_table(table, file)
        if draw.random() < 0.2:
            card = mutated_data(draw, card)
        if isinstance(card, dict) and isinstance(card.get("sha256"), dict):
            card["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
            with contextlib.suppress(ValueError):  # half a character has no bytes
                card["card_sha256"] = card_sum(card)
        (out / "card.json").write_text(json.dumps(card))
        Catalog(Path("importing")).import_(out)
    finally:
        file.write_bytes(kept[0])
        (out / "card.json").write_text(kept[1])


KINDS: dict[str, tuple[Callable[[random.Random], None], int]] = {
    "template": (template, 30),
    "study": (study, 20),
    "edit": (edit, 20),
    "expression": (expression, 8),
    "setting": (setting, 8),
    "command": (command, 5),
    "take.json": (take_json, 4),
    "index.csv": (index_csv, 2),
    "embedding": (embedding, 2),
    "catalog export": (exported, 1),
}
ORDER = [name for name, (_, weight) in KINDS.items() for _ in range(weight)]


def kind_of(number: int) -> str:
    return ORDER[number % len(ORDER)]


def one(number: int) -> str:
    """Use one input; return "" or what was wrong."""
    draw = random.Random(f"input {number}")
    try:
        KINDS[kind_of(number)][0](draw)
    except WanscopeError as error:
        return "" if str(error) else "an error without words"
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        import traceback

        said = str(error)
        said = said if len(said) < 600 else f"{said[:200]} ... {said[-400:]}"
        return f"{type(error).__name__}: {said} {''.join(traceback.format_tb(error.__traceback__)[-2:])}"
    return ""


def _batch(first: int, count: int, progress: Path) -> list[tuple[int, str]]:
    found = []
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["WANSCOPE_HOME"] = str(Path(folder) / "home")
        os.environ.pop("WANSCOPE_DEBUG", None)
        Path("study.yaml").write_text(STUDIES[1])
        for number in range(first, first + count):
            progress.write_text(str(number))
            signal.alarm(SECONDS)
            wrong = one(number)
            signal.alarm(0)
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if (used - before) * 1024 > BYTES:
                wrong, before = wrong or f"it took {(used - before) >> 10} MiB", used
            if wrong:
                found.append((number, wrong))
    return found


def batch(first: int, count: int, folder: Path) -> Iterator[tuple[int, str]]:
    """Use inputs in forks; yield the numbers of those that went wrong, and how."""
    progress, last = folder / "input", first + count
    while first < last:
        told = forked(lambda first=first: _batch(first, last - first, progress), 3600)
        if "result" in told:
            yield from map(tuple, told["result"])
            return
        at = int(progress.read_text())
        yield at, f"it ended the process or took more than {SECONDS} seconds: {json.dumps(told)[:500]}"
        first = at + 1
