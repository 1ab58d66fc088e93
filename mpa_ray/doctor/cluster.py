"""Ray: whether it is reachable, and has what the run asks for at the same time."""

import os
import socket
from collections.abc import Iterator

from mpa_ray.config import Config
from mpa_ray.doctor import Finding, State, named_models
from mpa_ray.doctor.machine import count_cards
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.placement import capacity
from mpa_ray.ray_session import ray_session

_CONNECT_S = 5.0


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
    try:
        placed = capacity.placed(config, list(named_models(config)))
    except (ConfigurationError, RunError) as error:
        yield Finding(state="failed", what="placement", said=str(error))
        return
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
