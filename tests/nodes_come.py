"""A head without GPUs, and a node of two GPUs that comes while two are waited for. GPUs are
Ray's figures: nothing uses them.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.cluster_utils import Cluster

from mpa_ray.config import ClusterSection
from mpa_ray.observability.exit_codes import exit_codes
from mpa_ray.placement import capacity


def main() -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20}
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
    try:
        print("before:", capacity.cluster_of(ClusterSection()))
        print("shortage:", capacity.shortage([{"GPU": 1.0}], what="PA"))
        gang = [{"CPU": 1.0, "GPU": 1.0}] * 2
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(
                capacity.wait_for, gang, what="PL", fix="Set pl.workers to fewer", patience_s=40
            )
            time.sleep(4)
            # Nodes can be added by the main thread alone.
            cluster.add_node(
                num_cpus=3,
                num_gpus=2,
                resources={"accelerator_type:L40S": 1},
                object_store_memory=100 * 2**20,
            )
            waiting.result()
        print("after:", capacity.cluster_of(ClusterSection()))
        print("shortage:", capacity.shortage([{"GPU": 1.0}], what="PA"))
        capacity.wait_for([{"CPU": 1.0, "GPU": 2.0}], what="the next", fix="", patience_s=5)
        print("the stage itself had them next")
        capacity.wait_for(
            gang * 2, what="PL", fix="Set pl.workers to fewer", patience_s=2, enough=2
        )
        print("fewer were enough")
        labelled = {"ray.io/market-type": "on-demand"}
        print("shortage:", capacity.shortage([{"CPU": 1.0}], what="PL", labels=labelled))
        cluster.add_node(num_cpus=1, labels=labelled, object_store_memory=100 * 2**20)
        capacity.wait_for(
            [{"CPU": 1.0}], what="PL", fix="Set pl.workers to fewer", patience_s=20, labels=labelled
        )
        print("shortage:", capacity.shortage([{"CPU": 2.0}], what="PL", labels=labelled))
        capacity.wait_for(
            [{"CPU": 1.0, "GPU": 4.0}],
            what="PA",
            fix="Set lvlm.gpus_per_replica to 2",
            patience_s=2,
        )
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    with exit_codes():
        main()
    sys.exit(1)
