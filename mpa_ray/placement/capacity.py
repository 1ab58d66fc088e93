"""What Ray's cluster has, and waiting for it in sight.

Nobody knows what an autoscaler may start (`mpa_ray.placement.autoscaler`). So a stage asks for what
it needs as one placement group before it begins, which both autoscalers serve, and watches: as long
as somebody starts nodes, it waits and says so; what no node has and nobody starts is an error.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mpa_ray.config import ClusterSection, Config, LocalModelSection
from mpa_ray.errors import RunError
from mpa_ray.models.gpu_memory import smallest_gpu_gib
from mpa_ray.models.size import GIB, size_of
from mpa_ray.observability.progress import duration, say
from mpa_ray.observability.side_by_side import is_interrupted
from mpa_ray.placement.autoscaler import Autoscaler, autoscaler
from mpa_ray.placement.place import Cluster, Placement, models_of, place, take_gpus
from mpa_ray.placement.place import bundles as bundles_of

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

_SAY_EVERY_S = 15.0
_GPUS_OF_A_NODE = 8
# A resource that Ray gives each node with GPUs it knows, 1 of it.
_GPU_TYPE = "accelerator_type:"

Resources = Mapping[str, float]
Labels = Mapping[str, str]
_NO_LABELS: Labels = {}


def placed(config: Config, asked: Sequence[str]) -> Placement:
    """`place.place` on the cluster this process is connected to."""
    sizes = {name: size_of(model) for name, model in models_of(config).items()}
    return place(config, sizes, cluster_of(config.cluster), asked=asked)


def place_single_model(model: LocalModelSection, config: Config, *, what: str) -> LocalModelSection:
    """A model that is asked by itself, with what its section leaves open filled in, when the
    cluster has what it needs.

    Raises:
        RunError: as `wait_for`.
    """
    if model.gpus_per_replica is None:
        found = placed(config.model_copy(update={"svlm": model}), ["svlm"])
        model = found.config.svlm
        say(found.record["models"]["svlm"]["why"].replace("svlm", what, 1))
    wait_for(
        bundles_of([model]),
        what=what,
        fix=advice({"it": model}),
        patience_s=config.cluster.patience_s,
        in_turn=True,
    )
    return model


def advice(models: Mapping[str, LocalModelSection]) -> str:
    """Which settings ask for less, and what each of `models`, by the names of their settings, asks
    for.
    """
    asked = [f"{name} asks for {shown(bundles_of([model])[:-1])}" for name, model in models.items()]
    return (
        f"Lower gpus_per_replica, cpus_per_replica or min_replicas ({', '.join(asked)}, and"
        " reading and writing for 1 CPU)"
    )


def cluster_of(settings: ClusterSection) -> Cluster:
    """The cluster this process is connected to, as placement sees it; what it cannot say is taken
    from the configuration.
    """
    from ray import nodes

    living = [node for node in nodes() if node["Alive"]]
    with_gpus = [node for node in living if node["Resources"].get("GPU")]
    gpus = sorted((int(node["Resources"]["GPU"]) for node in with_gpus), reverse=True)
    largest = settings.gpus_per_node or max(gpus, default=_GPUS_OF_A_NODE)
    grows = autoscaler().grows
    bounded = settings.gpus is not None or not grows
    if settings.gpus is not None:
        whole, rest = divmod(settings.gpus, largest)
        gpus = [largest] * whole + [rest] * bool(rest)
    elif not bounded:
        gpus = []
    cpus = [
        (node["Resources"].get("CPU", 0.0) - 1) / node["Resources"]["GPU"] for node in with_gpus
    ]
    memory = [node["Resources"].get("memory", 0.0) / node["Resources"]["GPU"] for node in with_gpus]
    types = [
        name.removeprefix(_GPU_TYPE)
        for node in with_gpus
        for name in node["Resources"]
        if name.startswith(_GPU_TYPE)
    ]
    return Cluster(
        nodes=tuple(gpus),
        bounded=bounded,
        largest=max(gpus) if bounded and gpus else largest,
        cpus_per_gpu=min(cpus, default=None),
        gpu_gib=smallest_gpu_gib(types, settings.gpu_memory_gib),
        cpus=None if grows else sum(node["Resources"].get("CPU", 0.0) for node in living),
        node_gib=min(memory) / GIB if memory else None,
    )


def wait_for(
    bundles: Sequence[Resources],
    *,
    what: str,
    fix: str,
    patience_s: float,
    enough: int | None = None,
    in_turn: bool = False,
    labels: Labels = _NO_LABELS,
) -> None:
    """Wait until the cluster has `bundles` free at the same time, and say what for.

    Args:
        bundles: resources, each on one node.
        what: who asks, for people: "PL", "annotate and identify".
        fix: which settings ask for less.
        patience_s: how long it waits for what no node has and nobody is starting.
        enough: where not all of `bundles` can be had, so many of them are enough.
        in_turn: what others of this run are using counts as had; they give it back by and by.
        labels: of the nodes; others count for nothing.

    Raises:
        RunError: no node that is there or is being started has them.
    """
    if in_turn and lacking(bundles, _nodes(labels)) is None:
        return
    group = _asked(bundles, what, labels)
    who = what + _labelled(labels)
    try:
        lack = _wait(
            group,
            bundles,
            what=who,
            patience_s=patience_s,
            enough=bundles[:enough] if enough else None,
            labels=labels,
        )
    finally:
        _give_back(group)
    if lack is None:
        return
    if enough is not None and enough < len(bundles):
        say(f"{who}: {lack}; continuing with {enough} of {len(bundles)}, or as many as there are")
        wait_for(bundles[:enough], what=what, fix=fix, patience_s=patience_s, labels=labels)
        return
    raise RunError(
        f"{who} {lack}, and nothing starts another node. {fix}, or give the cluster a node type"
        " that has it"
    )


def refresh() -> None:
    """Make Ray's own accountant of the cluster look at it now. It looks every 20 s, and elastic
    training begins with as many workers as it saw room for then: a node that came since would not
    be used until the group is made again.
    """
    from ray import get
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get(
        get_or_create_autoscaling_coordinator().get_reserved_resources.remote(
            "mpa_ray", recompute=True
        )
    )


def shortage(bundles: Sequence[Resources], *, what: str, labels: Labels = _NO_LABELS) -> str | None:
    """A line for people where a stage that had `bundles` has lost them with a node; None while they
    are there.
    """
    lack = lacking(bundles, _nodes(labels))
    if lack is None:
        return None
    state = autoscaler()
    starting = (
        f"the autoscaler is starting {_listed(state.starting)}"
        if state.starting
        else "nothing is being started"
    )
    return f"{what}{_labelled(labels)}: nodes were lost, it {lack} now; {starting}"


def _listed(starting: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(starting.items()))


def _labelled(labels: Labels) -> str:
    return (
        f" (nodes with {', '.join(f'{name}={value}' for name, value in labels.items())})"
        if labels
        else ""
    )


def _nodes(labels: Labels) -> list[Resources]:
    """What the living nodes with `labels` have."""
    from ray import nodes

    return [
        node["Resources"]
        for node in nodes()
        if node["Alive"] and labels.items() <= node["Labels"].items()
    ]


def _asked(bundles: Sequence[Resources], what: str, labels: Labels) -> "PlacementGroup":
    from ray.util import placement_group

    selectors = [dict(labels) for _ in bundles] if labels else None
    return placement_group(
        [dict(bundle) for bundle in bundles],
        strategy="PACK",
        name=f"mpa_ray: {what}",
        bundle_label_selector=selectors,
    )


def _give_back(group: "PlacementGroup") -> None:
    from ray.util import remove_placement_group

    remove_placement_group(group)


def _wait(
    group: "PlacementGroup",
    bundles: Sequence[Resources],
    *,
    what: str,
    patience_s: float,
    enough: Sequence[Resources] | None,
    labels: Labels,
) -> str | None:
    """None when the group is there; else what is lacking."""
    began = hopeful = time.monotonic()
    said = began + 2 - _SAY_EVERY_S
    # Ready groups are seen at once: the first look waits, and the next ones look around meanwhile.
    while not group.wait(timeout_seconds=1):
        if is_interrupted():
            raise RunError(f"{what}: interrupted while it waited for {shown(bundles)}")
        now = time.monotonic()
        state = autoscaler()
        living = _nodes(labels)
        lack = lacking(bundles, living)
        # Nodes that are out of stock are hoped for only where nothing can be done without them.
        needed = enough is None or lacking(enough, living) is not None
        if lack is None or state.starting or (state.failing and needed):
            hopeful = now
        elif now - hopeful > patience_s:
            return lack
        if now - said > _SAY_EVERY_S:
            said = now
            say(
                _waiting_line(
                    what,
                    bundles,
                    lack,
                    state,
                    waited=now - began,
                    left=patience_s - (now - hopeful),
                )
            )
    return None


def _waiting_line(
    what: str,
    bundles: Sequence[Resources],
    lack: str | None,
    state: Autoscaler,
    *,
    waited: float,
    left: float,
) -> str:
    line = f"{what}: waiting for {shown(bundles)}, {duration(waited)} so far; "
    if state.starting:
        line += f"the autoscaler is starting {_listed(state.starting)}"
    elif state.failing:
        line += "the autoscaler could not start " + ", ".join(
            f"{kind} ({reason})" for kind, reason in sorted(state.failing.items())
        )
        line += " and tries again"
    elif lack is None:
        line += "the cluster has them, and others are using them"
    else:
        line += f"it {lack}, and nothing is being started; an error in {duration(max(0, left))}"
    return line


def shown(bundles: Sequence[Resources]) -> str:
    """2 x {1 GPU, 8 CPU} + {1 CPU}"""
    counts: dict[str, int] = {}
    for bundle in bundles:
        text = (
            "{"
            + ", ".join(
                f"{amount:g} {name}" for name, amount in sorted(bundle.items(), reverse=True)
            )
            + "}"
        )
        counts[text] = counts.get(text, 0) + 1
    return " + ".join(f"{count} x {text}" if count > 1 else text for text, count in counts.items())


def lacking(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> str | None:
    """What keeps `bundles` from ever fitting on `nodes` together, whoever uses them now: a clause
    for people. None where they fit.
    """
    for bundle in bundles:
        for name, amount in bundle.items():
            largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if amount > largest:
                return (
                    f"asks for {amount:g} {name} on one node, and the largest node has {largest:g}"
                )
        if not any(_fits(bundle, node) for node in nodes):
            return f"asks for {shown([bundle])} on one node, and no node has all of it"
    free = [(dict(node) | {"GPU": 0.0}, [[1.0] * int(node.get("GPU", 0.0))]) for node in nodes]
    for bundle in sorted(
        bundles, key=lambda bundle: (-bundle.get("GPU", 0.0), -bundle.get("CPU", 0.0))
    ):
        rest, wanted = (
            {name: amount for name, amount in bundle.items() if name != "GPU"},
            bundle.get("GPU", 0.0),
        )
        # GPUs are the last to be looked at: looking takes them.
        room = next(
            (
                node
                for node, gpus in free
                if _fits(rest, node) and (not wanted or take_gpus(gpus, wanted))
            ),
            None,
        )
        if room is None:
            short = next(
                (name for name in ("GPU", "CPU") if _sum(bundles, name) > _sum(nodes, name)), None
            )
            if short is None:
                return f"asks for {shown(bundles)}, which does not fit on the nodes there are"
            return (
                f"asks for {_sum(bundles, short):g} {short} in all, and the cluster has"
                f" {_sum(nodes, short):g}"
            )
        for name, amount in rest.items():
            room[name] -= amount
    return None


def _fits(bundle: Resources, node: Resources) -> bool:
    return all(node.get(name, 0.0) + 1e-9 >= amount for name, amount in bundle.items())


def _sum(resources: Sequence[Resources], name: str) -> float:
    return sum(each.get(name, 0.0) for each in resources)
