"""What Ray says of a cluster, and waiting for what it does not have yet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpa_ray.config import ClusterSection, Config, ModelSection
from mpa_ray.errors import RunError
from mpa_ray.placement import capacity
from mpa_ray.placement.capacity import lacking, shown

GPU = {"CPU": 1.0, "GPU": 1.0}
NODE = {"CPU": 8.0, "GPU": 4.0, "memory": 1e9}


@pytest.mark.parametrize(
    ("bundles", "nodes", "clause"),
    [
        ([GPU] * 4, [NODE], None),
        ([{"GPU": 0.7, "CPU": 1}, {"GPU": 0.3, "CPU": 1}], [{"CPU": 2.0, "GPU": 1.0}], None),
        (
            [{"GPU": 0.6, "CPU": 1}] * 3,
            [{"CPU": 4.0, "GPU": 2.0}],
            "asks for 3 x {0.6 GPU, 1 CPU}, which does not fit",
        ),
        ([{"GPU": 0.5, "CPU": 1}] * 4, [{"CPU": 4.0, "GPU": 2.0}], None),
        (
            [{"CPU": 1.0, "GPU": 8.0}],
            [NODE, NODE],
            "asks for 8 GPU on one node, and the largest node has 4",
        ),
        ([GPU] * 9, [NODE, NODE], "asks for 9 GPU in all, and the cluster has 8"),
        (
            [{"CPU": 16.0, "GPU": 1.0}],
            [NODE, {"CPU": 64.0}],
            "asks for {1 GPU, 16 CPU} on one node, and no node has all of it",
        ),
        ([GPU], [], "asks for 1 CPU on one node, and the largest node has 0"),
        (
            [{"CPU": 1.0, "GPU": 3.0}] * 2,
            [{"CPU": 9.0, "GPU": 4.0}, {"CPU": 9.0, "GPU": 2.0}],
            "asks for 2 x {3 GPU, 1 CPU}, which",
        ),
    ],
)
def test_what_is_lacking(
    bundles: list[dict[str, float]], nodes: list[dict[str, float]], clause: str | None
) -> None:
    found = lacking(bundles, nodes)
    assert found == clause if clause is None else (found or "").startswith(clause), found


def test_bundles_for_people() -> None:
    assert shown([GPU, GPU, {"CPU": 1.0}]) == "2 x {1 GPU, 1 CPU} + {1 CPU}"


def test_a_cluster_without_gpus(ray_session: None) -> None:
    found = capacity.cluster_of(ClusterSection(gpu_memory_gib=24))
    assert (found.nodes, found.bounded, found.gpu_gib, found.cpus_per_gpu) == ((), True, 24, None)


def test_a_bound_that_is_set_counts(ray_session: None) -> None:
    found = capacity.cluster_of(ClusterSection(gpus=10, gpus_per_node=4))
    assert (found.nodes, found.largest, found.bounded) == ((4, 4, 2), 4, True)


def test_what_no_node_can_have_is_an_error_and_not_a_wait(
    ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    message = (
        r"PA asks for 4 GPU on one node, and the largest node has 0, and nothing starts"
        r" another node\. Set x, or give the cluster a node"
    )
    with pytest.raises(RunError, match=message):
        capacity.wait_for([{"CPU": 1.0, "GPU": 4.0}], what="PA", fix="Set x", patience_s=3)
    said = capsys.readouterr().out
    assert (
        "PA: waiting for {4 GPU, 1 CPU}" in said and "nothing is being started; an error in" in said
    )


def test_the_advice_names_each_model_and_what_it_asks_for() -> None:
    models = {
        "lvlm": ModelSection(model="a", cpus_per_replica=1, gpus_per_replica=0, min_replicas=2)
    }
    models |= {
        "jury.0": ModelSection(model="b", cpus_per_replica=0.2, gpus_per_replica=0),
        "svlm": ModelSection(model="c", gpus_per_replica=1),
    }
    assert capacity.advice(models) == (
        "Lower gpus_per_replica, cpus_per_replica or min_replicas (lvlm asks for 2 x {1 CPU},"
        " jury.0 asks for {0.2 CPU},"
        " svlm asks for {1 GPU, 1 CPU}, and reading and writing for 1 CPU)"
    )


def test_what_is_there_is_not_waited_for(
    ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    # Twice: what was asked for the first time was given back.
    for _ in range(2):
        capacity.wait_for([{"CPU": 3.0}, {"CPU": 1.0}], what="PA", fix="", patience_s=20)
    assert capsys.readouterr().out == ""


def test_a_model_alone_is_placed_or_refused(
    ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(cluster=ClusterSection(gpus=8, gpus_per_node=4, patience_s=2))
    with pytest.raises(
        RunError, match=r"evaluate asks for 4 GPU on one node, and the largest node has 0"
    ):
        capacity.place_single_model(
            ModelSection(model="Qwen/Qwen2-VL-72B-Instruct"), config, what="evaluate"
        )
    assert (
        "evaluate: tensor parallel over 4 GPUs (72.0B parameters by its name"
        in capsys.readouterr().out
    )
    on_cpu = ModelSection(model="a/b-2B", gpus_per_replica=0)
    assert capacity.place_single_model(on_cpu, config, what="evaluate") == on_cpu
    behind_api = capacity.place_single_model(
        ModelSection(model="gpt", engine="openai"), config, what="evaluate"
    )
    assert behind_api.most_replicas == 1


def test_a_gang_waits_for_a_node_that_comes() -> None:
    script = Path(__file__).parents[1].joinpath("nodes_come.py")
    result = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    said = result.stdout
    assert "before: Cluster(nodes=(), bounded=True" in said, said + result.stderr
    assert (
        "shortage: PA: nodes were lost, it asks for 1 GPU on one node, and the largest node has 0"
        " now; nothing is being started" in said
    )
    assert "shortage: None" in said
    assert "PL: waiting for 2 x {1 GPU, 1 CPU}" in said
    assert (
        "after: Cluster(nodes=(2,), bounded=True, largest=2, cpus_per_gpu=1.0, gpu_gib=45.0,"
        " cpus=" in said
    )
    assert "the stage itself had them next" in said
    assert (
        "PL: asks for 4 GPU in all, and the cluster has 2; continuing with 2 of 4" in said
        and "fewer were enough" in said
    )
    labelled = (
        "shortage: PL (nodes with ray.io/market-type=on-demand): nodes were lost, it asks for"
    )
    assert f"{labelled} 1 CPU on one node, and the largest node has 0 now" in said, (
        "nodes without the label do not count"
    )
    assert f"{labelled} 2 CPU on one node, and the largest node has 1 now" in said
    assert result.returncode == 3, result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        "error: PA asks for 4 GPU on one node, and the largest node has 2"
    ), result.stderr
