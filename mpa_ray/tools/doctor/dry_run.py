"""A run of a few images, in a process of its own."""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mpa_ray import demo
from mpa_ray.config import Config, LocalModelSection, ModelSection
from mpa_ray.config.engines import engine_kind
from mpa_ray.demo.presets import preset
from mpa_ray.errors import ConfigurationError
from mpa_ray.models import families
from mpa_ray.storage.folder import Folder, is_remote
from mpa_ray.tools.doctor.finding import ROOT, Finding
from mpa_ray.tools.doctor.machine import count_gpus

# Some of them must be parity samples, or nothing is trained: the embedded pair finds a third.
_IMAGES = 24
# So few parameters are loaded, asked and trained within the minute, on a CPU too; larger models are
# stood in for by the embedded pair.
_SMALL = 50_000_000
_RUN_S = 300.0
_SHARE_OF_A_GPU = 0.4
# Compiling takes longer than the images. The KV cache's size is said, or an engine would measure
# what one that loads beside it takes.
_ENGINE_OPTIONS = {
    "enforce_eager": True,
    "gpu_memory_utilization": 0.2,
    "kv_cache_memory_bytes": 2**30,
}

_ON_GPUS = (
    "; where vLLM itself fails on a GPU, VLLM_USE_V2_MODEL_RUNNER=0 in the environment of Ray's"
    " workers (its older GPU runner)"
)


def dry_run(config: Config) -> Iterator[Finding]:
    """A few rendered images through PA, PI and PL, in a process of its own: with the run's models
    where they are small and local, else with the embedded pair on the run's engines and kind of
    device.
    """
    with _place(config) as place, tempfile.TemporaryDirectory() as scratch:
        from mpa_ray.demo.render import write_images

        pictures = Path(scratch) / "images"
        pictures.mkdir()
        write_images(pictures, kind="sign", count=_IMAGES, seed=1)
        place.child("images").upload(pictures)
        on_gpus = bool(os.environ.get("RAY_ADDRESS") or count_gpus())
        small = dry_config(
            config,
            images=place.child("images").uri,
            output=place.child("run").uri,
            on_gpus=on_gpus,
        )
        settings = Path(scratch) / "settings.yaml"
        settings.write_text(yaml.safe_dump(small.model_dump(mode="json", exclude_unset=True)))
        began = time.monotonic()
        command = [
            sys.executable,
            "-c",
            "from mpa_ray import Config, cli; cli.main(Config())",
            "--config",
            str(settings),
        ]
        variables = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            )
        }
        try:
            ended = subprocess.run(
                command, env=variables, capture_output=True, text=True, timeout=_RUN_S, check=False
            )
        except subprocess.TimeoutExpired:
            fix = (
                "does it wait for GPUs or cores? Leave a core of each node free; ray status"
                " shows what is asked for"
            )
            yield Finding(
                state="failed", what="dry run", said=f"not finished after {_RUN_S:.0f} s", fix=fix
            )
            return
        models = (
            f"{_name(small.lvlm)} by {small.lvlm.engine} and {_name(small.svlm)} by"
            f" {small.svlm.engine}"
        )
        if ended.returncode == 0:
            said = (
                f"{_IMAGES} images through PA, PI and PL with {models} in"
                f" {time.monotonic() - began:.0f} s"
            )
            yield Finding(state="ok", what="dry run", said=said)
            return
        lines = [line for line in ended.stderr.splitlines() if line.strip()] or ["it said nothing"]
        told = next(
            (line.removeprefix("error: ") for line in lines if line.startswith("error: ")),
            lines[-1],
        )
        yield Finding(
            state="failed",
            what="dry run",
            said=f"with {models}: {told[:500]}",
            fix="the first failed line above, if there is one" + (_ON_GPUS if on_gpus else ""),
        )


def dry_config(config: Config, *, images: str, output: str, on_gpus: bool) -> Config:
    """The small run that is made in place of `config`: one worker, no scores, nothing held out.

    Args:
        config: of the run.
        images: a folder.
        output: of the small run.
        on_gpus: there are GPUs, or may be; a configuration that asks for none runs on the CPU all
            the same.
    """
    tree = preset("demo")
    # One engine of the kind tells what two would, and loads in half the time; transformers' is what
    # training loads anyway.
    embedded = {"lvlm": tree["lvlm"], "svlm": tree["svlm"] | {"engine": "transformers"}}
    lvlm, svlm = (
        _stand_in(model, embedded[name], on_gpus)
        for name, model in (("lvlm", config.lvlm), ("svlm", config.svlm))
    )
    trained_on_gpu = on_gpus and bool(config.svlm.model) and bool(config.pl.gpus_per_worker)
    training = tree["pl"] | {"gpus_per_worker": int(trained_on_gpu), "holdout": 0.0, "workers": 1}
    return Config.model_validate(
        {
            "images": images,
            "output": output,
            "lvlm": lvlm,
            "svlm": svlm,
            "pl": training,
            "annotate": tree["annotate"],
            "images_per_part": 8,
        }
    )


def _stand_in(model: LocalModelSection, embedded: dict[str, Any], on_gpus: bool) -> ModelSection:
    settings = model.model_dump(exclude_unset=True) if _is_small(model) else embedded
    takes_gpu = (
        on_gpus and bool(model.model) and model.kind.has_kv_cache and model.gpus_per_replica != 0
    )
    settings = settings | {
        "min_replicas": 1,
        "max_replicas": 1,
        "gpus_per_replica": _SHARE_OF_A_GPU if takes_gpu else 0,
    }
    if takes_gpu and engine_kind(settings.get("engine", "vllm")).has_kv_cache:
        settings["engine_options"] = settings.get("engine_options", {}) | _ENGINE_OPTIONS
    return ModelSection.model_validate(settings)


def _is_small(model: LocalModelSection) -> bool:
    try:
        parameters = (
            families.count_parameters(model) if model.model and not model.kind.is_api else None
        )
    except (ConfigurationError, OSError):
        # What is wrong with its weights is said where models are looked at.
        return False
    return parameters is not None and parameters < _SMALL


def _name(model: LocalModelSection) -> str:
    embedded = {str(demo.LVLM): "the embedded L-VLM", str(demo.SVLM): "the embedded S-VLM"}
    return embedded.get(model.model, model.model)


@contextmanager
def _place(config: Config) -> Iterator[Folder]:
    """A folder that the workers reach too and that is gone afterwards: by the run's output on a
    cluster, else a temporary one.
    """
    name = f"doctor-{uuid.uuid4().hex[:12]}"
    if config.output and is_remote(config.output):
        place = Folder.at(config.output).child(name)
    elif config.output and os.environ.get("RAY_ADDRESS"):
        place = Folder.at(f"{config.output.rstrip('/')}-{name}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Folder.at(folder)
        return
    try:
        yield place
    finally:
        place.delete_folder()
