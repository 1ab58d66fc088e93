"""Placement on clusters that are only described."""

import re
from dataclasses import replace
from typing import Any

import pytest

from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.models.size import ModelSize
from mpa_ray.placement.place import (
    Cluster,
    Placement,
    bundles,
    models_of,
    place,
    take_gpus,
    training_bundles,
)
from tests.models.test_gpu_memory import HUGE, LARGE, PHOTO, SMALL, TILED, TINY

OF_4B = ModelSize(
    parameters=4_150_000_000,
    weight_bytes=8_300_000_000,
    kv_bytes=98_304,
    heads=32,
    image=PHOTO,
    source="its files",
)


def cluster(
    *nodes: int, gpu_gib: float = 48, bounded: bool = True, cpus_per_gpu: float | None = 11
) -> Cluster:
    return Cluster(
        nodes=nodes,
        bounded=bounded,
        largest=max(nodes, default=8),
        cpus_per_gpu=cpus_per_gpu,
        gpu_gib=gpu_gib,
    )


GROWS = cluster(bounded=False, cpus_per_gpu=None)


def config_with(
    *,
    jury: int = 0,
    pl: dict[str, Any] | None = None,
    svlm: dict[str, Any] | None = None,
    **lvlm: Any,
) -> Config:
    return Config(
        lvlm=ModelSection(**({"model": "a/large"} | lvlm)),
        svlm=ModelSection(**({"model": "a/small"} | (svlm or {}))),
        jury=tuple(ModelSection(model=f"a/juror{number}") for number in range(jury)),
        pl=TrainingSection(**(pl or {})),
    )


def placed(
    config: Config, on: Cluster, *, lvlm: ModelSize | None = LARGE, svlm: ModelSize | None = SMALL
) -> Placement:
    sizes = {name: lvlm for name in models_of(config)} | {"svlm": svlm}
    return place(config, sizes, on, asked=list(models_of(config)))


def gpus_used(config: Config) -> float:
    return sum(model.max_replicas * model.gpus for model in models_of(config).values())


def test_on_a_cluster_that_grows_each_model_asks_for_what_it_needs_and_grows_with_it() -> None:
    config = placed(config_with(), GROWS, lvlm=HUGE).config
    assert config.lvlm.gpus_per_replica == 4 and config.svlm.gpus_per_replica == 1
    assert config.lvlm.min_replicas == 1 and config.lvlm.max_replicas is None
    assert bundles([config.lvlm, config.svlm]) == [
        {"CPU": 1.0, "GPU": 4.0},
        {"CPU": 1.0, "GPU": 1.0},
        {"CPU": 1.0},
    ]


def test_images_in_flight_follow_the_gpu_and_what_is_set_stays() -> None:
    config = placed(config_with(svlm={"images_in_flight": 7}), cluster(2)).config
    assert (config.lvlm.images_in_flight, config.svlm.images_in_flight) == (128, 7)
    unknown = placed(config_with(), cluster(2), lvlm=None).config
    assert (unknown.lvlm.images_in_flight, unknown.lvlm.in_flight) == (None, 32)
    for elsewhere in ({"gpus_per_replica": 0}, {"engine": "transformers"}):
        assert placed(config_with(**elsewhere), cluster(2)).config.lvlm.in_flight == 32


def test_gpus_are_divided_by_the_models_work() -> None:
    config = placed(config_with(), cluster(4, 4)).config
    assert (config.lvlm.max_replicas, config.svlm.max_replicas) == (7, 1), (
        "7B three times an image, 2B once"
    )
    alike = placed(config_with(), cluster(4, 4), lvlm=SMALL).config
    assert (alike.lvlm.max_replicas, alike.svlm.max_replicas) == (6, 2)


def test_a_replica_lies_on_one_node() -> None:
    config = placed(config_with(), cluster(4, 4), lvlm=HUGE).config
    assert (config.lvlm.max_replicas, config.svlm.max_replicas) == (1, 4), (
        "a second one would lie on two nodes"
    )
    assert placed(config_with(), cluster(4, 4, 4), lvlm=HUGE).config.lvlm.max_replicas == 2


@pytest.mark.parametrize("nodes", [(2,), (4,), (1, 1, 1), (8, 8), (5, 3)])
@pytest.mark.parametrize("lvlm", [SMALL, LARGE, HUGE])
def test_never_more_gpus_than_there_are(nodes: tuple[int, ...], lvlm: ModelSize) -> None:
    config = placed(config_with(jury=1), cluster(*nodes), lvlm=lvlm).config
    fewest = sum(model.gpus for model in models_of(config).values())
    assert gpus_used(config) <= sum(nodes) or fewest > sum(nodes), (
        "what cannot be had is asked for all the same, and refused"
    )


def test_two_models_share_the_only_gpu() -> None:
    config = placed(config_with(), cluster(1)).config
    assert config.lvlm.gpus_per_replica + config.svlm.gpus_per_replica == pytest.approx(1)
    assert config.lvlm.gpus_per_replica > config.svlm.gpus_per_replica >= 0.2
    assert config.lvlm.max_replicas == config.svlm.max_replicas == 1
    assert config.lvlm.cpus + config.svlm.cpus <= 9


def test_a_jury_shares_each_of_too_few_gpus() -> None:
    config = placed(config_with(jury=1), cluster(2, gpu_gib=79.6)).config
    shares = [model.gpus_per_replica for model in models_of(config).values()]
    assert sum(shares) == pytest.approx(1) and [
        model.max_replicas for model in models_of(config).values()
    ] == [2, 2, 2]


def test_models_too_large_to_share_ask_for_gpus_of_their_own() -> None:
    config = placed(config_with(), cluster(1, gpu_gib=22.5)).config
    assert config.lvlm.gpus_per_replica == config.svlm.gpus_per_replica == 1, (
        "and the run ends with an error instead of a wait"
    )


@pytest.mark.parametrize("nodes", [(1,), (4,), (8,), (2, 2)])
@pytest.mark.parametrize("cores", [2, 4, 8, 16, 48, 192])
def test_a_core_of_each_node_stays_free(nodes: tuple[int, ...], cores: int) -> None:
    config = placed(config_with(), cluster(*nodes, cpus_per_gpu=(cores - 1) / max(nodes))).config
    reserved = sum(model.max_replicas * model.cpus for model in (config.lvlm, config.svlm))
    assert reserved <= len(nodes) * (cores - 1)


def test_tiny_models_have_two_engines_on_a_gpu() -> None:
    config = placed(config_with(), cluster(4), svlm=TINY).config
    assert config.svlm.gpus_per_replica == 0.5


def test_what_is_set_stays() -> None:
    asked = {"gpus_per_replica": 2, "max_replicas": 3, "cpus_per_replica": 5}
    pl = {"workers": 2, "zero_stage": 1, "min_workers": 2}
    config = placed(config_with(**asked, pl=pl, svlm={"gpus_per_replica": 0.25}), cluster(8)).config
    assert {name: getattr(config.lvlm, name) for name in asked} == asked
    assert {name: getattr(config.pl, name) for name in pl} == pl
    assert config.svlm.gpus_per_replica == 0.25 and config.svlm.max_replicas == 8, (
        "on the two GPUs that are left"
    )


def test_shares_that_are_set_lie_on_one_gpu_each() -> None:
    """As two models in one actor need them: no GPU holds two of the larger share."""
    config = placed(
        config_with(gpus_per_replica=0.75, svlm={"gpus_per_replica": 0.25}), cluster(4, 4)
    ).config
    assert (config.lvlm.max_replicas, config.svlm.max_replicas) == (8, 8)


@pytest.mark.parametrize("gpus", [0.3, 0.5, 1, 2, 3])
def test_gpus_are_taken_until_none_is_left(gpus: float) -> None:
    free = [[1.0] * 4, [1.0] * 3]
    count = 0
    while take_gpus(free, gpus):
        count += 1
    assert count == {0.3: 21, 0.5: 14, 1: 7, 2: 3, 3: 2}[gpus]


def test_on_the_cpu_nothing_is_asked_of_gpus() -> None:
    on_cpu = {"gpus_per_replica": 0, "cpus_per_replica": 0.5}
    result = placed(config_with(**on_cpu, svlm=on_cpu, pl={"gpus_per_worker": 0}), cluster())
    assert (result.config.lvlm.max_replicas, result.config.svlm.max_replicas) == (1, 1)
    assert (
        result.config.pl.workers,
        result.config.pl.zero_stage,
        result.config.pl.min_workers,
    ) == (1, 2, 1)
    assert bundles([result.config.lvlm, result.config.svlm]) == [
        {"CPU": 0.5},
        {"CPU": 0.5},
        {"CPU": 1.0},
    ]
    assert not any("GPU" in line for line in result.lines), result.lines


@pytest.mark.parametrize(
    ("cores", "jury", "each"),
    [(2, 0, 0.5), (2, 1, 0.3), (3, 0, 1), (64, 2, 1), (1, 0, 0.1), (None, 0, 1)],
)
def test_on_the_cpu_all_models_fit_beside_a_core_that_reads(
    cores: int | None, jury: int, each: float
) -> None:
    on = Cluster(nodes=(), bounded=True, largest=1, cpus_per_gpu=None, gpu_gib=48, cpus=cores)
    config = config_with(
        gpus_per_replica=0, svlm={"gpus_per_replica": 0}, jury=jury, pl={"gpus_per_worker": 0}
    )
    config = config.model_copy(
        update={
            "jury": tuple(
                juror.model_copy(update={"gpus_per_replica": 0.0}) for juror in config.jury
            )
        }
    )
    models = models_of(placed(config, on).config).values()
    assert [model.cpus for model in models] == [each] * (2 + jury)
    assert cores in (None, 1) or sum(bundle["CPU"] for bundle in bundles(list(models))) <= cores


def test_cores_that_are_set_are_left_out_of_what_is_divided() -> None:
    on = Cluster(nodes=(), bounded=True, largest=1, cpus_per_gpu=None, gpu_gib=48, cpus=3)
    config = placed(
        config_with(gpus_per_replica=0, cpus_per_replica=1.5, svlm={"gpus_per_replica": 0}), on
    ).config
    assert (config.lvlm.cpus, config.svlm.cpus) == (1.5, 0.5)


def test_an_api_takes_no_gpu() -> None:
    config = placed(config_with(engine="openai"), cluster(2)).config
    assert config.lvlm.max_replicas == 1 and config.svlm.max_replicas == 2
    assert bundles([config.lvlm]) == [{"CPU": 1.0}, {"CPU": 1.0}]


def test_a_model_of_unknown_size_gets_a_gpu() -> None:
    config = placed(config_with(), cluster(4), lvlm=None).config
    assert config.lvlm.gpus_per_replica == 1 and gpus_used(config) == 4


@pytest.mark.parametrize(
    ("size", "on", "batch", "expected"),
    [
        # Qwen2-VL-2B: two GPUs hold an optimizer's step; a batch of 16 in micro-batches of 4 gives
        # four of them work.
        (SMALL, cluster(3), 16, (3, 2, 2)),
        (SMALL, cluster(8), 16, (4, 2, 2)),
        (SMALL, cluster(8, gpu_gib=79.6), 16, (4, 2, 1)),
        # InternVL2-4B: three GPUs at stage 2, of which a batch of 6 fills two.
        (OF_4B, cluster(3), 6, (3, 2, 3)),
        (OF_4B, cluster(2, gpu_gib=79.6), 6, (2, 2, 2)),
        (OF_4B, cluster(6, gpu_gib=22.5), 16, (5, 3, 5)),
        (None, cluster(3), 16, (3, 2, 1)),
        (SMALL, cluster(4, bounded=False), 16, (4, 2, 2)),
    ],
)
def test_workers_and_stage_follow_the_model_and_the_gpu(
    size: ModelSize | None, on: Cluster, batch: int, expected: tuple[int, int, int]
) -> None:
    pl = placed(config_with(pl={"batch_size": batch}), on, svlm=size).config.pl
    assert (pl.workers, pl.zero_stage, pl.min_workers) == expected


@pytest.mark.parametrize("gpus", [0, 1])
def test_on_labelled_nodes_training_continues_with_no_fewer_workers(gpus: int) -> None:
    pl = {
        "workers": 3,
        "gpus_per_worker": gpus,
        "node_labels": {"ray.io/market-type": "on-demand"},
    }
    assert placed(config_with(pl=pl), cluster(4), svlm=SMALL).config.pl.min_workers == 3
    assert (
        placed(
            config_with(pl=pl | {"node_labels": {}}), cluster(4), svlm=SMALL
        ).config.pl.min_workers
        == 1 + gpus
    )


@pytest.mark.parametrize(
    ("on", "pl", "cores"),
    [
        (cluster(4, cpus_per_gpu=3.5), {}, 3),
        (cluster(4, cpus_per_gpu=0.75), {}, 0.7),
        (GROWS, {}, 1),
        (cluster(4), {"cpus_per_worker": 2}, 2),
        (cluster(4), {"gpus_per_worker": 0}, 1),
    ],
)
def test_a_worker_has_its_gpu_s_share_of_the_cores(
    on: Cluster, pl: dict[str, Any], cores: float
) -> None:
    assert placed(config_with(pl=pl), on).config.pl.cpus == cores


@pytest.mark.parametrize(
    ("size", "on", "node_gib", "pl", "expected"),
    [
        # Qwen2-VL-2B on one GPU of 48 GiB: 47 GiB at its peak without offload, 45 of a node's with.
        (SMALL, cluster(1), 64, {}, (1, 2, True)),
        (SMALL, cluster(1, gpu_gib=22.5), 64, {}, (1, 2, True)),
        (SMALL, cluster(1, gpu_gib=79.6), 64, {}, (1, 2, False)),
        (SMALL, cluster(2), 64, {}, (2, 2, False)),
        (SMALL, cluster(2), None, {"workers": 1, "offload": True}, (1, 2, True)),
        # Half of a worker's part is on each of two nodes' memory.
        (SMALL, cluster(2), 24, {"offload": True}, (2, 2, True)),
        (OF_4B, cluster(4, gpu_gib=22.5), 64, {}, (4, 2, True)),
    ],
)
def test_adam_s_state_goes_to_the_nodes_where_only_that_fits(
    size: ModelSize,
    on: Cluster,
    node_gib: float | None,
    pl: dict[str, Any],
    expected: tuple[int, int, bool],
) -> None:
    result = placed(config_with(pl=pl), replace(on, node_gib=node_gib), svlm=size)
    chosen = result.config.pl
    assert (chosen.workers, chosen.zero_stage, chosen.offload) == expected
    assert result.refused is None
    assert ("in the nodes' memory" in result.lines[-1]) is chosen.offload


@pytest.mark.parametrize(
    ("on", "node_gib", "pl", "reason"),
    [
        (cluster(1), None, {}, r"on 1 GPU takes 47 GiB of each .*, of which 46 of 48 .*offload=tr"),
        (cluster(1), 32, {}, r"and 45 of the 32 GiB of a node that each GPU has\. These"),
        (cluster(1), 64, {"offload": False}, "takes 47 GiB of each"),
        (cluster(1), 64, {"zero_stage": 3, "offload": False}, "takes 47 GiB of each"),
        (cluster(4), 64, {"workers": 1, "offload": False}, "on 1 GPU takes 47"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_arithmetic(
    on: Cluster, node_gib: float | None, pl: dict[str, Any], reason: str
) -> None:
    result = placed(config_with(pl=pl), replace(on, node_gib=node_gib), svlm=SMALL)
    assert result.refused is not None
    assert re.search(reason, result.refused), result.refused


def test_an_estimate_refuses_nothing() -> None:
    result = placed(config_with(pl={"micro_batch_size": 64}), cluster(4), svlm=SMALL)
    assert result.refused is None
    assert "activations may be too much for GPUs of 48 GiB" in result.lines[-1]


def test_lora_needs_no_more_than_the_weights() -> None:
    pl = placed(config_with(pl={"lora_rank": 16}), cluster(1, gpu_gib=22.5), svlm=LARGE).config.pl
    assert (pl.workers, pl.zero_stage) == (1, 2)


def test_the_batch_is_what_the_configuration_says() -> None:
    for batch in (None, 6):
        config = placed(config_with(pl={"batch_size": batch}), cluster(3)).config
        assert (config.pl.batch_size, config.pl.learning_rate) == (batch, None), (
            "they are part of what a run is known by"
        )


def test_what_was_chosen_is_said_and_kept() -> None:
    result = placed(config_with(), cluster(4, 4), lvlm=HUGE)
    assert result.lines[0] == "placement: 8 GPUs of 48 GiB on 2 nodes"
    assert "tensor parallel over 4 GPUs (73.4B parameters by its files" in result.lines[1]
    assert (
        result.record["models"]["lvlm"]["gpus_per_replica"] == 4
        and result.record["models"]["lvlm"]["why"] == result.lines[1]
    )
    assert result.record["training"]["workers"] == 4
    assert training_bundles(result.config.pl, 2) == [{"CPU": 8.0, "GPU": 1.0}] * 2


def test_a_context_that_an_image_would_fill_is_said() -> None:
    """Thirteen tiles of InternVL2 leave room in 4,096 tokens, and none in 3,500."""
    for length, warned in ((4096, False), (3500, True)):
        result = placed(config_with(max_model_len=length), cluster(1), lvlm=TILED)
        said = [line for line in result.lines if line.startswith("warning: ")]
        assert bool(said) == warned
        assert all("3330 tokens of lvlm" in line for line in said)
        assert all("raise lvlm.max_model_len" in line for line in said)
