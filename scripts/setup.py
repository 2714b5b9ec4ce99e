# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Sets up wanscope in a local environment (.venv), and runs it or its tests. Needs only Python.

    python3 scripts/setup.py demo     install, then run `wanscope demo`
    python3 scripts/setup.py test     install what tests need, then run them

Uses uv if it is installed, otherwise venv and pip. Torch is installed first: the CUDA build on a machine with an NVIDIA
GPU, otherwise a CPU build (from a wheel in one of pip's find-links folders, or from the torch project's CPU index), so
that several gigabytes of CUDA are never downloaded by accident. Running it again skips what is already done. See
docs/install.md.
"""

import argparse
import configparser
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (this file must run in any Python 3 up to here)
    newer = next((n for n in ("python3.13", "python3.12", "python3.11", "python3.14") if shutil.which(n)), "uv run")
    print(f"setup: this is Python {platform.python_version()}; wanscope needs 3.11 or newer.", file=sys.stderr)
    sys.exit(f"Try: {newer} scripts/setup.py ...{'  (uv installs a Python)' if newer == 'uv run' else ''}")

import tomllib  # after the check: older Pythons have none

ROOT = Path(__file__).resolve().parent.parent
TORCH_INDEX = "https://download.pytorch.org/whl/"
INDEX_TIMEOUT_SECONDS = 10
WINDOWS, MACOS = sys.platform == "win32", sys.platform == "darwin"
# torch 2.10 to 2.13: PyPI's Linux wheels are built with a CUDA that the newest drivers have; cu126 runs on older ones.
OLDER_DRIVERS, NEWER_DRIVERS = "cu126", "cu130"
EXTRAS = {"demo": (), "test": ("dev",)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TORCH = next(r for r in PROJECT["dependencies"] if re.match(r"torch\b(?!-)", r))  # torch>=2.10,<2.14


class Failed(Exception):
    """The setup failed. The message says what went wrong and why; `fix` is what to try."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what}\nTry: {fix}" if fix else what)


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def run(command: list[str], env: dict[str, str] | None = None, quiet: bool = False) -> int:
    """Show a command, run it and return its exit status. `quiet` shows its last line of output, and only on failure."""
    print(f"    $ {subprocess.list2cmdline(command) if WINDOWS else shlex.join(command)}", flush=True)
    out, err = (subprocess.PIPE, subprocess.STDOUT) if quiet else (None, None)
    env = {**os.environ, **(env or {})}
    done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    if quiet and done.returncode != 0:
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        print(f"    {lines[-1] if lines else 'it failed and printed nothing'}", flush=True)
    return done.returncode


# ---- the environment


class Environment:
    """A virtual environment, and the program that installs into it."""

    def __init__(self, folder: Path, installer: str) -> None:
        self.folder = folder
        self.uv = None if installer == "pip" else shutil.which("uv")
        if installer == "uv" and self.uv is None:
            raise Failed("--installer uv was given, but uv is not on the PATH.", "--installer pip")
        self.bin = folder / ("Scripts" if WINDOWS else "bin")
        self.python = self.bin / ("python.exe" if WINDOWS else "python")
        self._stamp = folder / "wanscope-setup.json"

    def ask(self, code: str) -> str | None:
        """Return what the environment's Python prints for a line of code, or None where that fails."""
        try:
            done = subprocess.run([str(self.python), "-c", code], cwd=ROOT, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def prepare(self) -> None:
        if not self.folder.exists():
            self._create()
        version = self.ask("import sys; print(*sys.version_info[:3])")
        fix = f'remove the folder "{self.folder}" and run this again'
        if version is None:
            raise Failed(f"{self.folder} exists, but its Python does not run.", fix)
        dotted = version.replace(" ", ".")
        if tuple(map(int, version.split())) < (3, 11):
            raise Failed(f"{self.folder} has Python {dotted}; wanscope needs 3.11 or newer.", fix)
        say(f"{self.folder.name}: Python {dotted}, installing with {'uv' if self.uv else 'pip'}")
        if self.uv is None and self.ask("import pip") is None:
            self._add_pip()

    def _create(self) -> None:
        say(f"creating a virtual environment in {self.folder.name}")
        has = {name: importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip", "pip")}
        if self.uv:
            base = getattr(sys, "_base_executable", None) or sys.executable
            command = [self.uv, "venv", "--python", base, str(self.folder)]
        elif not has["venv"]:
            raise Failed("this Python has no venv module.", "install uv, or the venv package of your system's Python")
        elif not has["ensurepip"] and not has["pip"]:
            raise Failed(
                "this Python cannot create an environment: it has neither ensurepip nor pip.",
                "install uv, or `sudo apt install python3-venv` on Debian and Ubuntu",
            )
        else:
            # Debian and Ubuntu package ensurepip separately. Without it, this Python's pip is used (_add_pip).
            bare = [] if has["ensurepip"] else ["--without-pip"]
            command = [sys.executable, "-m", "venv", *bare, str(self.folder)]
        if run(command) != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise Failed("the environment could not be created; the output above says why.")

    def _add_pip(self) -> None:
        say("adding pip to the environment")
        if self.ask("import ensurepip") is not None and run([str(self.python), "-m", "ensurepip"], quiet=True) == 0:
            return
        if run([sys.executable, "-m", "pip", "--python", str(self.python), "install", "pip"]) != 0:
            raise Failed("pip could not be added to the environment.", "install uv and run this again")

    def install(self, arguments: list[str], env: dict[str, str] | None = None, quiet: bool = False) -> bool:
        # pip would compile every file of every package, which takes most of the time; Python compiles what it imports.
        pip = [str(self.python), "-m", "pip", "install", "--no-compile", "--no-input", "--disable-pip-version-check"]
        head = [self.uv, "pip", "install", "--python", str(self.python)] if self.uv else pip
        return run(head + arguments, env, quiet) == 0

    def remove(self, package: str) -> None:
        pip = [str(self.python), "-m", "pip", "uninstall", "--yes", package]
        run([self.uv, "pip", "uninstall", "--python", str(self.python), package] if self.uv else pip, quiet=True)

    def torch(self) -> tuple[str, str] | None:
        """Return version and kind (`cpu`, `CUDA 13.0`, `ROCm 7.1`) of the installed torch, without importing it."""
        text = self.ask(
            "import importlib.metadata as m, importlib.util as u, os, runpy;"
            "v = runpy.run_path(os.path.join(os.path.dirname(u.find_spec('torch').origin), 'version.py'));"
            "kinds = [f'{n} {v[k]}' for k, n in (('cuda', 'CUDA'), ('hip', 'ROCm'), ('xpu', 'XPU')) if v.get(k)];"
            "print(m.version('torch'), *(kinds or ['cpu'])[0].split())"
        )
        version, _, kind = (text or "").partition(" ")
        return (version, kind) if version else None

    def done(self) -> dict:
        """Return what an earlier run installed; empty if unknown."""
        try:
            return json.loads(self._stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def mark(self, state: dict) -> None:
        self._stamp.write_text(json.dumps(state), encoding="utf-8")


# ---- which torch


def supported(version: str) -> bool:
    """Return whether wanscope works with this version of torch, that is, whether it is within the bounds of TORCH."""
    texts = (version.partition("+")[0], *TORCH.split(","))
    numbers, low, high = (tuple(map(int, re.findall(r"\d+", text))) for text in texts)
    return low <= numbers < high


def gpu() -> tuple[bool, int | None]:
    """Return whether there is an NVIDIA GPU, and the newest CUDA (major version) that its driver supports."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if program:
        try:
            listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60)
            shown = subprocess.run([program], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return False, None
        if listed.returncode == 0 and "GPU " in listed.stdout:
            found = re.search(r"CUDA(?: UMD)? Version:\s*(\d+)", shown.stdout)
            return True, int(found.group(1)) if found else None
    cards = Path("/proc/driver/nvidia/gpus")
    return cards.is_dir() and any(cards.iterdir()), None


def pip_config_files() -> list[Path]:
    """Return the files in which pip keeps its settings on this system, according to its documentation."""
    home, settings = Path.home(), os.environ.get
    if WINDOWS:
        bases = (settings("PROGRAMDATA"), settings("APPDATA"), home)
        folders = [Path(base, "pip") for base in bases if base]
    else:
        config = Path(settings("XDG_CONFIG_HOME") or home / ".config")
        on_macs = home / "Library" / "Application Support"
        folders = [Path("/etc/xdg/pip"), Path("/etc"), home / ".pip", config / "pip", on_macs / "pip"]
    files = [folder / ("pip.ini" if WINDOWS else "pip.conf") for folder in (*folders, Path(sys.prefix))]
    return files + [Path(named) for named in [settings("PIP_CONFIG_FILE")] if named]


def offered_folders(given: list[str]) -> list[Path]:
    """Return the folders of wheels on this machine: the given ones, and those in the settings of pip and uv.

    uv itself ignores pip's settings.
    """
    links = list(given)
    for variable in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        links += re.split(r"[\s,]+", os.environ.get(variable, ""))
    for file in pip_config_files():
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip itself reports a broken file
        for section in ("global", "install"):
            links += parser.get(section, "find-links", fallback="").split()
    folders = (Path(urllib.request.url2pathname(re.sub("^file:(//)?", "", link))) for link in links if link)
    return list(dict.fromkeys(f.expanduser().resolve() for f in folders if f.expanduser().is_dir()))


def unreachable_reason(url: str) -> str | None:
    """Return why an index does not respond, or None where it does."""
    try:
        with urllib.request.urlopen(url, timeout=INDEX_TIMEOUT_SECONDS):
            return None
    except (OSError, ValueError) as error:
        return str(error)


def install_torch(env: Environment, want: str, requirement: str, find_links: list[str], index: str | None) -> None:
    """Install the requested torch build; `want` is default, cpu, cuda, or a name such as cu126."""
    if index or want == "default":
        place = index or "the package index"
        say(f"torch from {place}")
        if not env.install([*(["--index-url", index] if index else []), requirement]):
            raise Failed(f"{requirement} could not be installed from {place}; the output above says why.")
    elif want == "cpu":
        install_cpu_torch(env, requirement, find_links)
    else:
        install_cuda_torch(env, want, requirement)


def install_cpu_torch(env: Environment, requirement: str, find_links: list[str]) -> None:
    folders = [f for f in offered_folders(find_links) if any(f.glob("torch-*.whl"))]
    links = [part for folder in folders for part in ("--find-links", str(folder))]
    if folders:
        say("torch from a wheel on this machine")
        if env.install(["--no-index", "--no-deps", *links, requirement], quiet=True):
            if is_cpu(env):
                return
            env.remove("torch")
            say("that wheel is not a CPU build")
    url = TORCH_INDEX + "cpu"
    say(f"asking {url}")
    reason = unreachable_reason(f"{url}/torch/")
    if reason:
        say(f"it does not respond: {reason}")
    # Only torch itself is installed from there; its dependencies are installed with wanscope's.
    elif env.install(["--index-url", url, "--no-deps", requirement]) and is_cpu(env):
        return
    # On Windows the wheels on PyPI are CPU builds.
    if WINDOWS and env.install([requirement]) and is_cpu(env):
        return
    if env.torch():
        env.remove("torch")
    raise Failed(
        f"no CPU build of {requirement} for Python {platform.python_version()} was found in pip's find-links folders "
        f"or at {url}.\nA plain `pip install torch` could download several gigabytes of CUDA packages, so this script "
        "does not run it.",
        "--find-links FOLDER with a CPU wheel in it, --torch-index URL for another index, or --torch cuda",
    )


def is_cpu(env: Environment) -> bool:
    return (env.torch() or ("", ""))[1] == "cpu"


def install_cuda_torch(env: Environment, want: str, requirement: str) -> None:
    channel = want
    if want == "cuda":
        _, major = gpu()
        if major is not None and major < 12:
            raise Failed(
                f"the NVIDIA driver supports CUDA {major}; torch needs a driver for 12 or newer.", "--torch cpu"
            )
        channel = OLDER_DRIVERS if major == 12 else NEWER_DRIVERS if WINDOWS else ""
    source = ["--index-url", TORCH_INDEX + channel] if channel else []
    say(f"torch with CUDA, from {source[1] if source else 'the package index'} (several gigabytes)")
    with tempfile.TemporaryDirectory() as empty:
        # A CPU wheel of the same version in a find-links folder would be preferred.
        installed = env.install([*source, requirement], {"PIP_FIND_LINKS": empty, "UV_FIND_LINKS": empty})
    build = env.torch()
    if not installed or build is None or not build[1].startswith("CUDA"):
        why = f"a {build[1]} build was installed" if installed and build else "the output above says why"
        fix = "--torch cu126, --torch-index URL or --torch cpu"
        raise Failed(f"torch with CUDA could not be installed: {why}.", fix)


def satisfies(present: tuple[str, str], options: argparse.Namespace) -> bool:
    """Return whether the installed torch is what the options ask for; `auto` accepts any build."""
    version, kind = present
    kinds = {"auto": kind, "cpu": "cpu", "cuda": kind if kind.startswith("CUDA") else "CUDA"}
    digits = options.torch.removeprefix("cu")
    return (
        options.torch_index is None
        and options.torch_version in (None, version, version.partition("+")[0])
        and kind == kinds.get(options.torch, f"CUDA {digits[:-1]}.{digits[-1:]}")
        and supported(version)
    )


def choose_torch(env: Environment, options: argparse.Namespace) -> None:
    spec = options.torch_version
    requirement = TORCH if not spec else f"torch{spec}" if spec[0] in "=<>~!" else f"torch=={spec}"
    want = options.torch
    if want == "auto":
        by_gpu = (("cpu", "no NVIDIA GPU found"), ("cuda", "NVIDIA GPU found"))
        want, why = ("default", "this is a Mac") if MACOS else by_gpu[gpu()[0]]
        say(f"{why}: choosing the {want} build of torch")
    present = env.torch()
    if present and satisfies(present, options):
        say(f"torch {present[0]} ({present[1]}) is installed already")
        if want == "cuda" and present[1] == "cpu":
            say("it cannot use the GPU; `--torch cuda` replaces it")
        return
    if present:
        say(f"removing torch {present[0]} ({present[1]})")
        env.remove("torch")
    install_torch(env, want, requirement, options.find_links, options.torch_index)
    version, kind = env.torch() or ("?", "?")
    say(f"torch {version} ({kind}) is installed")
    if not supported(version):
        raise Failed(f"wanscope does not work with torch {version}; it needs {TORCH}.")


# ---- the package


def install_package(env: Environment, extras: tuple[str, ...]) -> None:
    before, build = env.done(), env.torch()
    state = {"root": str(ROOT), "project": PROJECT, "torch": list(build or ())}
    if all(before.get(key) == value for key, value in state.items()) and set(extras) <= set(before["extras"]):
        say("wanscope is installed already")
        return
    extras = tuple(sorted({*before.get("extras", ()), *extras} & set(PROJECT["optional-dependencies"])))
    say(f"installing wanscope{' with ' + ', '.join(extras) if extras else ''}")
    if not env.install(["-e", f".[{','.join(extras)}]" if extras else "."]):
        raise Failed(
            "the packages could not be installed; the output above says why.",
            "check network, proxy and disk space (2 GB are needed); --installer pip if only pip knows your index",
        )
    if env.torch() != build:
        raise Failed(f"another package replaced torch {build} with {env.torch()}.", "report it; this should not happen")
    if build and build[1].startswith("CUDA") and gpu()[0]:
        seen = env.ask("import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
        if not seen:
            raise Failed(f"torch {build[0]} cannot use this GPU; its driver may be too old.", "--torch cu126")
        say(f"torch finds {seen}")
    env.mark({**state, "extras": list(extras)})


def main(arguments: list[str] | None = None) -> int:
    epilog = "Everything after -- is passed to `wanscope demo` or to pytest: setup.py test -- -k grammar"
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("setup.py", description=__doc__, epilog=epilog, formatter_class=form)
    parser.add_argument("what", choices=sorted(EXTRAS))
    parser.add_argument("--torch", default="auto", metavar="BUILD", help="auto (default), cpu, cuda, or e.g. cu126")
    parser.add_argument("--torch-version", metavar="SPEC", help="e.g. 2.12.1, or '>=2.12,<2.13'")
    parser.add_argument("--torch-index", metavar="URL", help="take torch from this package index (ROCm, a mirror)")
    parser.add_argument("--find-links", action="append", default=[], metavar="FOLDER", help="wheels on this machine")
    parser.add_argument("--installer", choices=["auto", "uv", "pip"], default="auto")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER", help="default: .venv")
    given = sys.argv[1:] if arguments is None else arguments
    cut = given.index("--") if "--" in given else len(given)
    options, rest = parser.parse_args(given[:cut]), given[cut + 1 :]
    if not re.fullmatch(r"auto|cpu|cuda|cu\d+", options.torch):
        parser.error(f"--torch {options.torch}: auto, cpu, cuda, or a build of the torch project such as cu126")

    env = Environment(options.venv.absolute(), options.installer)
    env.prepare()
    choose_torch(env, options)
    install_package(env, EXTRAS[options.what])
    demo = options.what == "demo"
    say("running the demo" if demo else "running the tests")
    if demo:
        return run([str(env.bin / "wanscope"), "demo", *rest])
    # Workers, one per core, take seconds to start, which is not worth it for a few selected tests.
    shared = [] if rest else ["-n", "auto", "--dist", "worksteal"]
    return run([str(env.python), "-m", "pytest", *shared, *rest])


if __name__ == "__main__":
    try:
        status = main()
    except Failed as problem:
        print(f"\nsetup: {problem}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; run it again to continue.", file=sys.stderr)
        status = 130
    sys.exit(status)
