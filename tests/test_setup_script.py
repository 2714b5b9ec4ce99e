"""scripts/setup.py: which commands it runs on which machine. Nothing is installed here."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "setup.py"
CPU, CUDA = ("2.13.0+cpu", "cpu"), ("2.13.0+cu130", "CUDA 13.0")
CUDA_TRAP = ("2.13.0", "CUDA 13.0")  # what the package index's plain `torch` is on Linux


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, on a Linux machine without GPU, wheels, settings or network."""
    spec = importlib.util.spec_from_file_location("wanscope_setup", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WINDOWS", False)
    monkeypatch.setattr(module, "MACOS", False)
    monkeypatch.setattr(module, "gpu", lambda: (False, None))
    monkeypatch.setattr(module, "unreachable_reason", lambda url: "no network")
    monkeypatch.setattr(module, "pip_config_files", lambda: [])
    monkeypatch.setattr(module.shutil, "which", lambda name, **_: None)
    for variable in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    return module


class Machine:
    """An environment that installs nothing: it records commands and returns the torch that each source would give."""

    def __init__(self, module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.settings: list[dict[str, str]] = []
        self.torch: tuple[str, str] | None = None
        self.sources: dict[str, tuple[str, str] | None] = {"index": CUDA_TRAP}
        self.status = 0
        monkeypatch.setattr(module, "run", self.run)
        monkeypatch.setattr(module.Environment, "torch", lambda _: self.torch)
        monkeypatch.setattr(
            module.Environment, "ask", lambda _, code: "3 11 7" if "version_info" in code else "NVIDIA X"
        )
        (folder / ".venv").mkdir()
        self.main = lambda *words: module.main(["--venv", str(folder / ".venv"), *words])

    def run(self, command: list[str], env: dict[str, str] | None = None, quiet: bool = False) -> int:
        self.commands.append(command)
        self.settings.append(env or {})
        if "uninstall" in command:
            self.torch = None
        elif "install" in command and any(word.startswith("torch") for word in command):
            links = next((command[i + 1] for i, word in enumerate(command) if word == "--find-links"), None)
            index = next((command[i + 1] for i, word in enumerate(command) if word == "--index-url"), "index")
            given = self.sources.get(links or index)
            if given is None:
                return 1
            self.torch = given
        return self.status

    def torch_installs(self) -> list[list[str]]:
        return [c for c in self.commands if "install" in c and any(word.startswith("torch") for word in c)]


@pytest.fixture
def machine(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(script, tmp_path, monkeypatch)


def wheels(folder: Path) -> str:
    folder.mkdir()
    with zipfile.ZipFile(folder / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "w"):
        pass
    return str(folder.resolve())


INDEX = "https://download.pytorch.org/whl/"


# ---- no GPU


def test_a_wheel_on_the_machine_comes_first_and_no_index_is_asked(
    script: ModuleType, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = wheels(tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", folder)
    monkeypatch.setattr(script, "unreachable_reason", lambda url: pytest.fail("an index was asked"))
    machine.sources[folder] = CPU
    assert machine.main("demo") == 0
    (install,) = machine.torch_installs()
    assert {"--no-index", "--no-deps"} <= set(install)
    assert machine.commands[-2][-2:] == ["-e", "."]
    assert machine.commands[-1][-1] == "demo"


def test_pip_settings_are_read_for_uv_too(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (wheels(tmp_path / name) for name in ("one", "two with space", "three"))
    settings = tmp_path / "pip.conf"
    settings.write_text(
        f"[global]\nfind-links =\n    {one}\n    https://example.org/wheels\n[install]\nfind-links = {three}\n"
    )
    monkeypatch.setattr(script, "pip_config_files", lambda: [tmp_path / "absent.conf", settings])
    monkeypatch.setenv("UV_FIND_LINKS", Path(one).as_uri())
    assert [str(folder) for folder in script.offered_folders([two])] == [two, one, three]


def test_broken_pip_settings_are_left_to_pip(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text("find-links without a section\n")
    monkeypatch.setattr(script, "pip_config_files", lambda: [tmp_path / "pip.conf"])
    assert script.offered_folders([]) == []


def test_without_a_wheel_the_cpu_index_is_taken(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "unreachable_reason", lambda url: None)
    machine.sources[INDEX + "cpu"] = CPU
    assert machine.main("demo") == 0
    (install,) = machine.torch_installs()
    assert install[install.index("--index-url") + 1] == INDEX + "cpu"
    assert "--no-deps" in install


def test_never_cuda_by_accident(script: ModuleType, machine: Machine) -> None:
    """Without a wheel and a CPU index it stops, although the package index would give a torch."""
    with pytest.raises(script.Failed, match=r"(?s)no CPU build.*--torch cuda") as stopped:
        machine.main("demo")
    assert "several gigabytes" in str(stopped.value)
    assert machine.commands == []


def test_a_local_wheel_with_cuda_is_not_kept(script: ModuleType, machine: Machine, tmp_path: Path) -> None:
    folder = wheels(tmp_path / "wheels")
    machine.sources[folder] = CUDA
    with pytest.raises(script.Failed, match="no CPU build"):
        machine.main("demo", "--find-links", folder)
    assert machine.torch is None


def test_on_windows_the_package_index_is_the_last_resort(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "WINDOWS", True)
    machine.sources["index"] = CPU
    assert machine.main("demo") == 0
    assert machine.torch == CPU


def test_a_mac_takes_what_the_package_index_has(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MACOS", True)
    machine.sources["index"] = ("2.13.0", "cpu")
    assert machine.main("demo") == 0
    assert "--index-url" not in machine.torch_installs()[0]


# ---- a GPU


@pytest.mark.parametrize(("driver", "source"), [(13, "index"), (None, "index"), (12, INDEX + "cu126")])
def test_a_gpu_gets_the_cuda_build_that_its_driver_runs(
    script: ModuleType,
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: int | None,
    source: str,
) -> None:
    monkeypatch.setattr(script, "gpu", lambda: (True, driver))
    folder = wheels(tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", folder)  # a CPU wheel that would win
    machine.sources = {source: CUDA, folder: CPU}
    assert machine.main("demo") == 0
    assert machine.torch == CUDA
    assert machine.settings[0]["PIP_FIND_LINKS"] != folder


def test_a_gpu_without_a_cuda_build_is_an_error(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "gpu", lambda: (True, 13))
    machine.sources["index"] = CPU
    with pytest.raises(script.Failed, match="a cpu build was installed"):
        machine.main("demo")


def test_a_driver_that_is_too_old_is_an_error_before_a_download(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "gpu", lambda: (True, 11))
    with pytest.raises(script.Failed, match="CUDA 11"):
        machine.main("demo")
    assert machine.commands == []


def test_torch_that_cannot_use_the_gpu_is_an_error(
    script: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "gpu", lambda: (True, 13))
    monkeypatch.setattr(script.Environment, "ask", lambda _, code: "3 11 7" if "version_info" in code else "")
    machine.sources["index"] = CUDA
    with pytest.raises(script.Failed, match="cannot use this GPU"):
        machine.main("demo")


def smi(folder: Path, listed: str, shown: str) -> str:
    """Write a replacement of nvidia-smi."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = -L ]; then echo '{listed}'; else echo '{shown}'; fi\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("listed", "shown", "expected"),
    [
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)", "| Driver Version: 580.95   CUDA Version: 13.0 |", (True, 13)),
        ("GPU 0: NVIDIA T4 (UUID: GPU-1)", "| Driver Version: 535.1   CUDA Version: 12.2 |", (True, 12)),
        ("GPU 0: NVIDIA T4 (UUID: GPU-1)", "", (True, None)),
    ],
)
def test_gpu_is_read_from_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, shown: str, expected: tuple[bool, int | None]
) -> None:
    spec = importlib.util.spec_from_file_location("wanscope_setup_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program = smi(tmp_path, listed, shown)
    monkeypatch.setattr(module.shutil, "which", lambda name, **_: program)
    assert module.gpu() == expected


# ---- requests


@pytest.mark.parametrize(
    ("words", "present", "kept"),
    [
        ([], CPU, True),
        ([], CUDA, True),
        ([], ("2.14.0", "cpu"), False),
        ([], ("2.9.1", "cpu"), False),
        (["--torch", "cpu"], CPU, True),
        (["--torch", "cpu"], CUDA, False),
        (["--torch", "cuda"], CUDA, True),
        (["--torch", "cuda"], CPU, False),
        (["--torch", "cu130"], CUDA, True),
        (["--torch", "cu126"], CUDA, False),
        (["--torch-version", "2.13.0"], CPU, True),
        (["--torch-version", "2.12.1"], CPU, False),
        (["--torch-index", "https://example.org/rocm"], CPU, False),
    ],
)
def test_a_suitable_torch_is_kept(
    script: ModuleType,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    present: tuple[str, str],
    kept: bool,
) -> None:
    machine.torch = present
    chosen: list[str] = []

    def install(env: object, want: str, requirement: str, links: list[str], index: str | None) -> None:
        chosen.append(requirement)
        machine.torch = CPU

    monkeypatch.setattr(script, "install_torch", install)
    machine.main("demo", *words)
    assert (chosen == []) == kept
    if "--torch-version" in words and not kept:
        assert chosen == ["torch==2.12.1"]


def test_a_version_outside_what_wanscope_works_with_is_refused(script: ModuleType, machine: Machine) -> None:
    machine.sources["https://example.org/old"] = ("2.4.0", "cpu")
    with pytest.raises(script.Failed, match="does not work with torch"):
        machine.main("demo", "--torch-version", "2.4.0", "--torch-index", "https://example.org/old")


def test_a_build_that_does_not_exist_is_refused(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        machine.main("demo", "--torch", "gpu")
    assert stopped.value.code == 2
    assert "auto, cpu, cuda" in capsys.readouterr().err


# ---- running it again


def test_completed_steps_are_skipped_and_extras_accumulate(machine: Machine, tmp_path: Path) -> None:
    machine.torch = CPU
    assert machine.main("test", "--", "-k", "grammar") == 0
    assert machine.commands[-2][-1] == ".[dev]"
    assert machine.commands[-1][1:] == ["-m", "pytest", "-k", "grammar"]
    machine.commands.clear()
    assert machine.main("test") == 0
    assert machine.main("demo") == 0
    assert [command[1:] for command in machine.commands] == [
        ["-m", "pytest", "-n", "auto", "--dist", "worksteal"],  # all tests: on all cores
        ["demo"],
    ]
    stamp = tmp_path / ".venv" / "wanscope-setup.json"
    assert json.loads(stamp.read_text())["extras"] == ["dev"]


@pytest.mark.parametrize("change", [{"project": "other"}, {"root": "elsewhere"}, {"torch": list(CUDA)}])
def test_a_changed_project_place_or_torch_is_installed_again(
    machine: Machine, tmp_path: Path, change: dict[str, object]
) -> None:
    machine.torch = CPU
    machine.main("test")
    stamp = tmp_path / ".venv" / "wanscope-setup.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), **change}))
    machine.commands.clear()
    machine.main("demo")
    assert machine.commands[0][-1] == ".[dev]"


def test_the_exit_status_of_tests_and_demo_is_passed_on(machine: Machine) -> None:
    machine.torch = CPU
    machine.main("test")
    machine.status = 3
    assert machine.main("test") == 3
    assert machine.main("demo") == 3


def test_a_failed_installation_is_not_taken_for_done(script: ModuleType, machine: Machine, tmp_path: Path) -> None:
    machine.torch, machine.status = CPU, 1
    with pytest.raises(script.Failed, match="could not be installed"):
        machine.main("demo")
    assert not (tmp_path / ".venv" / "wanscope-setup.json").exists()


# ---- the environment


def creation(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, absent: set[str]) -> list[list[str]]:
    """Return the commands that create an environment if the Python lacks some modules."""
    commands: list[list[str]] = []
    monkeypatch.setattr(script, "run", lambda command, *_, **__: commands.append(command) or 0)
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None if name in absent else object())

    def ask(_: object, code: str) -> str | None:
        return "3 11 7" if "version_info" in code else None if code.split()[-1] in absent else ""

    monkeypatch.setattr(script.Environment, "ask", ask)
    script.Environment(folder, "pip").prepare()
    return commands


def test_without_ensurepip_pip_is_used(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ask(_: object, code: str) -> str | None:
        return "3 11 7" if "version_info" in code else None  # the new environment has neither pip nor ensurepip

    commands: list[list[str]] = []
    monkeypatch.setattr(script, "run", lambda command, *_, **__: commands.append(command) or 0)
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    monkeypatch.setattr(script.Environment, "ask", ask)
    script.Environment(tmp_path / "new", "pip").prepare()
    assert "--without-pip" in commands[0]
    assert commands[1][1:4] == ["-m", "pip", "--python"]


@pytest.mark.parametrize(
    ("absent", "said"), [({"venv"}, "no venv module"), ({"ensurepip", "pip"}, "neither ensurepip nor pip")]
)
def test_a_python_that_cannot_create_environments_is_an_error(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, absent: set[str], said: str
) -> None:
    with pytest.raises(script.Failed, match=said):
        creation(script, monkeypatch, tmp_path / "new", absent)


def test_uv_is_used_where_it_is_installed(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name, **_: f"/bin/{name}" if name == "uv" else None)
    assert script.Environment(tmp_path, "auto").uv == "/bin/uv"
    assert script.Environment(tmp_path, "pip").uv is None


def test_uv_requested_and_absent_is_an_error(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(script.Failed, match="not on the PATH"):
        script.Environment(tmp_path, "uv")


@pytest.mark.parametrize(("answer", "said"), [(None, "does not run"), ("3 10 2", "has Python 3.10.2")])
def test_an_unsuitable_environment_is_an_error(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str | None, said: str
) -> None:
    monkeypatch.setattr(script.Environment, "ask", lambda *_: answer)
    with pytest.raises(script.Failed, match=said):
        script.Environment(tmp_path, "pip").prepare()


def test_old_pythons_can_read_the_script_up_to_where_it_refuses_them() -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    before = source[: source.index("ROOT =")]
    assert "sys.version_info < (3, 11)" in before
    assert "def " not in before  # annotations there would be evaluated


def test_the_torch_that_is_installed_is_recognized() -> None:
    """Read without importing it, by the Python that runs these tests."""
    spec = importlib.util.spec_from_file_location("wanscope_setup_torch", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    env = module.Environment(Path(sys.prefix), "pip")
    from importlib.metadata import version

    import torch

    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "cpu"
    assert env.torch() == (version("torch"), kind)
