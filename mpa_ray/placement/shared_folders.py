"""That every host of a cluster sees the local folders of a run: a disk of its own would take its
parts away with it.
"""

import os
import socket
import uuid
from collections.abc import Mapping

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.storage.folder import Folder

_PATIENCE_S = 120.0


def refuse_unshared(output: Folder, config: Config, first_file: str | None) -> None:
    """Look on every other host for a file that is written now into `output`, and for one that was
    listed.

    Folders in object stores are everybody's, and a cluster of one host sees what its driver sees.
    Nodes that come later are not looked at: there the readers of images and the commits look
    themselves (`mpa_ray.images.parts`).

    Args:
        output: of the run.
        config: names the source.
        first_file: the path of a file of the source; None where that is in an object store.

    Raises:
        ConfigurationError: a host does not see one of them; the message names host and folder.
    """
    if first_file and not os.path.exists(first_file):
        # A list of URIs may name what is nowhere.
        first_file = None
    nodes = _nodes_of_other_hosts() if output.is_local or first_file else {}
    if not nodes:
        return
    looked_for = {}
    if first_file:
        source = next(name for name in ("parity", "annotations", "images") if getattr(config, name))
        looked_for[f"{source}={getattr(config, source)!r}"] = first_file
    mark = f".seen-by-all-{uuid.uuid4().hex}"
    if output.is_local:
        output.write_bytes(mark, b"")
        looked_for[f"output={output.uri!r}"] = f"{output.path}/{mark}"
    try:
        for host, missing in _missing(nodes, looked_for).items():
            if missing:
                raise ConfigurationError(
                    f"{', '.join(missing)}: the host {host} of this cluster does not see what"
                    f" {socket.gethostname()} has there; give"
                    " a folder that all hosts share, or one in s3:// or gs://"
                )
    finally:
        if output.is_local:
            output.delete(mark)


def _nodes_of_other_hosts() -> dict[str, str]:
    """Node id -> address, one node a host; without the driver's host."""
    import ray

    here = ray.util.get_node_ip_address()
    by_address = {
        node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]
    }
    return {node: address for address, node in by_address.items() if address != here}


def _missing(nodes: Mapping[str, str], looked_for: Mapping[str, str]) -> dict[str, list[str]]:
    """Address -> what is not seen there. A node that is lost meanwhile is left out: what it has
    begun is done elsewhere.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_not_seen)
    asked = {
        address: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(dict(looked_for))
        for node, address in nodes.items()
    }
    found = {}
    for address, answer in asked.items():
        try:
            found[address] = ray.get(answer, timeout=_PATIENCE_S)
        except RayError:
            continue
    return found


def _not_seen(looked_for: Mapping[str, str]) -> list[str]:
    return [name for name, path in looked_for.items() if not os.path.exists(path)]
