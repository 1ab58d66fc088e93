"""The benchmark of the first hour on a GPU, run for real with tiny models on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a machine with torch and transformers alone lacks.
NOT_THERE = ("pydantic", "ray", "vllm", "deepspeed")


def run(results: Path, *arguments: str, without: Path | None = None) -> dict[str, Any]:
    """The parts of its one dated result; `without` is a folder from which Python learns what is not
    there.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if without:
        (without / "sitecustomize.py").write_text(
            f"import sys\nsys.modules |= dict.fromkeys({NOT_THERE})\n"
        )
        environment["PYTHONPATH"] = f"{without}{os.pathsep}{ROOT}"
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--results", str(results), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    page, data = sorted(results.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d-gpu(-bare)?-tiny\.md", page.name)
    found = json.loads(data.read_text())
    assert "torch" in found["versions"] and found["cards"] is not None
    for part in found["parts"]:
        assert f"## {part}\n" in page.read_text()
    assert not [part["failed"] for part in found["parts"].values() if part["failed"]]
    return {name: part["rows"] for name, part in found["parts"].items()}


def check_bare(found: dict[str, Any]) -> None:
    [product] = found["matrix_product"]
    assert product["TFLOP/s"] > 0
    ours, theirs = found["patch_embedding"]
    assert (ours["way"], theirs["way"]) == ("matrix product", "convolution")
    assert ours["forward, ms"] > 0 and theirs["forward and backward, ms"] > 0
    assert theirs["largest difference, relative"] < 0.01


def test_a_bare_run_needs_torch_and_transformers_alone(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    found = run(
        tmp_path / "results",
        "--bare",
        *("--parts", "matrix_product", "patch_embedding", "training_step"),
        without=tmp_path / "path",
    )
    check_bare(found)
    [step] = found["training_step"]
    assert step["way"] == "AdamW" and step["tokens/s"] > 0 and step["of a matrix product's"] > 0


def test_a_part_that_fails_leaves_the_others_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['transformers'] = None\n")
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--device", "cpu"]
    parts = ["--parts", "matrix_product", "activations", "--results", str(tmp_path / "results")]
    done = subprocess.run([*command, *parts], env=os.environ | path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    [data] = (tmp_path / "results").glob("*.json")
    found = json.loads(data.read_text())["parts"]
    assert found["matrix_product"]["rows"] and not found["matrix_product"]["failed"]
    assert not found["activations"]["rows"] and "transformers" in found["activations"]["failed"]


@pytest.mark.slow
def test_all_parts_run(tmp_path: Path) -> None:
    found = run(tmp_path, "--images", "32", "--samples", "32")
    check_bare(found)

    held = {
        (row["model"], row["tiles"], row["checkpointing"]): row["MiB a sample"]
        for row in found["activations"]
    }
    assert len({model for model, *_ in held}) == 5
    for (model, tiles, checkpointing), most in held.items():
        assert most > 0
        assert held[model, tiles, "on"] <= held[model, tiles, "off"]
        assert checkpointing == "on" or tiles == 1 or most > held[model, 1, "off"]
    # Of the others' tiny models, other things are larger than their layers.
    assert held["InternVL2-4B", 13, "on"] < held["InternVL2-4B", 13, "off"]

    for stage in (2, 3):
        [step] = found[f"training_step_zero_{stage}"]
        assert step["way"] == f"DeepSpeed, ZeRO {stage}" and step["tokens/s"] > 0
        # The gradients in float32, and more.
        assert 4 <= step["the step adds, bytes a parameter"] <= 14

    assert [row["start"] for row in found["engine_start"]] == ["first", "second"]
    assert all(row["load, s"] > 0 for row in found["engine_start"])
    serving = {row["way"]: row for row in found["serving"]}
    assert serving.keys() == {"ours", "bare", "ray_data_llm", "ray_data_class", "transformers"}
    training = {row["way"]: row for row in found["training"]}
    assert training.keys() == {"ours", "deepspeed", "trainer"}
    for row in (*serving.values(), *training.values()):
        assert "error" not in row, row
        assert float(row["ours is, times"]) > 0
    assert serving["ours"]["encoder runs an image"] == 1.0
    assert serving["ours"]["of the second prompt from the KV cache"] > 0.2
