"""Which resources each model gets: what the configuration leaves open is derived from the models'
sizes and the cluster, and said.

Pure functions; `mpa_ray.placement.capacity` asks Ray. What the configuration sets is kept as it is.
docs/placement.md has the rules with examples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mpa_ray.config import Config, LocalModelSection, TrainingSection
from mpa_ray.config.hyperparameters import with_hyperparameters
from mpa_ray.models.gpu_memory import (
    TEXT_TOKENS,
    TRAINED_IN,
    USED,
    fewest_workers,
    gpu_share,
    images_in_flight,
    kv_gib,
    offloaded_bytes,
    serving_gib,
    tensor_parallel_size,
    training_gib,
)
from mpa_ray.models.size import GIB, ModelSize

# Below it the engine's own work on the CPU, and not the GPU, bounds the rate: two engines on a
# GPU overlap theirs.
_TINY = 1_000_000_000
_MOST_GPUS = 8
_MOST_CPUS_PER_GPU = 8
_LEAST_CPUS = 0.1
_CHOSEN = (
    "gpus_per_replica",
    "cpus_per_replica",
    "min_replicas",
    "max_replicas",
    "images_in_flight",
)

_CHOSEN_FOR_TRAINING = ("workers", "min_workers", "zero_stage", "offload", "cpus_per_worker")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the cluster has, or may grow to.

    Attributes:
        nodes: the GPUs of each node that has some, the largest first; of one that grows, what it
            may grow to where that is known.
        bounded: whether there will be no more GPUs than those.
        largest: GPUs of the largest node there is or can be.
        cpus_per_gpu: CPU cores of a node with GPUs, by its GPUs; None where no such node is
            there yet.
        gpu_gib: memory of a GPU, in GiB; of the smallest where they differ.
        cpus: CPU cores of all nodes; None where more may come.
        node_gib: memory of a node with GPUs that processes may have, by its GPUs, in GiB, of the
            smallest; None where no such node is there yet.
    """

    nodes: tuple[int, ...]
    bounded: bool
    largest: int
    cpus_per_gpu: float | None
    gpu_gib: float
    cpus: float | None = None
    node_gib: float | None = None

    @property
    def gpus(self) -> int:
        return sum(self.nodes)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What was chosen.

    Attributes:
        config: the configuration with nothing left open of what the cluster decides.
        record: what run.json keeps: the cluster, the models' sizes, the choices and their reasons.
        lines: the same for people.
        refused: why the S-VLM cannot be trained on this cluster; None where it can, or where that
            is not known.
    """

    config: Config
    record: dict[str, Any]
    lines: list[str]
    refused: str | None = None


def place(
    config: Config, sizes: Mapping[str, ModelSize | None], cluster: Cluster, *, asked: Sequence[str]
) -> Placement:
    """Fill in what `config` leaves open.

    Args:
        config: of the run.
        sizes: by the names of `models_of`; None for what is unknown.
        cluster: to place it on.
        asked: the models that are asked while images are annotated and identified, at the same
            time, by the same names.
    """
    sections = models_of(config)
    lines = (
        [_cluster_line(cluster)]
        if any(_on_gpus(model) for model in sections.values()) or config.pl.gpus_per_worker
        else []
    )
    placed = _place_engines(sections, sizes, cluster, asked)
    # As it is read back from run.json, whose keys stay what they were.
    keys = {"cpus_per_gpu": "cpus_per_card", "gpu_gib": "card_gib"}
    record: dict[str, Any] = {
        "cluster": {keys.get(key, key): value for key, value in asdict(cluster).items()}
        | {"nodes": list(cluster.nodes)},
        "models": {},
    }
    shown = {*asked, "svlm", *(["lvlm"] if config.evaluate.lvlm else [])}
    for name, model in placed.items():
        if name not in shown:
            continue
        size = sizes.get(name)
        why = _engine_line(name, sections[name], model, size, cluster)
        lines.append(why)
        lines += _length_warning(name, model, size)
        record["models"][name] = {
            "size": asdict(size) if size else None,
            **{key: getattr(model, key) for key in _CHOSEN},
            "why": why,
        }
    pl, why, refused = _place_training(
        with_hyperparameters(config.pl, config.svlm.model), sizes.get("svlm"), cluster
    )
    lines.append(why)
    chosen = {key: getattr(pl, key) for key in _CHOSEN_FOR_TRAINING}
    record["training"] = chosen | {"why": why}
    update = {
        "lvlm": placed["lvlm"],
        "svlm": placed["svlm"],
        "jury": tuple(placed[f"jury.{number}"] for number in range(len(config.jury))),
        "pl": config.pl.model_copy(update=chosen),
    }
    return Placement(
        config=config.model_copy(update=update), record=record, lines=lines, refused=refused
    )


def models_of(config: Config) -> dict[str, LocalModelSection]:
    """The models of a run by the names of their settings: lvlm, jury.0, ..., svlm."""
    return {
        "lvlm": config.lvlm,
        **{f"jury.{number}": juror for number, juror in enumerate(config.jury)},
        "svlm": config.svlm,
    }


def bundles(models: Sequence[LocalModelSection]) -> list[dict[str, float]]:
    """What must be there at the same time for `models` to be asked together: each one's fewest
    replicas, and a core to read and write.
    """
    asked = [
        bundle(cpus=model.cpus, gpus=model.gpus)
        for model in models
        for _ in range(model.min_replicas)
    ]
    return [*asked, {"CPU": 1.0}]


def training_bundles(settings: TrainingSection, workers: int) -> list[dict[str, float]]:
    """What `workers` training processes ask for together."""
    return [bundle(cpus=settings.cpus, gpus=settings.gpus_per_worker)] * workers


def bundle(*, cpus: float, gpus: float) -> dict[str, float]:
    """Resources on one node, as Ray names them."""
    return {"CPU": cpus} | ({"GPU": float(gpus)} if gpus else {})


def _on_gpus(model: LocalModelSection) -> bool:
    return model.gpus > 0


def _place_engines(
    sections: Mapping[str, LocalModelSection],
    sizes: Mapping[str, ModelSize | None],
    cluster: Cluster,
    asked: Sequence[str],
) -> dict[str, LocalModelSection]:
    gpus = {
        name: _own_gpus(model, sizes.get(name), cluster)
        for name, model in sections.items()
        if _on_gpus(model)
    }
    together = [name for name in asked if name in gpus]
    shared = _shares(together, sections, sizes, cluster, gpus)
    gpus |= shared
    replicas = _replicas(together, sections, sizes, cluster, gpus, shared=bool(shared))
    placed = {}
    cpus = {
        name: model.cpus_per_replica or (_cpus(gpus[name], cluster) if name in gpus else None)
        for name, model in sections.items()
    }
    on_cpu = _cpus_without_gpus(cpus, sections, cluster, asked)
    for name, model in sections.items():
        most = model.most_replicas or (
            max(model.min_replicas, replicas[name]) if replicas.get(name) else None
        )
        update = {
            "gpus_per_replica": gpus.get(
                name, 0.0 if model.gpus_per_replica == 0 else model.gpus_per_replica
            ),
            "cpus_per_replica": cpus[name] or on_cpu,
            "max_replicas": most,
        }
        chosen = model.model_copy(update=update)
        if (
            model.kind.has_kv_cache
            and name in gpus
            and (size := sizes.get(name))
            and model.images_in_flight is None
        ):
            in_flight = images_in_flight(size, chosen, gpu_gib=cluster.gpu_gib)
            chosen = chosen.model_copy(update={"images_in_flight": in_flight})
        placed[name] = chosen
    return placed


def _own_gpus(model: LocalModelSection, size: ModelSize | None, cluster: Cluster) -> float:
    """GPUs of a replica that shares with no other model."""
    if model.gpus_per_replica is not None or size is None:
        return model.gpus
    if size.parameters < _TINY and gpu_share(size, model, gpu_gib=cluster.gpu_gib) <= 0.5:
        return 0.5
    # Where no size fits, the largest is asked for: the engine then says by how much memory it
    # fails.
    most = min(cluster.largest, _MOST_GPUS)
    return float(
        tensor_parallel_size(size, model, gpu_gib=cluster.gpu_gib, most=most) or max(1, most)
    )


def _shares(
    together: Sequence[str],
    sections: Mapping[str, LocalModelSection],
    sizes: Mapping[str, ModelSize | None],
    cluster: Cluster,
    gpus: Mapping[str, float],
) -> dict[str, float]:
    """Where the GPUs are too few for one each: the share of a GPU that each model gets, so that
    all of them are on every GPU.
    """
    needed = sum(gpus[name] * sections[name].min_replicas for name in together)
    if not cluster.bounded or not cluster.gpus or needed <= cluster.gpus or len(together) < 2:
        return {}
    known = {name: size for name in together if (size := sizes.get(name))}
    if any(sections[name].gpus_per_replica is not None or name not in known for name in together):
        return {}
    shares = {
        name: gpu_share(size, sections[name], gpu_gib=cluster.gpu_gib)
        for name, size in known.items()
    }
    rest = 1 - sum(shares.values())
    if rest < 0:
        return {}
    # What is over goes to the largest model, whose KV cache gains most by it.
    largest = max(together, key=lambda name: known[name].parameters)
    return {
        name: round(share + (rest if name == largest else 0.0), 2) for name, share in shares.items()
    }


def _replicas(
    together: Sequence[str],
    sections: Mapping[str, LocalModelSection],
    sizes: Mapping[str, ModelSize | None],
    cluster: Cluster,
    gpus: Mapping[str, float],
    *,
    shared: bool,
) -> dict[str, int]:
    """How many replicas each model gets of a bounded number of GPUs; by their work, so that none
    waits for the other. {}: no bound.
    """
    if not cluster.bounded or not cluster.gpus:
        return {}
    if shared:
        return {name: cluster.gpus for name in together}
    free = [[1.0] * node for node in cluster.nodes]
    replicas = dict.fromkeys(together, 0)
    for name in sorted(together, key=lambda name: -gpus[name]):
        for _ in range(sections[name].min_replicas):
            replicas[name] += take_gpus(free, gpus[name])
    open_ones = list(together)
    while open_ones := [
        name for name in open_ones if replicas[name] < (sections[name].max_replicas or math.inf)
    ]:
        name = max(
            open_ones, key=lambda name: _work(name, sizes.get(name)) / max(1, replicas[name])
        )
        taken = take_gpus(free, gpus[name])
        replicas[name] += taken
        if not taken:
            open_ones.remove(name)
    return {name: max(1, count) for name, count in replicas.items()}


def take_gpus(free: list[list[float]], gpus: float) -> bool:
    """Take a share of the fullest GPU that has it, or whole GPUs of the fullest node that has
    them. False where there are none.

    Args:
        free: what is free of each GPU of each node; what is taken is taken from it.
        gpus: of a replica.
    """
    if gpus < 1:
        fitting = [
            (left, node, place)
            for node, left_of in enumerate(free)
            for place, left in enumerate(left_of)
            if left + 1e-9 >= gpus
        ]
        if fitting:
            _, node, place = min(fitting)
            free[node][place] -= gpus
        return bool(fitting)
    whole = [(node.count(1.0), place) for place, node in enumerate(free) if node.count(1.0) >= gpus]
    if whole:
        fullest = free[min(whole)[1]]
        for _ in range(int(gpus)):
            fullest[fullest.index(1.0)] = 0.0
    return bool(whole)


def _work(name: str, size: ModelSize | None) -> float:
    """Of a model for an image, by its parameters: the L-VLM annotates and then answers, the others
    answer.
    """
    parameters = size.parameters if size else 2e9
    return parameters * (3 if name == "lvlm" else 1)


def _cpus_without_gpus(
    cpus: Mapping[str, float | None],
    sections: Mapping[str, LocalModelSection],
    cluster: Cluster,
    asked: Sequence[str],
) -> float:
    """CPU cores of a replica that runs without a GPU: 1, or less where the cluster has too few
    cores for all that are asked together.

    Args:
        cpus: of a replica, by the models' names; None where it is left open.
        sections: the models.
        cluster: to place them on.
        asked: the models that are asked at the same time.
    """
    if cluster.cpus is None:
        return 1.0
    taken = sum((cpus[name] or 0.0) * sections[name].min_replicas for name in asked)
    replicas = sum(sections[name].min_replicas for name in asked if cpus[name] is None)
    # One core reads and writes.
    room = (cluster.cpus - 1 - taken) / max(1, replicas)
    return min(1.0, max(_LEAST_CPUS, math.floor(10 * room) / 10))


def _cpus(gpus: float, cluster: Cluster) -> float:
    if cluster.cpus_per_gpu is None:
        return 1.0
    cpus = gpus * min(_MOST_CPUS_PER_GPU, cluster.cpus_per_gpu)
    # On a node with fewer cores than GPUs, a part of one: reserved cores are figures, and one must
    # stay free.
    return float(math.floor(cpus)) if cpus >= 1 else max(_LEAST_CPUS, math.floor(10 * cpus) / 10)


def _place_training(
    settings: TrainingSection, size: ModelSize | None, cluster: Cluster
) -> tuple[TrainingSection, str, str | None]:
    """What was chosen, the line that says it, and why it cannot be done, if it cannot."""
    assert settings.batch_size is not None
    useful = math.ceil(settings.batch_size / settings.micro_batch_size)
    if not settings.gpus_per_worker:
        workers = settings.workers or settings.min_workers or 1
        least = workers if settings.node_labels else settings.min_workers or 1
        chosen = {"workers": workers, "zero_stage": settings.zero_stage or 2, "min_workers": least}
        on_cpu = settings.model_copy(update=chosen)
        return on_cpu, f"PL: {_count(workers, 'worker')} on the CPU", None
    most = settings.workers or max(1, cluster.gpus if cluster.bounded else cluster.largest)
    ways = _ways(settings, cluster)
    stage, offload, fewest = ways[0] + (1,)
    refused, doubt = None, ""
    if size:
        # What activations take is an estimate: nothing is refused for them.
        found = _first_way(size, settings, ways, cluster, most=most)
        if found is None:
            doubt = f"; activations may be too much for GPUs of {cluster.gpu_gib:.0f} GiB"
            bare = settings.model_copy(update={"micro_batch_size": 0})
            found = _first_way(size, bare, ways, cluster, most=most)
        if found is None:
            refused = _too_much(size, settings, ways, cluster, most)
        stage, offload, fewest = found or (*ways[-1], most)
    workers = settings.workers or max(fewest, settings.min_workers or 1, min(most, useful))
    least = workers if settings.node_labels else settings.min_workers or min(fewest, workers)
    line = f"PL: {_count(workers, 'worker')}, one GPU each, ZeRO stage {stage}"
    if offload:
        line += ", Adam's state in the nodes' memory"
    if size:
        needed = training_gib(
            size.parameters,
            stage=stage,
            workers=workers,
            micro_batch_size=settings.micro_batch_size,
            lora=bool(settings.lora_rank),
            offload=offload,
        )
        line += f", {needed:.0f} GiB per GPU at its peak{doubt}"
    if least < workers:
        line += f", continuing with {least} where nodes are lost"
    return (
        settings.model_copy(
            update={
                "workers": workers,
                "zero_stage": stage,
                "offload": offload,
                "min_workers": least,
                "cpus_per_worker": settings.cpus_per_worker or _cpus(1.0, cluster),
            }
        ),
        line,
        refused,
    )


def _ways(settings: TrainingSection, cluster: Cluster) -> list[tuple[int, bool]]:
    """The ZeRO stages and whether Adam's state is offloaded, in the order they are tried in: the
    faster first.
    """
    lora = bool(settings.lora_rank)
    stages = (settings.zero_stage,) if settings.zero_stage else (2,) if lora else (2, 3)
    if settings.offload is not None:
        return [(stage, settings.offload) for stage in stages]
    # Who does not know the nodes' memory does not fill it unasked.
    offloads = [False] if lora or cluster.node_gib is None else [False, True]
    return [(stage, offload) for offload in offloads for stage in stages]


def _first_way(
    size: ModelSize,
    settings: TrainingSection,
    ways: Sequence[tuple[int, bool]],
    cluster: Cluster,
    *,
    most: int,
) -> tuple[int, bool, int] | None:
    """The first of `ways` that fits the GPUs, and the fewest workers that it takes."""
    for stage, offload in ways:
        fewest = fewest_workers(
            size.parameters,
            stage=stage,
            gpu_gib=cluster.gpu_gib,
            most=most,
            micro_batch_size=settings.micro_batch_size,
            lora=bool(settings.lora_rank),
            offload=offload,
            node_gib=cluster.node_gib,
        )
        if fewest:
            return stage, offload, fewest
    return None


def _too_much(
    size: ModelSize,
    settings: TrainingSection,
    ways: Sequence[tuple[int, bool]],
    cluster: Cluster,
    most: int,
) -> str:
    least = min(
        training_gib(
            size.parameters,
            stage=stage,
            workers=most,
            micro_batch_size=0,
            lora=bool(settings.lora_rank),
            offload=offload,
        )
        for stage, offload in ways
    )
    advice = "more GPUs (pl.workers), larger ones"
    if not settings.lora_rank:
        advice += ", pl.lora_rank=16"
    if not any(offload for _, offload in ways) and not settings.lora_rank:
        advice += ", pl.offload=true"
    memory = (
        f", and {size.parameters * offloaded_bytes(workers=most) / GIB:.0f} of the"
        f" {cluster.node_gib:.0f} GiB of a node that each GPU has"
        if cluster.node_gib is not None and any(offload for _, offload in ways)
        else ""
    )
    return (
        f"svlm.model: training {size.parameters / 1e9:.1f}B parameters on"
        f" {_count(most, 'GPU')} takes {least:.0f} GiB of each without activations, of which"
        f" {TRAINED_IN * cluster.gpu_gib:.0f} of {cluster.gpu_gib:.0f} can be used{memory}. These"
        f" would help: {advice}"
    )


def _cluster_line(cluster: Cluster) -> str:
    if not cluster.bounded:
        return (
            f"placement: the cluster grows as it is asked; nodes of up to {cluster.largest}"
            f" GPUs of {cluster.gpu_gib:.0f} GiB"
        )
    if not cluster.gpus:
        return "placement: there is no GPU in the cluster"
    return (
        f"placement: {_count(cluster.gpus, 'GPU')} of {cluster.gpu_gib:.0f} GiB on"
        f" {_count(len(cluster.nodes), 'node')}"
    )


def _engine_line(
    name: str,
    asked: LocalModelSection,
    model: LocalModelSection,
    size: ModelSize | None,
    cluster: Cluster,
) -> str:
    if model.kind.is_api:
        return f"{name}: asked through an API"
    most = f"up to {model.max_replicas}" if model.max_replicas else "as many as the cluster gives"
    replicas = (
        str(model.min_replicas)
        if model.max_replicas == model.min_replicas
        else f"{model.min_replicas} to start with, {most}"
    )
    cores = (
        f"{model.cpus_per_replica:g} CPU {'core' if model.cpus_per_replica == 1 else 'cores'} each"
    )
    if not model.gpus_per_replica:
        return f"{name}: on the CPU, replicas: {replicas}, {cores}"
    if model.gpus_per_replica < 1:
        where = f"{model.gpus_per_replica:g} of a GPU"
    else:
        where = (
            "one GPU"
            if model.gpus_per_replica == 1
            else f"tensor parallel over {model.gpus_per_replica:g} GPUs"
        )
    why = "as configured"
    if asked.gpus_per_replica is None:
        why = "its size is not known"
    if asked.gpus_per_replica is None and size:
        each = serving_gib(size, model, max(1, int(model.gpus_per_replica)))
        why = (
            f"{size.parameters / 1e9:.1f}B parameters by {size.source},"
            f" {size.weight_bytes / GIB:.1f} GiB of weights and"
            f" {kv_gib(size, model):.1f} of KV cache: {each:.1f} GiB per GPU"
        )
        if each > USED * cluster.gpu_gib:
            why += (
                f", too much for GPUs of {cluster.gpu_gib:.0f} GiB; fp8 weights"
                " (engine_options) or larger GPUs would help"
            )
    return (
        f"{name}: {where} ({why}), replicas: {replicas}, {cores}, {model.in_flight} images in"
        " flight"
    )


def _length_warning(name: str, model: LocalModelSection, size: ModelSize | None) -> list[str]:
    if size is None or size.image.tokens + TEXT_TOKENS <= model.max_model_len:
        return []
    return [
        f"warning: an image can become {size.image.tokens} tokens of {name}, which leaves too few"
        f" of {name}.max_model_len={model.max_model_len} for prompt and reply, and such an image is"
        f" quarantined; raise {name}.max_model_len, or lower {name}.max_pixels, or its tiles"
        f" ({name}.processor_options)"
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
