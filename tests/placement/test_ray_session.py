"""A Ray of two cores on this machine: what reads, what commits and many engine actors work beside
each other.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpa_ray.stages import commits
from mpa_ray.storage.folder import Folder

ROOT = Path(__file__).parents[2]
WORK = """
import sys
from pathlib import Path
import ray
from mpa_ray.config import Config, ModelSection
from mpa_ray.images.sources import source_of
from mpa_ray.storage.lease import Lease
from mpa_ray.steps.annotate_and_identify import annotate_and_identify
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.storage.folder import Folder
from scale import generate

place = Path(sys.argv[1])
generate(place / "images", 32 * 10 * 32, 64)
def model(engine, actors):
    shares = {"gpus_per_replica": 0, "cpus_per_replica": 0.01, "min_replicas": actors}
    return ModelSection(model="x", engine=engine, images_in_flight=16, **shares)
svlm = model("instant:svlm", 8).model_copy(update={"images_in_flight": 512})
models = {"lvlm": model("instant:lvlm", 32), "svlm": svlm}
folders = {"images": str(place / "images"), "output": str(place / "run")}
config = Config(**folders, images_per_part=32, **models)
output = Folder.at(config.output)
source = source_of(config, output)
with ray_session():
    assert ray.cluster_resources()["CPU"] == 2
    annotate_and_identify(config, output, source, Lease())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    os.cpu_count() != 2, reason="Ray takes the machine's cores, and two are where they are short"
)
def test_finished_parts_are_committed_while_others_are_read(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(tmp_path)],
        env=environment | {"PYTHONPATH": path, "INSTANT_SECONDS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    times = sorted(commit["committed"] for commit in commits.commits(Folder.at(tmp_path / "run")))
    assert len(times) == 32 * 10
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps) < (times[-1] - times[0]) / 3, (
        "parts were finished all the time, and none was committed for a third of it"
    )
