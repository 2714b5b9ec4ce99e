"""The package's layout: what may import what, what stays free of torch, and how long a file may be.

Layers, lowest first: errors, events -> spec, prompt -> wan, edit -> recipe (which holds edits) -> runtime, capture ->
sample -> take -> catalog -> analysis, study -> marbles -> doors. A file imports from its own layer and from those
below, wherever in the file the import is, and packages of one layer do not import each other in a circle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Set
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "wanscope"
LAYERS = (
    ("errors", "events", "workspace"),
    ("spec", "prompt"),
    ("wan", "edit"),
    ("recipe",),
    ("runtime", "capture"),
    ("sample",),
    ("take",),
    ("catalog",),
    ("analysis", "study"),
    ("marbles",),
    ("api",),
    ("doors", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FACADE = "__init__.py"  # the public names, each imported when it is first used

LINES = 400
# A longer file needs a reason here.
LONGER: dict[str, str] = {}

# They must start in a fraction of a second, and a web process must not load torch.
TORCH_FREE = (
    "wanscope",
    "wanscope.errors",
    "wanscope.events",
    "wanscope.spec.solver_facts",
    "wanscope.spec.metric_names",
    "wanscope.spec.validation",
    "wanscope.workspace",
    "wanscope.study.study_file",
    "wanscope.recipe",
    "wanscope.edit",
    "wanscope.edit.edits",
    "wanscope.edit.shorthand",
    "wanscope.edit.sweep",
    "wanscope.edit.named_files",
    "wanscope.edit.word_places",
    "wanscope.prompt",
    "wanscope.prompt.tokens",
    "wanscope.wan.variants",
    "wanscope.wan.cost",
    "wanscope.wan.environment",
    "wanscope.wan.footprint",
    "wanscope.wan.identity",
    "wanscope.wan.parameters",
    "wanscope.wan.listing",
    "wanscope.wan.memory_plan",
    "wanscope.wan.locate",
    "wanscope.wan.tokenizer",
    "wanscope.wan.tokenizer_files",
    "wanscope.wan.speed",
    "wanscope.wan.doctor",
    "wanscope.take.manifest",
    "wanscope.take.store",
    "wanscope.take.video",
    "wanscope.take.compare",
    "wanscope.catalog.catalog",
    "wanscope.catalog.operations",
    "wanscope.catalog.search",
    "wanscope.catalog.exchange",
    "wanscope.catalog.jail",
    "wanscope.study.expand",
    "wanscope.study.study_folder",
    "wanscope.study.read_request",
    "wanscope.study.recipe_model",
    "wanscope.study.attention_capture",
    "wanscope.study.encode_texts",
    "wanscope.study.prepare",
    "wanscope.marbles.world",
)

# They import torch, but the model libraries only when a model is loaded: reading a file's header or checking a device
# does not need them.
MODEL_LIBRARIES = ("diffusers", "transformers", "peft", "accelerate")
MODEL_LIBRARY_FREE = (
    "wanscope.wan.load",
    "wanscope.wan.placement",
    "wanscope.wan.weights",
    "wanscope.wan.single_file",
    "wanscope.wan.gguf",
    "wanscope.wan.encoder_file",
    "wanscope.wan.scaled_fp8",
    "wanscope.wan.lora",
    "wanscope.study.run",
)


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    """Return the part of the package that a file belongs to: its first folder, or its own name."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Return (line, part of the package) of every import of our own, at any depth of the file."""
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8")), path))


def _imports(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "wanscope":
                    yield node.lineno, alias.name.partition(".")[2].split(".")[0] or "wanscope"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            names = (node.module or "").split(".")
            if names[0] != "wanscope":
                continue
            if len(names) > 1:
                yield node.lineno, names[1]
            else:
                # `from wanscope import events` names a module; `from wanscope import __version__` does not.
                yield from ((node.lineno, alias.name) for alias in node.names if alias.name != "__version__")


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {package_of(path) for path in files()} - {"__init__", "configs"} <= set(LEVEL)


def test_modules_at_the_top_of_the_package() -> None:
    """Everything else is in a folder: spec/ for what a study may contain, study/ for what is done with it."""
    top = {path.stem for path in SOURCE.glob("*.py")}
    assert top == {"__init__", "__main__", "api", "errors", "events", "recipe", "workspace"}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downward_only(path: Path) -> None:
    if path == SOURCE / FACADE:
        return
    own = package_of(path)
    upward = [
        f"line {line}: {own} imports {target}"
        for line, target in imports(path)
        if LEVEL.get(target, len(LAYERS)) > LEVEL[own]
    ]
    assert upward == []


def test_no_circle_between_packages() -> None:
    edges: dict[str, set[str]] = {}
    for path in files():
        if path != SOURCE / FACADE:
            own = package_of(path)
            edges.setdefault(own, set()).update(target for _, target in imports(path) if target != own)
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, (*way, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def name_of(path: Path) -> str:
    """Return the name under which a file is imported: `wanscope.take.store`, `wanscope.edit` for edit/__init__.py."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_files(code: str, known: Collection[str]) -> set[str]:
    """Return our files that the code imports at any depth: at the top, in a function, under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from wanscope.take import store` names a file, `from wanscope.take.store import Take` one as well.
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found.update(inside[name] if inside[name] in known else node.module for name in inside)
    return found & set(known)


def circles(edges: Mapping[str, Set[str]]) -> list[list[str]]:
    """Return the groups of files that reach each other, and files that import themselves."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        waiting = list(edges[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += edges.get(name, ())
        reached[start] = seen
    groups = {frozenset({a, *(b for b in reached[a] if a in reached[b])}) for a in edges if a in reached[a]}
    return sorted(sorted(group) for group in groups)


def test_no_circle_between_files() -> None:
    """Lazy and typing imports count: two files that need each other to be read are one concept in two places."""
    # The package's own __init__.py is left out: it names every public module, and files read `__version__` there.
    code = {name_of(path): path.read_text(encoding="utf-8") for path in files() if path != SOURCE / FACADE}
    assert circles({name: imported_files(text, code) for name, text in code.items()}) == []


def test_the_check_detects_circles_of_typing_and_lazy_imports() -> None:
    code = {
        "wanscope.a": "if TYPE_CHECKING:\n    from wanscope.b import Thing",
        "wanscope.b": "def f():\n    from wanscope import c",
        "wanscope.c": "import wanscope.a",
        "wanscope.d": "from wanscope.a import f\nfrom wanscope.errors import WanscopeError",
    }
    edges = {name: imported_files(text, code) for name, text in code.items()}
    assert edges["wanscope.d"] == {"wanscope.a"}
    assert circles(edges) == [["wanscope.a", "wanscope.b", "wanscope.c"]]
    assert circles({**edges, "wanscope.c": set()}) == []
    assert circles({"wanscope.a": {"wanscope.a"}}) == [["wanscope.a"]]


def test_the_check_detects_an_upward_import() -> None:
    code = "def f():\n from wanscope.doors.cli import main\n import wanscope.take.store\n from wanscope import study"
    assert list(_imports(ast.parse(code), SOURCE)) == [(2, "doors"), (3, "take"), (4, "study")]


def test_modules_that_promise_it_load_no_torch_or_no_model_library() -> None:
    doors = [
        ".".join(("wanscope", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for path in files()
        # the ComfyUI nodes are loaded inside ComfyUI, where torch is already loaded
        if package_of(path) == "doors" and "comfy" not in path.parts
    ]
    code = """
import importlib, sys
for names, heavy in (sys.argv[1:3], sys.argv[3:5]):
    for name in names.split():
        importlib.import_module(name)
        loaded = set(heavy.split()) & set(sys.modules)
        if loaded:
            sys.exit(f"importing {name} loads {', '.join(sorted(loaded))}")
"""
    promises = [(*TORCH_FREE, *doors), ("torch", *MODEL_LIBRARIES), MODEL_LIBRARY_FREE, MODEL_LIBRARIES]
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(" ".join, promises)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_importing_wanscope_loads_nothing_but_python() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); import wanscope;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    # -S: without the site packages, whose own start-up files may load anything.
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout.split()) == (0, ["__main__", "wanscope"]), ran.stderr


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_of_readable_length(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    count = len(path.read_text(encoding="utf-8").splitlines())
    if name in LONGER:
        assert count > LINES, f"{name} is short again; take it off the list"
    else:
        assert count <= LINES, f"{name} has {count} lines: split it by concept, or give a reason in LONGER"
