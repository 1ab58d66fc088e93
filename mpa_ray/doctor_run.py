"""The checks of `mpa_ray.doctor` that need Ray: whether it is reachable and has what the run asks for, and a run of a few images."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from mpa_ray import capacity, demo, families
from mpa_ray.config import Config, ModelSection
from mpa_ray.doctor import ROOT, Finding, State, count_cards, named_models
from mpa_ray.presets import preset
from mpa_ray.ray_session import ray_session
from mpa_ray.storage import Folder, is_remote

# Some of them must be parity samples, or nothing is trained: the embedded pair finds a third.
_IMAGES = 24
# So few parameters are loaded, asked and trained within the minute, on a CPU too; larger models are stood in for by the embedded pair.
_SMALL = 50_000_000
_CONNECT_S = 5.0
_RUN_S = 300.0
_SHARED_CARD = {"gpus_per_replica": 0.4, "engine_options": {"gpu_memory_utilization": 0.2}}


def cluster(config: Config) -> Iterator[Finding]:
    """That Ray is reachable where RAY_ADDRESS names it, and what it has, against what the run asks for at the same time."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding(state="ok", what="ray", said="RAY_ADDRESS is not set: a run starts a Ray of its own on this machine")
        yield from _enough_cards(config, count_cards(), state="failed", mend="set RAY_ADDRESS to a cluster with cards, or ask for fewer")
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    mend = "is the head up, and its port open from here? Without RAY_ADDRESS a run starts a Ray of its own"
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        with ray_session():
            yield from _resources(config)
            yield from _keys(config)
    except (OSError, RuntimeError, ValueError) as error:
        yield Finding(state="failed", what="ray", said=f"RAY_ADDRESS={address}: {' '.join(str(error).split())[:300]}", mend=mend)


def _resources(config: Config) -> Iterator[Finding]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    there = ray.cluster_resources()
    cpus, gpus, store = (there.get(name, 0) for name in ("CPU", "GPU", "object_store_memory"))
    said = f"{len(alive)} nodes, {cpus:g} CPU cores, {gpus:g} cards, {store / 2**30:.1f} GiB of object store"
    yield Finding(state="ok", what="ray", said=said)
    placed = capacity.placed(config, list(named_models(config)))
    for line in placed.lines:
        yield Finding(state="ok", what="placement", said=line.removeprefix("placement: "))
    mend = "an autoscaler must bring them, or the run ends with an error; fewer workers, or gpus_per_replica below one, ask for less"
    yield from _enough_cards(placed.config, gpus, state="warning", mend=mend)


def _enough_cards(config: Config, there: float, *, state: State, mend: str) -> Iterator[Finding]:
    """What the configuration asks for by number; what it leaves open is fitted to what is there."""
    models = [model for model in named_models(config).values() if model.engine != "openai"]
    serving = sum((model.gpus_per_replica or 0) * model.min_replicas for model in models)
    training = (config.pl.workers or 0) * config.pl.gpus_per_worker if config.svlm.model else 0
    for what, needed in (("cards for PA and PI", serving), ("cards for PL", training)):
        if needed > there:
            yield Finding(state=state, what=what, said=f"{needed:g} at the same time, and {there:g} are there", mend=mend)
        elif needed:
            yield Finding(state="ok", what=what, said=f"{needed:g} at the same time, {there:g} are there")


def _keys(config: Config) -> Iterator[Finding]:
    """An API's key must be set where Ray's workers run, which is not always where the job is given."""
    import ray

    def is_set(name: str) -> bool:
        # The key itself stays where it is.
        return bool(os.environ.get(name))

    names = {model.api_key_env for model in named_models(config).values() if model.engine == "openai" and not model.base_url}
    for name in sorted(names):
        if ray.get(ray.remote(num_cpus=0)(is_set).remote(name)):
            yield Finding(state="ok", what="key on a worker", said=f"{name} is set")
        else:
            mend = f"set {name} in the environment of the cluster's nodes, or in the job's runtime environment"
            yield Finding(state="failed", what="key on a worker", said=f"{name} is not set where Ray's workers run", mend=mend)


def dry_run(config: Config) -> Iterator[Finding]:
    """A few rendered images through PA, PI and PL, in a process of its own: with the run's models where they are small and local, else with
    the embedded pair on the run's engines and kind of device."""
    with _place(config) as place, tempfile.TemporaryDirectory() as scratch:
        from mpa_ray.demo.render import write_images

        pictures = Path(scratch) / "images"
        pictures.mkdir()
        write_images(pictures, kind="sign", count=_IMAGES, seed=1)
        place.child("images").upload(pictures)
        on_cards = bool(os.environ.get("RAY_ADDRESS") or count_cards())
        small = dry_config(config, images=place.child("images").uri, output=place.child("run").uri, on_cards=on_cards)
        settings = Path(scratch) / "settings.yaml"
        settings.write_text(yaml.safe_dump(small.model_dump(mode="json", exclude_unset=True)))
        began = time.monotonic()
        command = [sys.executable, "-c", "from mpa_ray import Config, cli; cli.main(Config())", "--config", str(settings)]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
        try:
            ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=_RUN_S, check=False)
        except subprocess.TimeoutExpired:
            mend = "does it wait for cards or cores? Leave a core of each node free; ray status shows what is asked for"
            yield Finding(state="failed", what="dry run", said=f"not finished after {_RUN_S:.0f} s", mend=mend)
            return
        models = f"{_name(small.lvlm)} and {_name(small.svlm)} by {small.lvlm.engine}"
        if ended.returncode == 0:
            said = f"{_IMAGES} images through PA, PI and PL with {models} in {time.monotonic() - began:.0f} s"
            yield Finding(state="ok", what="dry run", said=said)
            return
        lines = [line for line in ended.stderr.splitlines() if line.strip()] or ["it said nothing"]
        told = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
        yield Finding(
            state="failed", what="dry run", said=f"with {models}: {told[:500]}", mend="the first failed line above, if there is one"
        )


def dry_config(config: Config, *, images: str, output: str, on_cards: bool) -> Config:
    """The small run that is made in place of `config`: one worker, no scores, nothing held out.

    Args:
        config: of the run.
        images: a folder.
        output: of the small run.
        on_cards: there are cards, or may be; a configuration that asks for none runs on the CPU all the same.
    """
    tree = preset("demo")
    lvlm, svlm = (_stand_in(model, tree[name], on_cards) for name, model in (("lvlm", config.lvlm), ("svlm", config.svlm)))
    trained_on_card = on_cards and bool(config.svlm.model) and bool(config.pl.gpus_per_worker)
    training = tree["pl"] | {"gpus_per_worker": int(trained_on_card), "holdout": 0.0, "workers": 1}
    return Config.model_validate(
        {"images": images, "output": output, "lvlm": lvlm, "svlm": svlm, "pl": training, "annotate": tree["annotate"], "images_per_part": 8}
    )


def _stand_in(model: ModelSection, embedded: dict[str, object], on_cards: bool) -> ModelSection:
    parameters = families.count_parameters(model) if model.model and model.engine != "openai" else None
    takes_card = on_cards and bool(model.model) and model.engine == "vllm" and model.gpus_per_replica != 0
    if parameters is not None and parameters < _SMALL:
        return model.model_copy(update={"max_replicas": 1, "min_replicas": 1} | (_SHARED_CARD if takes_card else {"gpus_per_replica": 0}))
    return ModelSection.model_validate(embedded | (_SHARED_CARD if takes_card else {}))


def _name(model: ModelSection) -> str:
    embedded = {str(demo.LVLM): "the embedded L-VLM", str(demo.SVLM): "the embedded S-VLM"}
    return embedded.get(model.model, model.model)


@contextmanager
def _place(config: Config) -> Iterator[Folder]:
    """A folder that the workers reach too and that is gone afterwards: by the run's output on a cluster, else a temporary one."""
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
