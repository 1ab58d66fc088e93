"""The rest of cluster/: images, machines of one's own, SkyPilot, and the README's commands as the
tools themselves read them.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import setup_venv
from cluster_readme import CLUSTER, ROOT, click_contexts, commands

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
UV_RUN = [
    str(Path(sys.executable).parent / "uv"),
    "run",
    "--no-project",
    "--python",
    sys.executable,
    "--with",
    "skypilot==0.14.1",
]


def instructions(name: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(
        r"\\\n\s*", "", re.sub(r"^#.*\n", "", (CLUSTER / name).read_text(), flags=re.MULTILINE)
    )
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line]  # type: ignore[misc]


@pytest.mark.parametrize(("name", "extras", "pins"), [
    ("Dockerfile.cpu", ["api"], ["torch==2.13.0+cpu", "torchvision==0.28.0+cpu"]),
    ("Dockerfile.gpu", ["vllm", "train", "api"], []),
])  # fmt: skip
def test_images_hold_the_pinned_versions_and_run_as_a_user(
    name: str, extras: list[str], pins: list[str]
) -> None:
    lines = instructions(name)
    verbs = [verb for verb, _ in lines]
    assert verbs[0] == "FROM" and set(verbs) <= {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER"}
    base = lines[0][1]
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", base), "a tag with a version"
    uses = dict(lines)
    assert uses["USER"] == "1000" and verbs[-1] == "USER"
    install = next(
        argument for verb, argument in lines if verb == "RUN" and "pip install" in argument
    )
    words = shlex.split(install)
    assert (
        words[words.index("-c") + 1] == "constraints.txt"
        and words[words.index("-r") + 1] == "setup.cfg"
    )
    assert [words[place + 1] for place, word in enumerate(words) if word == "--extra"] == extras
    assert set(extras) <= set(SETUP["options.extras_require"])
    assert [word for word in words if "==" in word] == pins
    required = SETUP["options"]["install_requires"].split()
    assert all(pin.removesuffix("+cpu") in required for pin in pins)
    copied = [argument.split() for verb, argument in lines if verb == "COPY"]
    assert [words for words in copied if words[0].startswith("--from")] == [
        [
            f"--from=ghcr.io/astral-sh/uv:{setup_venv.UV.partition('==')[2]}",
            "/uv",
            "/usr/local/bin/uv",
        ]
    ]
    seen = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert {
        source for words in copied if not words[0].startswith("--") for source in words[:-1]
    } == seen
    assert all((ROOT / source).exists() for source in seen)
    assert not re.search(r"(?i)(_key|token|secret|password)\s*=", (CLUSTER / name).read_text())


def test_both_images_have_one_python_and_the_configurations_name_them() -> None:
    pythons = {
        argument
        for name in ("Dockerfile.cpu", "Dockerfile.gpu")
        for verb, argument in instructions(name)
        if "uv venv" in argument
    }
    assert len(pythons) == 1
    tags = {
        re.search(r"docker build .* -t (\S+) ", (CLUSTER / name).read_text())[1]
        for name in ("Dockerfile.cpu", "Dockerfile.gpu")
    }  # type: ignore[index]
    built = {
        shlex.split(line)[shlex.split(line).index("-t") + 1]
        for line in commands("docker")
        if " build " in line
    }
    assert (
        tags == built == {shlex.split(line)[2] for line in commands("docker") if " push " in line}
    )
    for path in CLUSTER.glob("*.yaml"):
        assert set(re.findall(r"registry\.example\.com/[\w./-]+:[\w.-]+", path.read_text())) <= tags
    ray = next(
        line for line in SETUP["options"]["install_requires"].split() if line.startswith("ray[")
    )
    for path in CLUSTER.glob("kuberay-*.yaml"):
        assert f"rayVersion: {ray.partition('==')[2]}\n" in path.read_text()


def test_models_and_compiled_kernels_lie_in_the_folder_that_is_mounted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the libraries themselves resolve it from the image's variables."""
    envs, triton = pytest.importorskip("vllm.envs"), pytest.importorskip("triton.knobs")
    for verb, argument in instructions("Dockerfile.gpu"):
        if verb == "ENV":
            for variable in argument.split():
                monkeypatch.setenv(*variable.split("=", 1))
    places = {
        "models": os.environ["HF_HOME"],
        "vLLM's compiled graphs": envs.environment_variables["VLLM_CACHE_ROOT"](),
        "Triton's kernels": triton.cache_knobs().dir,
        "FlashInfer's kernels": os.environ.get("FLASHINFER_WORKSPACE_BASE", "~"),
    }
    assert {what for what, place in places.items() if not place.startswith("/cache/")} == set()


@pytest.mark.parametrize(
    "path",
    sorted(CLUSTER.glob("aws-*.yaml")) + sorted(CLUSTER.glob("onprem-*.yaml")),
    ids=lambda path: path.name,
)
def test_ray_takes_the_configurations_of_ray_up(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jsonschema
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "mpa-ray.pem").touch()
    config = yaml.safe_load(path.read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    prepared = prepare_config(config)
    jsonschema.validate(prepared, schema)
    validate_config(prepared)
    types = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
    assert all(node.min_worker_nodes == 0 for node in types.values())
    for command in (*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"]):
        assert list(click_contexts(command.replace("$RAY_HEAD_IP", "10.0.0.1")))
    assert (
        "--num-cpus=0" in prepared["head_start_ray_commands"][-1]
        and "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][-1]
    )


def test_the_scripts_of_the_skypilot_task_are_shell_and_its_job_is_ours() -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert setup_venv.UV in task["setup"]
    _takes_job(
        next(
            line for line in task["run"].replace("\\\n", "").splitlines() if " python jobs/" in line
        ).partition(" ")[2]
    )
    starts = re.findall(r"ray start [^;\n]*", task["run"])
    assert len(starts) == 2 and all(list(click_contexts(line)) for line in starts)


@pytest.mark.slow
def test_skypilot_takes_its_task() -> None:
    """SkyPilot's versions exclude ours, so it gets an environment of its own."""
    code = (
        "import sky; task = sky.Task.from_yaml('cluster/skypilot.yaml'); print(task.num_nodes,"
        " sorted(str(r) for r in task.resources))"
    )
    had = subprocess.run(
        [*UV_RUN, "python", "-c", "import sky"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if had.returncode:
        pytest.skip(f"SkyPilot cannot be installed here: {had.stderr[-200:]}")
    done = subprocess.run(
        [*UV_RUN, "python", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 ") and "Spot" in done.stdout
    for line in commands("sky"):
        words = shlex.split(line)[:3]
        shown = subprocess.run(
            [*UV_RUN, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert all(word in shown.stdout for word in shlex.split(line)[3:] if word.startswith("-"))


def _takes_job(command: str) -> None:
    """Whether one of our jobs takes the flags it is called with."""
    from mpa_ray.cli import parse

    python, script, *flags = shlex.split(command)
    assert python == "python" and (ROOT / script.removeprefix("/opt/mpa_ray/")).is_file()
    if Path(script).name.startswith("mpa_"):
        scope: dict[str, Any] = {"__name__": "job"}
        exec((ROOT / script.removeprefix("/opt/mpa_ray/")).read_text(), scope)
        parse(scope["CONFIG"], flags)
    else:
        assert Path(script).name == "status.py" and flags[0] == "--output" and len(flags) == 2


@pytest.mark.parametrize(
    "line", [line for program in ("ray", "python") for line in commands(program)]
)
def test_a_command_of_the_readme_is_one_that_the_tool_takes(line: str) -> None:
    if line.startswith("python"):
        _takes_job(line)
        return
    context = list(click_contexts(line))[-1]
    if "cluster_config_file" in context.params:
        assert (ROOT / context.params["cluster_config_file"]).is_file()
    if "entrypoint" in context.params:
        _takes_job(shlex.join(context.params["entrypoint"]))


def test_the_jobs_of_the_rayjobs_are_ours_and_the_readmes_kubectl_names_them() -> None:
    for path in sorted(CLUSTER.glob("kuberay-*.yaml")):
        job = list(yaml.safe_load_all(path.read_text()))[1]
        _takes_job(job["spec"]["entrypoint"])
        for line in commands("kubectl"):
            words = shlex.split(line)
            assert (
                "rayjob" not in words or job["metadata"]["name"] == words[words.index("rayjob") + 1]
            )
            assert "-f" not in words or (ROOT / words[words.index("-f") + 1]).is_file()


def test_every_command_of_the_readme_is_looked_at() -> None:
    programs = {shlex.split(line)[0] for line in commands()}
    assert programs == {
        "aws",
        "chmod",
        "docker",
        "export",
        "helm",
        "kubectl",
        "python",
        "ray",
        "sky",
    }
    named = set(re.findall(r"`([\w.-]+\.(?:yaml|json))`", (CLUSTER / "README.md").read_text()))
    assert (
        {path.name for path in CLUSTER.glob("*.yaml")}
        <= named
        <= {path.name for path in CLUSTER.iterdir()}
    )
