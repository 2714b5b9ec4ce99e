# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Set wanscope up in a local environment (.venv), and run it or its tests. Needs nothing but Python.

    python3 scripts/setup.py demo     install, then run `wanscope demo`
    python3 scripts/setup.py test     install what tests need, then run them

Uses uv where it is installed, else venv and pip. Torch comes first: with an NVIDIA GPU the CUDA build, without one a
CPU build (a wheel that pip is offered on this machine, else the CPU index of the torch project), never several
gigabytes of CUDA by accident. Run again, it skips what is done. See docs/install.md.
"""

import argparse
import configparser
import hashlib
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

if sys.version_info < (3, 11):  # noqa: UP036  (any `python3` runs this file, so it must say this in all of them)
    newer = next((n for n in ("python3.13", "python3.12", "python3.11", "python3.14") if shutil.which(n)), "uv run")
    print(f"setup: this is Python {platform.python_version()}; wanscope needs 3.11 or newer.", file=sys.stderr)
    sys.exit(f"Try: {newer} scripts/setup.py ...{'  (uv brings a Python)' if newer == 'uv run' else ''}")

ROOT = Path(__file__).resolve().parent.parent
TORCH_INDEX = "https://download.pytorch.org/whl/"
INDEX_TIMEOUT_SECONDS = 10
WINDOWS, MACOS = sys.platform == "win32", sys.platform == "darwin"
# torch 2.10 to 2.13: PyPI's Linux wheels are built with a CUDA that the newest drivers have; cu126 runs on older ones.
OLDER_DRIVERS, NEWER_DRIVERS = "cu126", "cu130"
EXTRAS = {"demo": (), "test": ("dev",)}


class Failed(Exception):
    """What went wrong, why, and what to type."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what if not fix else f"{what}\nTry: {fix}")


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def run(command: list[str], env: dict[str, str] | None = None, quiet: bool = False) -> int:
    """Exit status of a command, which is shown. `quiet` shows of its output only the last line, where it failed."""
    print(f"    $ {subprocess.list2cmdline(command) if WINDOWS else shlex.join(command)}", flush=True)
    out, err = (subprocess.PIPE, subprocess.STDOUT) if quiet else (None, None)
    env = {**os.environ, **(env or {})}
    done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    if quiet and done.returncode != 0:
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        print(f"    {lines[-1] if lines else 'it failed without a word'}", flush=True)
    return done.returncode


# ---- the environment


class Environment:
    """A virtual environment, and the program that installs into it."""

    def __init__(self, folder: Path, installer: str) -> None:
        self.folder = folder
        self.uv = None if installer == "pip" else shutil.which("uv")
        if installer == "uv" and self.uv is None:
            raise Failed("uv is asked for, but it is not on the PATH.", "--installer pip")
        self.bin = folder / ("Scripts" if WINDOWS else "bin")
        self.python = self.bin / ("python.exe" if WINDOWS else "python")
        self._stamp = folder / "wanscope-setup.json"

    def ask(self, code: str) -> str | None:
        """What the environment's Python prints for a line of code; None where that fails."""
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
            raise Failed(f"{self.folder} is there, but its Python does not run.", fix)
        numbers = tuple(int(n) for n in version.split())
        if numbers < (3, 11):
            raise Failed(f"{self.folder} has Python {'.'.join(map(str, numbers))}; wanscope needs 3.11 or newer.", fix)
        say(f"{self.folder.name}: Python {'.'.join(map(str, numbers))}, installing with {'uv' if self.uv else 'pip'}")
        if self.uv is None and self.ask("import pip") is None:
            self._add_pip()

    def _create(self) -> None:
        say(f"making a virtual environment in {self.folder.name}")
        base = getattr(sys, "_base_executable", None) or sys.executable
        if self.uv:
            command = [self.uv, "venv", "--python", base, str(self.folder)]
        elif importlib.util.find_spec("venv") is None:
            raise Failed("this Python has no venv module.", "install uv, or the venv package of your system's Python")
        else:
            # Debian and Ubuntu keep ensurepip in a package of its own; pip, where it is there, can stand in.
            bare = importlib.util.find_spec("ensurepip") is None
            if bare and importlib.util.find_spec("pip") is None:
                raise Failed(
                    "this Python can make no environment: it has neither ensurepip nor pip.",
                    "install uv, or `sudo apt install python3-venv` on Debian and Ubuntu",
                )
            command = [sys.executable, "-m", "venv", *(["--without-pip"] if bare else []), str(self.folder)]
        if run(command) != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise Failed("the environment could not be made; the reason is above.")

    def _add_pip(self) -> None:
        say("adding pip to the environment")
        if self.ask("import ensurepip") is not None and run([str(self.python), "-m", "ensurepip"], quiet=True) == 0:
            return
        if run([sys.executable, "-m", "pip", "--python", str(self.python), "install", "pip"]) != 0:
            raise Failed("pip could not be added to the environment.", "install uv and run this again")

    def install(self, arguments: list[str], env: dict[str, str] | None = None, quiet: bool = False) -> bool:
        if self.uv:
            head = [self.uv, "pip", "install", "--python", str(self.python)]
        else:
            head = [str(self.python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        return run(head + arguments, env, quiet) == 0

    def remove(self, package: str) -> None:
        if self.uv:
            run([self.uv, "pip", "uninstall", "--python", str(self.python), package], quiet=True)
        else:
            run([str(self.python), "-m", "pip", "uninstall", "--yes", package], quiet=True)

    def torch(self) -> tuple[str, str] | None:
        """Version and kind (`cpu`, `CUDA 13.0`, `ROCm 7.1`) of the installed torch, read without importing it."""
        text = self.ask(
            "import importlib.metadata as m, importlib.util as u, os, runpy;"
            "v = runpy.run_path(os.path.join(os.path.dirname(u.find_spec('torch').origin), 'version.py'));"
            "kinds = [f'{n} {v[k]}' for k, n in (('cuda', 'CUDA'), ('hip', 'ROCm'), ('xpu', 'XPU')) if v.get(k)];"
            "print(m.version('torch'), *(kinds or ['cpu'])[0].split())"
        )
        if not text:
            return None
        version, _, kind = text.partition(" ")
        return version, kind

    def done(self) -> dict:
        """What an earlier run installed; empty where nothing is known."""
        try:
            return json.loads(self._stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def mark(self, state: dict) -> None:
        self._stamp.write_text(json.dumps(state), encoding="utf-8")


# ---- which torch


def project() -> dict:
    import tomllib  # not in a Python that is too old, which `main` says in a sentence

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def torch_requirement() -> str:
    return next(r for r in project()["dependencies"] if re.match(r"torch\b(?!-)", r))


def within(version: str, requirement: str) -> bool:
    """Whether a version meets `torch>=2.10,<2.14`; only these two comparisons are used there."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0]))
    bounds = re.findall(r"(>=|<)\s*([\d.]+)", requirement)
    for comparison, bound in bounds:
        limit = tuple(int(n) for n in bound.split("."))
        if (numbers >= limit) != (comparison == ">="):
            return False
    return True


def gpu() -> tuple[bool, int | None]:
    """Whether an NVIDIA GPU is seen, and the newest CUDA (major version) that its driver can run."""
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
    """Where pip keeps its settings on this system, by its documentation."""
    home = Path.home()
    name = "pip.ini" if WINDOWS else "pip.conf"
    if WINDOWS:
        data = [os.environ.get("PROGRAMDATA"), os.environ.get("APPDATA")]
        files = [Path(folder) / "pip" / name for folder in data if folder] + [home / "pip" / name]
    else:
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        files = [Path("/etc/xdg/pip", name), Path("/etc", name), home / ".pip" / name, config / "pip" / name]
        if MACOS:
            files.append(home / "Library" / "Application Support" / "pip" / name)
    files.append(Path(sys.prefix) / name)
    named = os.environ.get("PIP_CONFIG_FILE")
    return [*files, Path(named)] if named else files


def offered_folders(given: list[str]) -> list[Path]:
    """Folders of wheels that this machine offers: those given, and those pip and uv know. (uv does not read pip's.)"""
    links = list(given)
    for variable in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        links += re.split(r"[\s,]+", os.environ.get(variable, ""))
    for file in pip_config_files():
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip itself says what is wrong with it
        for section in ("global", "install"):
            links += parser.get(section, "find-links", fallback="").split()
    folders = (Path(urllib.request.url2pathname(re.sub("^file:(//)?", "", link))) for link in links if link)
    return list(dict.fromkeys(f.expanduser().resolve() for f in folders if f.expanduser().is_dir()))


def silence(url: str) -> str | None:
    """Why an index does not answer; None where it does."""
    try:
        with urllib.request.urlopen(url, timeout=INDEX_TIMEOUT_SECONDS):
            return None
    except (OSError, ValueError) as error:
        return str(error)


def install_torch(env: Environment, want: str, requirement: str, find_links: list[str], index: str | None) -> None:
    """Bring in the torch build that is asked for; `want` is default, cpu, cuda, or a name such as cu126."""
    if index:
        say(f"torch from {index}")
        if not env.install(["--index-url", index, requirement]):
            raise Failed(f"{requirement} could not be had from {index}; the installer's own words are above.")
    elif want == "default":
        say("torch as the package index has it")
        if not env.install([requirement]):
            raise Failed(f"{requirement} could not be installed; the installer's own words are above.")
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
    reason = silence(f"{url}/torch/")
    if reason:
        say(f"it does not answer: {reason}")
    # Only torch itself from there; what it needs comes with everything else.
    elif env.install(["--index-url", url, "--no-deps", requirement]) and is_cpu(env):
        return
    # On Windows the wheels on PyPI are CPU builds.
    if WINDOWS and env.install([requirement]) and is_cpu(env):
        return
    if env.torch():
        env.remove("torch")
    raise Failed(
        f"no CPU build of {requirement} for Python {platform.python_version()} can be had: none lies in a folder that "
        f"pip is told of (find-links), and {url} gave none.\nInstalling torch plainly could bring several gigabytes of "
        "CUDA packages, so it is left to you.",
        "--find-links FOLDER with a CPU wheel in it, --torch-index URL for another index, or --torch cuda",
    )


def is_cpu(env: Environment) -> bool:
    build = env.torch()
    return build is not None and build[1] == "cpu"


def install_cuda_torch(env: Environment, want: str, requirement: str) -> None:
    _, major = gpu()
    channel = want if want != "cuda" else None
    if channel is None and major is not None and major < 12:
        raise Failed(f"the NVIDIA driver is for CUDA {major}; torch needs one for 12 or newer.", "--torch cpu")
    if channel is None and (WINDOWS or major == 12):
        channel = OLDER_DRIVERS if major == 12 else NEWER_DRIVERS
    source = [] if channel is None else ["--index-url", TORCH_INDEX + channel]
    say(f"torch with CUDA, from {source[1] if source else 'the package index'} (several gigabytes)")
    with tempfile.TemporaryDirectory() as empty:
        # A CPU wheel that lies on this machine would win against the same version elsewhere.
        installed = env.install([*source, requirement], {"PIP_FIND_LINKS": empty, "UV_FIND_LINKS": empty})
    build = env.torch()
    if not installed or build is None or not build[1].startswith("CUDA"):
        got = f"a {build[1]} build came" if installed and build else "the installer's own words are above"
        fix = "--torch cu126, --torch-index URL or --torch cpu"
        raise Failed(f"torch with CUDA could not be installed: {got}.", fix)


def serves(present: tuple[str, str], options: argparse.Namespace) -> bool:
    """Whether the torch that is there is what the options ask for. `auto` takes any build."""
    version, kind = present
    kinds = {"auto": kind, "cpu": "cpu", "cuda": kind if kind.startswith("CUDA") else "CUDA"}
    digits = options.torch.removeprefix("cu")
    return (
        options.torch_index is None
        and options.torch_version in (None, version, version.partition("+")[0])
        and kind == kinds.get(options.torch, f"CUDA {digits[:-1]}.{digits[-1:]}")
        and within(version, torch_requirement())
    )


def choose_torch(env: Environment, options: argparse.Namespace) -> None:
    requirement = torch_requirement()
    if options.torch_version:
        spec = options.torch_version
        requirement = f"torch{spec}" if spec[0] in "=<>~!" else f"torch=={spec}"
    want = options.torch
    if want == "auto":
        want = "default" if MACOS else "cuda" if gpu()[0] else "cpu"
        seen = {"default": "this is a Mac", "cuda": "an NVIDIA GPU is seen", "cpu": "no NVIDIA GPU is seen"}[want]
        say(f"{seen}: {'its torch' if MACOS else 'the CUDA' if want == 'cuda' else 'a CPU'} build is wanted")
    present = env.torch()
    if present and serves(present, options):
        say(f"torch {present[0]} ({present[1]}) is there")
        if want == "cuda" and present[1] == "cpu":
            say("it cannot use the GPU; `--torch cuda` replaces it")
        return
    if present:
        say(f"removing torch {present[0]} ({present[1]})")
        env.remove("torch")
    install_torch(env, want, requirement, options.find_links, options.torch_index)
    version, kind = env.torch() or ("?", "?")
    say(f"torch {version} ({kind}) is installed")
    if not within(version, torch_requirement()):
        raise Failed(f"torch {version} is not one that wanscope works with: {torch_requirement()}.")


# ---- the package


def install_package(env: Environment, extras: tuple[str, ...]) -> None:
    before, build = env.done(), env.torch()
    digest = hashlib.sha256(json.dumps(project(), sort_keys=True).encode()).hexdigest()
    state = {"root": str(ROOT), "project": digest, "torch": list(build or ())}
    if all(before.get(key) == value for key, value in state.items()) and set(extras) <= set(before["extras"]):
        say("wanscope is installed already")
        return
    extras = tuple(sorted({*before.get("extras", ()), *extras} & set(project()["optional-dependencies"])))
    say(f"installing wanscope{' with ' + ', '.join(extras) if extras else ''}")
    if not env.install(["-e", f".[{','.join(extras)}]" if extras else "."]):
        raise Failed(
            "the packages could not be installed; the installer's own words are above.",
            "check network, proxy and disk space (2 GB are needed); `--installer pip` where only pip knows your index",
        )
    if env.torch() != build:
        raise Failed(f"another package replaced torch {build} by {env.torch()}.", "report it; this should not happen")
    if build and build[1].startswith("CUDA") and gpu()[0]:
        seen = env.ask("import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
        if not seen:
            raise Failed(f"torch {build[0]} cannot use this GPU; its driver may be too old.", "--torch cu126")
        say(f"torch sees {seen}")
    env.mark({**state, "extras": list(extras)})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="setup.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(EXTRAS))
    parser.add_argument("--torch", default="auto", metavar="BUILD", help="auto (default), cpu, cuda, or e.g. cu126")
    parser.add_argument("--torch-version", metavar="SPEC", help="e.g. 2.12.1, or '>=2.12,<2.13'")
    parser.add_argument("--torch-index", metavar="URL", help="take torch from this package index (ROCm, a mirror)")
    parser.add_argument("--find-links", action="append", default=[], metavar="FOLDER", help="wheels on this machine")
    parser.add_argument("--installer", choices=["auto", "uv", "pip"], default="auto")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER", help="default: .venv")
    parser.epilog = "What stands after -- is handed on to `wanscope demo` or pytest: setup.py test -- -k grammar"
    given = sys.argv[1:] if arguments is None else arguments
    cut = given.index("--") if "--" in given else len(given)
    options, rest = parser.parse_args(given[:cut]), given[cut + 1 :]
    if not re.fullmatch(r"auto|cpu|cuda|cu\d+", options.torch):
        parser.error(f"--torch {options.torch}: auto, cpu, cuda, or a build of the torch project such as cu126")

    env = Environment(options.venv.absolute(), options.installer)
    env.prepare()
    choose_torch(env, options)
    install_package(env, EXTRAS[options.what])
    if options.what == "demo":
        say("running the demo")
        return run([str(env.bin / "wanscope"), "demo", *rest])
    say("running the tests")
    return run([str(env.python), "-m", "pytest", *rest])


if __name__ == "__main__":
    try:
        status = main()
    except Failed as problem:
        print(f"\nsetup: {problem}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; run it again to go on.", file=sys.stderr)
        status = 130
    sys.exit(status)
