"""Ray: whether it is reachable, and has what the run asks for at the same time."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence

from mpa_ray.config import Config, ModelSection
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.models.size import size_of
from mpa_ray.placement import capacity
from mpa_ray.placement.autoscaler import autoscaler
from mpa_ray.placement.place import Cluster, bundles, models_of, place, training_bundles
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.tools.doctor.finding import Finding, State, named_models
from mpa_ray.tools.doctor.machine import count_gpus

_CONNECT_S = 5.0


def cluster(config: Config) -> Iterator[Finding]:
    """That Ray is reachable where RAY_ADDRESS names it, and what it has, against what the run asks
    for at the same time.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding(
            state="ok",
            what="ray",
            said="RAY_ADDRESS is not set: a run starts a Ray of its own on this machine",
        )
        yield from _on_this_machine(config)
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    fix = (
        "is the head up, and its port open from here? Without RAY_ADDRESS a run starts a Ray of"
        " its own"
    )
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        with ray_session():
            yield from _resources(config)
            yield from _keys(config)
    except (OSError, RuntimeError, ValueError) as error:
        yield Finding(
            state="failed",
            what="ray",
            said=f"RAY_ADDRESS={address}: {' '.join(str(error).split())[:300]}",
            fix=fix,
        )


def _on_this_machine(config: Config) -> Iterator[Finding]:
    """The placement that a Ray of the run's own would have here, without starting one."""
    from ray._private.utils import get_num_cpus

    cpus, gpus = float(get_num_cpus()), count_gpus()
    here = Cluster(
        nodes=(gpus,) if gpus else (),
        bounded=True,
        largest=gpus or 1,
        cpus_per_gpu=(cpus - 1) / gpus if gpus else None,
        gpu_gib=config.cluster.gpu_memory_gib,
        cpus=cpus,
    )
    try:
        sizes = {name: size_of(model) for name, model in models_of(config).items()}
    except (ConfigurationError, RunError) as error:
        yield Finding(state="failed", what="placement", said=str(error))
        return
    placed = place(config, sizes, here, asked=list(named_models(config)))
    yield from _room(placed.config, [{"CPU": cpus, "GPU": float(gpus)}], state="failed")


def _resources(config: Config) -> Iterator[Finding]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    there = ray.cluster_resources()
    cpus, gpus, store = (there.get(name, 0) for name in ("CPU", "GPU", "object_store_memory"))
    said = (
        f"{len(alive)} nodes, {cpus:g} CPU cores, {gpus:g} GPUs, {store / 2**30:.1f} GiB of"
        " object store"
    )
    yield Finding(state="ok", what="ray", said=said)
    try:
        placed = capacity.placed(config, list(named_models(config)))
    except (ConfigurationError, RunError) as error:
        yield Finding(state="failed", what="placement", said=str(error))
        return
    for line in placed.lines:
        yield Finding(state="ok", what="placement", said=line.removeprefix("placement: "))
    if placed.refused:
        yield Finding(state="failed", what="placement", said=placed.refused)
    # What is not there, an autoscaler may start; nobody says what.
    yield from _room(
        placed.config,
        [node["Resources"] for node in alive],
        state="warning" if autoscaler().grows else "failed",
    )


def _room(
    config: Config, nodes: Sequence[Mapping[str, float]], *, state: State
) -> Iterator[Finding]:
    """The sum that a stage makes before it begins: what it asks for together, against what the
    nodes have.
    """
    models = list(named_models(config).values())
    asked = {} if config.parity or not models else {"PA and PI": bundles(models)}
    if config.svlm.model:
        asked["PL"] = training_bundles(config.pl, config.pl.workers or 1)
    for what, needed in asked.items():
        lack = capacity.lacking(needed, nodes)
        fewest = needed[: config.pl.min_workers or None] if what == "PL" else needed
        if lack and capacity.lacking(fewest, nodes):
            fix = (
                "a larger machine or cluster, or less for each model (gpus_per_replica,"
                " cpus_per_replica, min_replicas; pl.workers)"
            )
            yield Finding(state=state, what=f"room for {what}", said=f"it {lack}", fix=fix)
        else:
            fewer = (
                f"; it {lack}, and continues with {len(fewest)} workers, or as many as there are"
                if lack
                else ""
            )
            yield Finding(
                state="ok", what=f"room for {what}", said=f"{capacity.shown(needed)}{fewer}"
            )


def _keys(config: Config) -> Iterator[Finding]:
    """An API's key must be set where Ray's workers run, which is not always where the job is
    given.
    """
    import ray

    def is_set(name: str) -> bool:
        # The key itself stays where it is.
        return bool(os.environ.get(name))

    names = {
        model.api_key_env
        for model in named_models(config).values()
        if isinstance(model, ModelSection) and model.kind.is_api and not model.base_url
    }
    for name in sorted(names):
        if ray.get(ray.remote(num_cpus=0)(is_set).remote(name)):
            yield Finding(state="ok", what="key on a worker", said=f"{name} is set")
        else:
            fix = (
                f"set {name} in the environment of the cluster's nodes, or in the job's runtime"
                " environment"
            )
            yield Finding(
                state="failed",
                what="key on a worker",
                said=f"{name} is not set where Ray's workers run",
                fix=fix,
            )
