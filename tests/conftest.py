"""What tests share: a Ray of their own, and small inputs rendered on the spot."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from s3 import bucket, s3_port  # noqa: F401

# Before anything imports Ray or transformers: no hub, no token files in the home folder, and a
# short private folder (socket paths are short).
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TMPDIR", tempfile.mkdtemp(prefix="mpa-ray-", dir="/tmp"))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's workers import what a test sends them from the test's own module, which they know by its
# bare name.
_HERE = Path(__file__).parent
_FOLDERS = [
    _HERE,
    _HERE.parent / "benchmarks",
    *sorted(path for path in _HERE.iterdir() if list(path.glob("test_*.py"))),
]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*map(str, _FOLDERS), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs more GPUs than there are. CUDA is not touched: Ray's workers are to have
    it.
    """
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    from mpa_ray.tools.tables.result_file import gpus

    needed, there = marker.kwargs.get("count", 1), len(gpus())
    if there < needed:
        pytest.skip(f"needs {needed} CUDA GPU{'s' * (needed > 1)}, and there are {there} here")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray in this process, with more CPUs on paper than the machine may have: actors must not
    starve the tasks beside them.
    """
    import ray

    from mpa_ray.placement.ray_session import ray_session as session

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400 * 2**20,
        log_to_driver=False,
        logging_level="WARNING",
    )
    with session():
        yield
    ray.shutdown()


def parity_rows(count: int, *, seed: int = 5) -> pa.Table:
    """`count` rendered signs with a true question and answer, as PARITY."""
    from mpa_ray.demo.inputs import BENCHMARK_SEED
    from mpa_ray.demo.render import benchmark_rows
    from mpa_ray.schema import PARITY

    rows = benchmark_rows(kind="sign", count=count, seed=BENCHMARK_SEED + seed)
    fields = [
        {
            "image_id": f"{n:032x}",
            "sample_id": f"{n:032x}-0",
            "image": row["image"],
            "question": row["question"],
            "answer": row["answers"][0],
        }
        for n, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(fields, schema=PARITY)


@pytest.fixture
def parity_folder(tmp_path: Path) -> Path:
    """A folder of 24 training rows in two files."""
    from mpa_ray.storage.folder import Folder

    rows = parity_rows(24)
    folder = Folder.at(tmp_path / "parity")
    folder.write_table("part-00000000.parquet", rows.slice(0, 10))
    folder.write_table("part-00000001.parquet", rows.slice(10))
    return tmp_path / "parity"
