"""The training group as it is planned: its nodes, and a sum over all of its workers."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from mpa_ray.config import Config
from mpa_ray.placement import capacity
from mpa_ray.placement.place import training_bundles
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.tools.doctor.finding import Finding, named_models
from mpa_ray.tools.doctor.machine import checkpoints, gpu_software, gpus, machine

Backend = Literal["nccl", "gloo"]
_WHAT = "training group"
# Ray starts a process for each worker, which imports torch; a sum takes a moment.
_LIMIT_S = 120.0
# 16 MiB, so that it goes the way that gradients go.
_NUMBERS = 4 * 2**20
_NETWORK = (
    "open all TCP ports between the nodes (firewall, security group); where a node has several"
    " interfaces, set {}_SOCKET_IFNAME to the one that reaches the others, in the environment of"
    " Ray's workers"
)
_FIX: dict[Backend, str] = {
    "nccl": _NETWORK.format("NCCL")
    + "; in a container, --shm-size=4g; NCCL_DEBUG=INFO has NCCL say more in the workers' logs;"
    " NCCL_P2P_DISABLE=1 where GPUs of one machine do not reach each other",
    "gloo": _NETWORK.format("GLOO"),
}


def training_group(config: Config) -> Iterator[Finding]:
    """That the workers of PL reach each other, as many as there is room for: a sum over all of
    them, by NCCL on GPUs and by Gloo on the CPU.

    Nothing where no S-VLM is named, and where one worker trains on the CPU.
    """
    if not config.svlm.model:
        return
    try:
        with ray_session():
            settings = capacity.placed(config, list(named_models(config))).config.pl
            bundles = training_bundles(settings, settings.workers or 1)
            nodes = _nodes(settings.node_labels)
            while bundles and capacity.lacking(bundles, nodes):
                bundles.pop()
            if not bundles:
                said = "not tried: no node is there that has room for a worker"
                yield Finding(state="ok", what=_WHAT, said=said)
            elif len(bundles) > 1 or settings.gpus_per_worker:
                backend: Backend = "nccl" if settings.gpus_per_worker else "gloo"
                yield from all_reduce(bundles, config, backend=backend, labels=settings.node_labels)
    except (OSError, RuntimeError, ValueError) as error:
        # A Ray that is not reached, or a damaged model, is a finding of the checks before, too.
        yield Finding(state="warning", what=_WHAT, said=f"not tried: {_line(error)}")


def all_reduce(
    bundles: Sequence[Mapping[str, float]],
    config: Config,
    *,
    backend: Backend,
    labels: Mapping[str, str],
    limit_s: float = _LIMIT_S,
) -> Iterator[Finding]:
    """Sum over a process for each of `bundles`, and look at the nodes that they are on.

    Args:
        bundles: resources of a worker, each on one node.
        config: of the run.
        backend: what torch sums with.
        labels: of the nodes.
        limit_s: seconds that each step may take: to get the resources, to start, to sum.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    workers = len(bundles)
    group = placement_group(
        [dict(bundle) for bundle in bundles],
        name="mpa_ray: doctor",
        bundle_label_selector=[dict(labels)] * workers if labels else None,
    )
    try:
        if not group.wait(timeout_seconds=limit_s):
            said = f"not tried: {capacity.shown(bundles)} were not free within {limit_s:.0f} s"
            fix = "ray status shows who uses them"
            yield Finding(state="warning", what=_WHAT, said=said, fix=fix)
            return
        members: list[Any] = [
            ray.remote(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=number
                ),
            )(_Member).remote()
            for number, bundle in enumerate(bundles)
        ]
        places = ray.get([member.place.remote() for member in members], timeout=limit_s)
        of_nodes = {node: member for (node, _), member in zip(places, members, strict=True)}
        looked_at = [member.look.remote(config) for member in of_nodes.values()]
        for node, found in zip(of_nodes, ray.get(looked_at, timeout=limit_s), strict=True):
            for finding in found:
                yield replace(finding, what=f"{finding.what} of {node}")
        sums = [
            member.sum_up.remote(rank, workers, "{}:{}".format(*places[0]), backend, limit_s)
            for rank, member in enumerate(members)
        ]
        ray.get(sums, timeout=limit_s)
    except RayError as error:
        said = f"{workers} workers, {backend}: {_line(getattr(error, 'cause', None) or error)}"
        yield Finding(state="failed", what=_WHAT, said=said, fix=_FIX[backend])
        return
    finally:
        # Its processes end with it.
        remove_placement_group(group)
    said = f"{workers} workers on {len(of_nodes)} node(s) summed up by {backend}"
    yield Finding(state="ok", what=_WHAT, said=said)


class _Member:
    """A worker of the group."""

    def place(self) -> tuple[str, int]:
        """The address of this node, and a port that is free."""
        from ray.util import get_node_ip_address

        with socket.socket() as free:
            free.bind(("", 0))
            return get_node_ip_address(), free.getsockname()[1]

    def look(self, config: Config) -> list[Finding]:
        """What is not well with this node."""
        found = [*machine(), *gpus(), *gpu_software(config), *checkpoints(config, trains_here=True)]
        return [finding for finding in found if finding.state != "ok"]

    def sum_up(self, rank: int, workers: int, first: str, backend: Backend, limit_s: float) -> None:
        """Take part in a sum.

        Raises:
            RuntimeError: there is none, or it is wrong.
        """
        import torch
        from torch import distributed

        distributed.init_process_group(
            backend,
            init_method=f"tcp://{first}",
            rank=rank,
            world_size=workers,
            timeout=timedelta(seconds=limit_s),
        )
        device = "cuda" if backend == "nccl" else "cpu"
        numbers = torch.full((_NUMBERS,), rank + 1.0, device=device)
        distributed.all_reduce(numbers)
        expected = workers * (workers + 1) / 2
        if not bool((numbers == expected).all()):
            raise RuntimeError(f"the sum is {numbers.mean().item()} and not {expected}")
        distributed.destroy_process_group()


def _nodes(labels: Mapping[str, str]) -> list[dict[str, float]]:
    """What the living nodes with `labels` have."""
    from ray import nodes

    return [
        node["Resources"]
        for node in nodes()
        if node["Alive"] and labels.items() <= node["Labels"].items()
    ]


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:300]
