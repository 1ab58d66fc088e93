"""The checks before a run: what is well is said to be, and what is not is named with its fix."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mpa_ray import demo
from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.models.size import size_of
from mpa_ray.storage import folder as storage
from mpa_ray.storage import s3
from mpa_ray.tools.doctor import cluster, data, dry_run, group, machine
from mpa_ray.tools.doctor.access import access as look_at_models
from mpa_ray.tools.doctor.finding import Finding
from s3 import environment, free_port
from tests.faults.s3_proxy import Proxy

ROOT = Path(__file__).parents[2]
API = ModelSection(model="gpt", engine="openai")


def states(found: list[Finding]) -> list[str]:
    return [finding.state for finding in found]


def write_pins(folder: Path, *required: str) -> Path:
    path = folder / "setup.cfg"
    lines = "\n    ".join(required)
    extras = "train =\nvllm =\nvllm-cpu =\napi =\n    no-such-client==1.0\n"
    path.write_text(
        f"[options]\ninstall_requires =\n    {lines}\n[options.extras_require]\n{extras}"
    )
    return path


def test_this_environment_is_as_pinned() -> None:
    assert set(states(list(machine.versions(Config())))) == {"ok"}


def test_wrong_and_missing_versions(tmp_path: Path) -> None:
    pins = write_pins(tmp_path, "pyarrow==1.0", "no-such-package==2.0", "pillow>=1", "numpy")
    found = list(machine.versions(Config(), pins))
    assert states(found) == ["ok", "failed", "failed", "ok"]
    assert "pyarrow is " in found[1].said and "==1.0 was tested" in found[1].said
    assert found[2].said == "no-such-package==2.0 is not installed"
    assert found[2].fix == "make venv, or pip install -c constraints.txt 'no-such-package==2.0'"
    assert found[3].said == "2 packages as pinned"


def test_only_what_the_run_needs_is_asked_for(tmp_path: Path) -> None:
    pins = write_pins(tmp_path, "numpy")
    assert "failed" not in states(list(machine.versions(Config(), pins)))
    assert (
        "no-such-client"
        in next(
            finding
            for finding in machine.versions(Config(lvlm=API), pins)
            if finding.state == "failed"
        ).said
    )


def test_no_checkout_is_no_failure(tmp_path: Path) -> None:
    assert states(list(machine.versions(Config(), tmp_path / "setup.cfg"))) == ["ok", "warning"]


def test_a_local_part_of_a_version_is_a_build_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_installed", lambda name: "2.13.0+cpu")
    assert "failed" not in states(
        list(machine.versions(Config(), write_pins(tmp_path, "torch==2.13.0")))
    )


@pytest.mark.parametrize(("free", "state"), [(0.5, "failed"), (4, "warning"), (64, "ok")])
def test_memory(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_memory_available", lambda: int(free * machine.GIB))
    [memory] = [finding for finding in machine.machine() if finding.what == "memory"]
    assert memory.state == state and bool(memory.fix) == (state != "ok")


def test_room_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where output and temporary folder are on one disk, the model is there twice at the end, and
    before that four checkpoints of 12 bytes a parameter, one of them in the temporary folder.
    """
    shutil.copytree(demo.SVLM, tmp_path / "model")
    svlm = ModelSection(model=str(tmp_path / "model"))
    size = size_of(svlm)
    assert size is not None
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = Config(svlm=svlm, output=str(tmp_path / "runs/1"))

    def look(free: int, config: Config, *, trains_here: bool = True) -> Finding:
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
        [found] = machine.checkpoints(config, trains_here=trains_here)
        assert bool(found.fix) == (found.state != "ok")
        return found

    model, state = size.weight_bytes, 12 * size.parameters
    assert look(2 * model - 1, config).state == "failed"
    assert look(2 * model, config).state == "warning"
    assert look(model + 4 * state - 1, config).state == "warning"
    assert look(model + 4 * state, config).state == "ok"
    assert look(model + 3 * state, config, trains_here=False).state == "ok"
    in_s3 = config.model_copy(update={"output": "s3://bucket/run"})
    assert [look(state - 1, in_s3).state, look(state, in_s3).state] == ["warning", "ok"]
    assert list(machine.checkpoints(in_s3, trains_here=False)) == []
    assert list(machine.checkpoints(Config(), trains_here=True)) == []


def test_disks_that_do_not_exist_yet_are_those_they_would_be_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not/yet"))
    [disk] = [finding for finding in machine.machine() if finding.what == "disk for Ray"]
    assert disk.said.endswith(f"free in {tmp_path}")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a program of this name in front of the path; it prints what it is given."""

    def make(printed: str, code: int = 0) -> None:
        (tmp_path / "out").write_text(printed)
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat {tmp_path}/out\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return make


@pytest.mark.parametrize(
    ("printed", "code", "expected"),
    [
        ("NVIDIA L40S, 46068, 12", 0, [("ok", "NVIDIA L40S, 45 GiB, 0 GiB of it in use")]),
        (
            "NVIDIA L40S, 46068, 40000\nNVIDIA L40S, 46068, 0",
            0,
            [("warning", "39 GiB of it in use"), ("ok", "0 GiB")],
        ),
        ("NVIDIA GB10, [N/A], [N/A]", 0, [("ok", "does not say")]),
        ("No devices were found", 0, [("ok", "none")]),
        ("couldn't communicate with the NVIDIA driver", 9, [("failed", "couldn't communicate")]),
    ],
)
def test_gpus(
    nvidia_smi: Callable[..., None], printed: str, code: int, expected: list[tuple[str, str]]
) -> None:
    nvidia_smi(printed, code)
    found = list(machine.gpus())
    assert states(found) == [state for state, _ in expected]
    assert all(text in finding.said for finding, (_, text) in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("version", "cuda", "starts", "state", "said"),
    [
        ("580.95.05", "13.0", False, "ok", "580.95.05, with CUDA 13.0 of torch 2.13.0"),
        ("575.57.08", "13.0", False, "failed", "which needs 580 or newer"),
        ("575.57.08", "13.0", True, "ok", "by forward compatibility"),
        ("535.1", "12.8", False, "ok", "CUDA 12.8"),
        ("610.1", None, False, "warning", "is a build for the CPU"),
    ],
)
def test_the_driver_must_run_the_cuda_of_torch(
    version: str, cuda: str | None, starts: bool, state: str, said: str
) -> None:
    found = machine.driver(version, build="2.13.0", cuda=cuda, starts=lambda: starts)
    assert found.state == state and said in found.said
    assert bool(found.fix) == (state != "ok")


def test_the_cuda_that_is_pinned_has_an_oldest_driver() -> None:
    [major] = {
        int(line.partition("==")[2].partition(".")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("nvidia-cuda-runtime==")
    }
    assert machine.LEAST_DRIVER[major] == 580


def test_a_compiler_and_headers(tmp_path: Path) -> None:
    (tmp_path / "Python.h").write_text("")
    assert machine.compiler(found="/usr/bin/gcc", headers=tmp_path).state == "ok"
    lacking = [
        machine.compiler(found=None, headers=tmp_path),
        machine.compiler(found="/usr/bin/gcc", headers=tmp_path / "nowhere"),
    ]
    assert states(lacking) == ["failed", "failed"]
    assert "gcc" in lacking[0].fix and f"python3.{sys.version_info.minor}-dev" in lacking[1].fix


def test_what_gpus_need_is_looked_at_where_they_are(
    nvidia_smi: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(svlm=ModelSection(model="a/b"))
    nvidia_smi("No devices were found")
    assert list(machine.gpu_software(config)) == [] and machine.count_gpus() == 0
    nvidia_smi("550.54.15\n550.54.15\n")
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    driver, compiler = machine.gpu_software(config)
    assert driver.what == "driver" and "550.54.15" in driver.said
    assert compiler.state == "failed", "vLLM would compile there"
    on_cpu = Config(svlm=ModelSection(model="a/b", gpus_per_replica=0))
    assert [found.what for found in machine.gpu_software(on_cpu)] == ["driver"]
    nvidia_smi("0\n1\n")
    assert machine.count_gpus() == 2


def test_a_check_leaves_nothing_on_a_disk(tmp_path: Path) -> None:
    [found] = data.storage(str(tmp_path / "a/b"))
    assert found.state == "ok" and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [found] = data.storage(str(tmp_path / "file/run"))
    assert found.state == "failed" and found.fix


def test_a_bucket_with_all_rights(bucket: str) -> None:
    [found] = data.storage(f"s3://{bucket}/run")
    assert found.state == "ok", found
    # Arrow leaves the mark of an empty folder; nothing is in it.
    assert [key for key, _ in s3.keys(bucket, "") if not key.endswith("/")] == []


def test_a_bucket_that_may_only_be_read(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with environment(s3_port):
        s3.client().create_bucket(Bucket="doctor-read-only")
    with Proxy(s3_port, lambda method, path: "read_only") as proxy, environment(proxy.port):
        [found] = data.storage("s3://doctor-read-only/run")
    assert found.state == "failed" and "doctor-read-only" in found.said
    assert found.fix == "give these credentials the rights to list, read, write and delete there"


def test_a_store_that_ignores_conditions(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_second_put_is_refused", lambda folder, name: False)
    [found] = data.storage(f"s3://{bucket}/run")
    assert found.state == "warning" and "conditional PUT" in found.said


def test_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    [found] = data.inputs(Config(images=str(tmp_path)))
    assert found.state == "ok" and "of the first 2, 2 were read" in found.said
    (tmp_path / "a.png").write_bytes(b"")
    [found] = data.inputs(Config(images=str(tmp_path)))
    assert found.state == "warning" and found.fix.startswith("empty")
    for nothing in (tmp_path / "nowhere", tmp_path / "a.txt"):
        [found] = data.inputs(Config(images=str(nothing)))
        assert found.state == "failed" and "does not exist" in found.said


def test_a_parity_set_is_looked_at_in_place_of_images(parity_folder: Path) -> None:
    [found] = data.inputs(Config(parity=str(parity_folder)))
    assert (found.state, found.said) == ("ok", f"24 rows in {parity_folder}")


def access(lvlm: ModelSection) -> Finding:
    [found] = look_at_models(Config(lvlm=lvlm))
    return found


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert access(ModelSection(model=str(demo.LVLM))).state == "ok"
    found = access(ModelSection(model=str(tmp_path)))
    assert found.state == "failed" and "holds no config.json" in found.said
    found = access(ModelSection(model="nobody/no-such-model"))
    assert found.state == "failed" and "HF_TOKEN" in found.fix
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((demo.LVLM / "config.json").read_bytes())
    for name, content, said in (
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]", "copy the model again"),
        ("m.bin", b"x", "as safetensors"),
    ):
        (broken / name).write_bytes(content)
        found = access(ModelSection(model=str(broken)))
        assert (
            found.state == "failed"
            and f"{broken}" in found.said
            and name in found.said
            and found.said.endswith(said)
        )
        (broken / name).unlink()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert access(API).state == "failed" and "OPENAI_API_KEY" in access(API).said
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-the-tests")
    assert access(API).state == "ok" and "a-key-of-the-tests" not in str(access(API))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("header", "model.safetensors is cut off or damaged: "),
        ("configuration", "config.json is no JSON: "),
        ("a list", "config.json is no configuration of a model"),
        ("a folder", "model.safetensors, which is not there"),
        ("name", "File name too long"),
    ],
)
def test_a_damaged_checkpoint_is_a_finding_wherever_it_is_read(
    damage: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = tmp_path / "model"
    shutil.copytree(demo.SVLM, model)
    weights = model / "model.safetensors"
    if damage == "header":
        whole = weights.read_bytes()
        weights.write_bytes(whole[:8] + b"\xff" * 100 + whole[108:])
    elif damage == "a folder":
        weights.unlink()
        weights.mkdir()
    elif damage == "name":
        model = tmp_path / ("x" * 300)
    else:
        (model / "config.json").write_text({"configuration": "{", "a list": "[]"}[damage])
    config = Config(svlm=ModelSection(model=str(model), gpus_per_replica=0))
    [found] = look_at_models(config)
    assert found.state == "failed" and said in found.said
    assert "\n" not in found.said
    assert {finding.what for finding in cluster.cluster(config)} <= {
        "ray",
        "placement",
        "room for PA and PI",
        "room for PL",
    }
    weights_are_damaged = damage in ("header", "a folder", "name")
    made = dry_run.dry_config(config, images="i", output="o", on_gpus=False)
    assert (made.svlm.model == str(demo.SVLM)) == weights_are_damaged


def test_damaged_settings_of_a_processor_are_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = tmp_path / "model"
    shutil.copytree(demo.SVLM, model)
    (model / "processor_config.json").write_text("{")
    section = ModelSection(model=str(model), gpus_per_replica=0)
    found = list(cluster.cluster(Config(lvlm=section, svlm=section)))
    assert [finding.said for finding in found if "processor_config.json is no JSON" in finding.said]


def test_a_head_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    [found] = cluster.cluster(Config())
    assert found.state == "failed" and "Connection refused" in found.said


def test_what_the_cluster_has(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.delenv("NO_KEY_HERE", raising=False)
    config = Config(
        lvlm=API.model_copy(update={"api_key_env": "NO_KEY_HERE"}),
        svlm=ModelSection(model="a/b", gpus_per_replica=1),
        pl=TrainingSection(workers=1),
    )
    found = {finding.what: finding for finding in cluster.cluster(config)}
    assert "1 nodes, 4 CPU cores, 0 GPUs" in found["ray"].said
    assert (
        found["room for PA and PI"].said
        == "it asks for 1 GPU on one node, and the largest node has 0"
    )
    assert found["room for PA and PI"].state == found["room for PL"].state == "failed", (
        "and nothing starts a node"
    )
    assert found["key on a worker"].state == "failed"


TWO = [{"CPU": 1.0}] * 2


def test_the_training_group_sums_up(ray_session: None) -> None:
    """With Gloo; NCCL goes the same way on GPUs."""
    svlm = ModelSection(model=str(demo.SVLM), gpus_per_replica=0)
    config = Config(svlm=svlm, pl=TrainingSection(workers=2, gpus_per_worker=0))
    [found] = group.training_group(config)
    assert (found.state, found.said) == ("ok", "2 workers on 1 node(s) summed up by gloo")
    alone = config.model_copy(update={"pl": TrainingSection(workers=1, gpus_per_worker=0)})
    assert list(group.training_group(alone)) == [] == list(group.training_group(Config()))
    on_gpus = config.model_copy(update={"pl": TrainingSection(workers=2)})
    [found] = group.training_group(on_gpus)
    assert found.state == "ok" and found.said.startswith("not tried: no node is there")


def test_a_training_group_that_does_not_sum_up(ray_session: None) -> None:
    import ray

    [found] = group.all_reduce(TWO, Config(), backend="nccl", labels={})
    assert found.state == "failed" and found.said.startswith("2 workers, nccl: ")
    assert all(
        fix in found.fix for fix in ("NCCL_SOCKET_IFNAME", "NCCL_DEBUG=INFO", "ports", "shm-size")
    )
    too_many = [{"CPU": 4.0}] * 2
    [found] = group.all_reduce(too_many, Config(), backend="gloo", labels={}, limit_s=1)
    assert found.state == "warning" and found.said.startswith("not tried: 2 x {4 CPU}")
    assert {entry["state"] for entry in ray.util.placement_group_table().values()} == {"REMOVED"}


def test_a_worker_does_not_wait_for_ever() -> None:
    """Nobody answers where the first worker should be, as behind a firewall."""
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(RuntimeError, match=r"(?i)timed out|connection refused"):
        group._Member().sum_up(1, 2, nowhere, "gloo", 2.0)


def test_large_models_are_stood_in_for_and_small_ones_are_asked(tmp_path: Path) -> None:
    shutil.copytree(demo.LVLM, tmp_path / "small")
    large = ModelSection(model="Qwen/Qwen2-VL-7B-Instruct", gpus_per_replica=0, max_replicas=8)
    small = large.model_copy(update={"model": str(tmp_path / "small")})
    made = dry_run.dry_config(
        Config(lvlm=large, svlm=small, pl=TrainingSection(gpus_per_worker=0)),
        images="i",
        output="o",
        on_gpus=True,
    )
    assert (made.lvlm.model, made.svlm.model) == (str(demo.LVLM), str(tmp_path / "small"))
    assert made.lvlm.max_replicas == 1 and made.pl.gpus_per_worker == 0 and made.pl.holdout == 0
    assert made.missing() == []


def test_damaged_models_are_stood_in_for(tmp_path: Path) -> None:
    """What is wrong with them is said where models are looked at."""
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    damaged = ModelSection(model=str(tmp_path))
    small = dry_run.dry_config(
        Config(lvlm=damaged, svlm=damaged), images="i", output="o", on_gpus=False
    )
    assert (small.lvlm.model, small.svlm.model) == (str(demo.LVLM), str(demo.SVLM))


def test_a_stand_in_takes_a_share_of_a_gpu_where_the_model_takes_gpus() -> None:
    given = ModelSection(model="Qwen/Qwen2-VL-7B-Instruct", gpus_per_replica=4)
    made = dry_run.dry_config(Config(lvlm=given, svlm=given), images="i", output="o", on_gpus=True)
    assert made.lvlm.gpus_per_replica == made.svlm.gpus_per_replica == 0.4, "both share one"
    options = made.lvlm.engine_options
    assert options["enforce_eager"], "compiling takes longer than the images"
    assert options["kv_cache_memory_bytes"], "else it would measure what loads beside it"
    assert made.pl.gpus_per_worker == 1
    assert made.lvlm.engine_options["enforce_eager"] is True, "nothing is compiled within its time"
    made = dry_run.dry_config(Config(lvlm=given, svlm=given), images="i", output="o", on_gpus=False)
    assert made.lvlm.gpus_per_replica == made.svlm.gpus_per_replica == made.pl.gpus_per_worker == 0


def test_gpus_that_are_asked_for_and_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "count_gpus", lambda: 1)
    model = ModelSection(model="a/b", gpus_per_replica=0.5)
    found = list(cluster.cluster(Config(lvlm=model, svlm=model, pl=TrainingSection(workers=3))))
    assert [(finding.state, finding.what) for finding in found[1:]] == [
        ("ok", "room for PA and PI"),
        ("ok", "room for PL"),
    ]
    assert (
        "asks for 3 GPU in all, and the cluster has 1, and continues with 1 workers"
        in found[2].said
    )
    monkeypatch.setattr(cluster, "count_gpus", lambda: 0)
    found = list(cluster.cluster(Config(lvlm=model, svlm=model)))
    assert [(finding.state, finding.what) for finding in found[1:]] == [
        ("failed", "room for PA and PI"),
        ("failed", "room for PL"),
    ]
    assert found[1].fix
    assert states(list(cluster.cluster(Config()))) == ["ok"], (
        "no model is named, so no GPU is asked for"
    )


Doctor = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def job(tmp_path: Path) -> Doctor:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "jobs/doctor.py"), *argv]
        return subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )

    return run


def test_the_job(job: Doctor, tmp_path: Path) -> None:
    ended = job("--quick", "--preset", "demo", "--output", "runs/demo")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "nothing failed"), (
        ended.stdout + ended.stderr
    )
    ended = job("--quick", "--images", "nowhere", "--svlm.model", "no/such")
    assert ended.returncode == 3 and ended.stderr.endswith(" failed: a run would not work\n"), (
        ended.stdout + ended.stderr
    )
    assert f"failed   images: images='{tmp_path}/nowhere' does not exist" in ended.stdout
    assert job("--svlm.modle", "x").returncode == 2


@pytest.mark.slow
def test_a_small_run(job: Doctor) -> None:
    ended = job("--preset", "demo")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "24 images through PA, PI and PL with " in ended.stdout


@pytest.mark.slow
def test_a_small_run_that_fails_says_why(job: Doctor, tmp_path: Path) -> None:
    (tmp_path / "broken_engine.py").write_text(
        "def load(model):\n    raise RuntimeError('no device')\n"
    )
    ended = job("--preset", "demo", "--lvlm.engine", "broken_engine:load")
    assert ended.returncode == 3 and "failed   dry run: with " in ended.stdout, ended.stdout


def test_a_finding_shows_what_names_hold_and_none_can_be_forged() -> None:
    hostile = "a\x1b[2J\u202e\nok       models: there"
    text = str(
        Finding(state="failed", what=hostile, said=f"{hostile}\nsecond problem", fix=hostile)
    )
    assert all(character.isprintable() for line in text.split("\n") for character in line)
    first, *rest = text.split("\n")
    assert first == "failed   a⟨U+001B⟩[2J⟨U+202E⟩"
    assert len(rest) == 5 and all(line.startswith(" " * 9) for line in rest)
    assert rest[-2] == f"{'':9}fix: a⟨U+001B⟩[2J⟨U+202E⟩"
