"""The RayJobs of cluster/: against Kubernetes' own schemas, KubeRay's fields, and the autoscaler
that will read them.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from cluster_readme import CLUSTER

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed (it is in the dev extra)"
)

KUBERNETES = "1.37"
# What a RayJob may hold (KubeRay 1.7: https://docs.ray.io/en/master/kuberay/references/api.html).
# Its CRD is in no package index.
FIELDS = {
    "job": "entrypoint submissionMode backoffLimit shutdownAfterJobFinishes"
    " ttlSecondsAfterFinished suspend rayClusterSpec",
    "cluster": "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec"
    " workerGroupSpecs",
    "autoscaler": "version idleTimeoutSeconds upscalingMode resources securityContext",
    "head": "rayStartParams template",
    "group": "groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority labels"
    " rayStartParams template",
}


def documents(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    account, job = yaml.safe_load_all((CLUSTER / name).read_text())
    return account, job


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def quantity(text: str) -> int:
    return int(text.removesuffix("Gi")) if text.endswith("Gi") else int(text)


both = pytest.mark.parametrize("name", ["kuberay-autoscaling.yaml", "kuberay-gang.yaml"])


@both
def test_kubernetes_takes_it(name: str) -> None:
    account, job = documents(name)
    kubernetes_validate.validate(account, KUBERNETES, strict=True)
    for group in groups(job):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "any"},
            "spec": group["template"]["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@both
def test_kuberay_knows_every_field(name: str) -> None:
    _, job = documents(name)
    cluster = job["spec"]["rayClusterSpec"]
    held = {
        "job": [job["spec"]],
        "cluster": [cluster],
        "head": [cluster["headGroupSpec"]],
        "group": cluster["workerGroupSpecs"],
    }
    held["autoscaler"] = (
        [cluster["autoscalerOptions"]] if cluster["enableInTreeAutoscaling"] else []
    )
    for kind, sections in held.items():
        for section in sections:
            assert section.keys() <= set(FIELDS[kind].split())
    # Kubernetes takes these maps with texts alone.
    assert all(
        isinstance(value, str)
        for group in groups(job)
        for value in group["rayStartParams"].values()
    )
    assert job["apiVersion"] == "ray.io/v1" and job["kind"] == "RayJob"


@both
def test_pods_are_fit_for_what_runs_in_them(name: str) -> None:
    account, job = documents(name)
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in groups(job):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert (
            pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        )
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert container["image"].endswith(
            "-gpu:0.1.0" if "nvidia.com/gpu" in resources["limits"] else "-cpu:0.1.0"
        )
        # Ray puts three tenths of the memory it sees into /dev/shm, and onto the disk where that is
        # smaller.
        shm = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert shm["medium"] == "Memory" and quantity(shm["sizeLimit"]) >= 0.3 * quantity(
            resources["limits"]["memory"]
        )
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
            "/dev/shm",
            "/cache",
            "/tmp/ray",
        }
        assert {"containerPort": 8080, "name": "metrics"} in container["ports"]
        assert group["rayStartParams"]["metrics-export-port"] == "8080"
        for variable in container["env"]:
            assert ("KEY" not in variable["name"] and "TOKEN" not in variable["name"]) or variable[
                "valueFrom"
            ]["secretKeyRef"]["optional"]


def test_the_autoscaling_one_begins_with_the_head_alone_and_the_fixed_one_never_changes() -> None:
    autoscaling = documents("kuberay-autoscaling.yaml")[1]["spec"]["rayClusterSpec"]
    assert (
        autoscaling["enableInTreeAutoscaling"]
        and autoscaling["autoscalerOptions"]["version"] == "v2"
    )
    for group in autoscaling["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        assert group["idleTimeoutSeconds"] > 0
        assert (
            group["labels"]["ray.io/market-type"]
            == group["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"]
        )
    _, gang = documents("kuberay-gang.yaml")
    assert gang["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] and gang["spec"]["suspend"]
    assert gang["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    for group in gang["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


def started(
    requests: Sequence[dict[str, float]] = (),
    gang: Sequence[dict[str, float]] = (),
    market: str | None = None,
) -> tuple[dict[str, int], int]:
    """The nodes that Ray's autoscaler starts for what is asked, by group, and how many requests no
    node can ever hold.

    Args:
        requests: what actors and tasks ask for.
        gang: what the workers of one training group ask for together.
        market: the `ray.io/market-type` they ask for.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    spec = documents("kuberay-autoscaling.yaml")[1]["spec"]["rayClusterSpec"]
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "any", "namespace": "any"}, "spec": spec}
    )
    selectors = (
        [[("ray.io/market-type", LabelSelectorOperator.LABEL_OPERATOR_IN, [market])]]
        if market
        else None
    )
    bundles = [ResourceRequestUtil.make(bundle, label_selectors=selectors) for bundle in gang]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs(),
        max_num_nodes=config["max_workers"] + 1,
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make(bundle) for bundle in requests]
        ),
        gang_resource_requests=[GangResourceRequest(requests=bundles)] if gang else [],
    )
    reply = ResourceDemandScheduler().schedule(request)
    unheld = len(reply.infeasible_resource_requests) + len(reply.infeasible_gang_resource_requests)
    return {launch.instance_type: launch.count for launch in reply.to_launch}, unheld


GPU = {"CPU": 1, "GPU": 1}


def test_ray_starts_the_nodes_the_readme_says() -> None:
    assert started([{"CPU": 1}] * 6) == ({"cpu": 1}, 0)
    assert started([GPU]) == ({"svlm": 1}, 0)
    assert started([GPU] * 8) == ({"lvlm": 2}, 0)
    assert started([{"CPU": 1, "GPU": 4}]) == ({"lvlm": 1}, 0)
    assert started([{"CPU": 1, "GPU": 4}] * 10) == ({"lvlm": 8, "training": 2}, 0), (
        "on demand stands in when spot is used up"
    )
    assert started(gang=[GPU] * 4) == ({"lvlm": 1}, 0)
    assert started(gang=[GPU] * 4, market="on-demand") == ({"training": 1}, 0)
    assert started([{"CPU": 1, "GPU": 16}]) == ({}, 1), "no node can ever hold it"
