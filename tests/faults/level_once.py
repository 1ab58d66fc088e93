"""One call of the Parity Leveler in a process that may be killed: folder, workers, learning rate,
fewest workers, nodes to wait for.
"""

import sys
import time
from pathlib import Path

from mpa_ray import demo
from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.parity_leveler import level
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.storage.folder import Folder


def _see_nodes_come(place: Path, nodes: int) -> None:
    """Ray has looked at the cluster, as it does for PA, before the last nodes come."""
    import ray

    ray.data.range(1).materialize()
    (place / "waiting").touch()
    while sum(node["Alive"] for node in ray.nodes()) < nodes:
        time.sleep(0.1)


def main(
    place: Path, workers: int, learning_rate: float, min_workers: int | None = None, nodes: int = 0
) -> None:
    settings = TrainingSection(
        workers=workers,
        min_workers=min_workers,
        learning_rate=learning_rate,
        gpus_per_worker=0,
        # Without room for two on a node of one CPU, where nodes are taken away.
        cpus_per_worker=1 if min_workers else 0.5,
        precision="float32",
        batch_size=4,
        micro_batch_size=2,
        holdout=0.0,
        epochs=20,
        checkpoint_every=5,
    )
    config = Config(svlm=ModelSection(model=str(demo.SVLM), gpus_per_replica=0), pl=settings)
    with ray_session():
        if nodes:
            _see_nodes_come(place, nodes)
        level(
            config,
            [Folder.at(place / "parity")],
            name="mpa",
            target=Folder.at(place / "model"),
            work=Folder.at(place / "work"),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *map(int, sys.argv[4:]))
