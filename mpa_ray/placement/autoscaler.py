"""What the cluster's autoscaler is starting.

Of what an autoscaler *may* start, Ray 2.60 tells nobody: `GetClusterConfig` is empty with its own
autoscalers of version 1 and 2 (they report only what they are starting, what failed, and, version
2, which requests no node type fits).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What version 1 calls node types where it only watches a cluster that somebody else made.
_WATCHED = "node_"


@dataclass(frozen=True, kw_only=True)
class Autoscaler:
    """What the cluster's autoscaler says of itself.

    Attributes:
        grows: whether there is one that can start nodes.
        starting: node types that are being started, and how many of each.
        failing: node types that could not be started lately, with the reason; it keeps trying.
    """

    grows: bool
    starting: Mapping[str, int]
    failing: Mapping[str, str]


def autoscaler() -> Autoscaler:
    """What the cluster's autoscaler, of version 1 or 2, says; nothing starts and nothing grows
    where there is none.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    # Version 1, also in KubeRay: what `ray status` prints.
    status = _internal_kv_get("__autoscaling_status")
    return _version_1(json.loads(status)) if status else _version_2()


def _version_1(status: Mapping[str, Any]) -> Autoscaler:
    report = status.get("autoscaler_report") or {}
    starting = dict(report.get("pending_launches") or {})
    for _, kind, _ in report.get("pending_nodes") or ():
        starting[kind] = starting.get(kind, 0) + 1
    failing = {kind: "the node came up and failed" for _, kind in report.get("failed_nodes") or ()}
    for kind, record in (
        (report.get("node_availability_summary") or {}).get("node_availabilities") or {}
    ).items():
        reason = (record.get("unavailable_node_information") or {}).get("description")
        if reason:
            failing[kind] = reason
    kinds = [*(report.get("active_nodes") or ()), *(report.get("node_type_mapping") or {}).values()]
    return Autoscaler(
        grows=any(not kind.startswith(_WATCHED) for kind in kinds),
        starting=starting,
        failing=failing,
    )


def _version_2() -> Autoscaler:
    import ray

    # Both modules are compiled, and Ray's stubs leave these two out.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]
        GetClusterStatusReply,
    )

    reply = GetClusterStatusReply()
    reply.ParseFromString(
        GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10)
    )
    state = reply.autoscaling_state
    starting: dict[str, int] = {}
    for request in state.pending_instance_requests:
        starting[request.ray_node_type_name] = (
            starting.get(request.ray_node_type_name, 0) + request.count
        )
    for instance in state.pending_instances:
        starting[instance.ray_node_type_name] = starting.get(instance.ray_node_type_name, 0) + 1
    kinds = {node.ray_node_type_name for node in reply.cluster_resource_state.node_states}
    return Autoscaler(
        grows=state.autoscaler_state_version > 0
        and any(kind and not kind.startswith(_WATCHED) for kind in kinds),
        starting=starting,
        failing={
            request.ray_node_type_name: request.reason for request in state.failed_instance_requests
        },
    )
