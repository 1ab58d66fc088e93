"""An S3 that is busy, breaks off, loses answers, is slow or read-only: nothing is lost, nothing
half is taken for whole.
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from accounting import assert_accounted_for, column
from job import Job
from mpa_ray.demo.render import write_images
from mpa_ray.errors import ConfigurationError, RunError, StorageError
from mpa_ray.images import manifest
from mpa_ray.schema import MANIFEST
from mpa_ray.storage import folder as storage
from mpa_ray.storage import lease as leases
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import lease
from s3 import environment, put, settings
from s3_proxy import Fault, Proxy


def at_random(share: float, *faults: str, seed: int = 0) -> Fault:
    draw = random.Random(seed)
    return lambda method, path: draw.choice(faults) if draw.random() < share else None


Through = Callable[[Fault], AbstractContextManager[tuple[str, Proxy]]]


@pytest.fixture
def through(s3_port: int) -> Through:
    """A bucket behind a proxy with the given fault, and the environment of this process set to
    it.
    """

    @contextmanager
    def opened(fault: Fault) -> Iterator[tuple[str, Proxy]]:
        name = f"faults-{uuid.uuid4().hex[:12]}"
        with environment(s3_port):
            s3.client().create_bucket(Bucket=name)
        with Proxy(s3_port, fault) as proxy, environment(proxy.port):
            yield name, proxy

    return opened


def test_a_folder_outlasts_faults_of_every_kind(
    through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with through(at_random(0.2, "slow_down", "reset", "truncate", "lost")) as (bucket, proxy):
        folder = Folder.at(f"s3://{bucket}/run")
        tables = {
            f"part-{n:08d}.parquet": pa.table({"n": list(range(n * 100, n * 100 + 100))})
            for n in range(30)
        }
        for name, table in tables.items():
            folder.write_table(name, table)
        folder.write_json("x.json", {"a": 1})
        assert folder.names(".parquet") == sorted(tables)
        assert all(folder.read_table(name) == table for name, table in tables.items())
        assert folder.read_json("x.json") == {"a": 1}
        folder.delete("x.json")
        assert not folder.exists("x.json")
        assert len(proxy.faults) >= 3 and sum(proxy.faults.values()) > 20, proxy.faults


def test_a_read_only_bucket_is_said_and_holds_nothing(
    through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with through(lambda method, path: "read_only") as (bucket, _):
        folder = Folder.at(f"s3://{bucket}/run")
        with pytest.raises(
            StorageError,
            match=rf"s3://{bucket}/run/x.json: .*ACCESS_DENIED.*tried 7 times. Fix the storage",
        ):
            folder.write_json("x.json", {"a": 1})
        assert not folder.exists("x.json")


def test_a_part_of_the_list_is_read_however_busy_the_service_is(
    through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow by itself asks some 30 times within 6 s, and then gives up."""
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    busy = iter(())
    with through(lambda method, path: next(busy, None) if "00000.parquet" in path else None) as (
        bucket,
        proxy,
    ):
        folder = Folder.at(f"s3://{bucket}/run/manifest")
        parts = [
            pa.table({"image_uri": [f"/photos/{part}-{n}.png" for n in range(3)]})
            for part in range(2)
        ]
        listed = manifest.write(parts, folder, source="/photos", root="/photos", schema=MANIFEST)
        busy = iter(["slow_down"] * 45)
        assert (
            listed.part(1).column("image_uri").to_pylist()
            == parts[1].column("image_uri").to_pylist()
        )
        assert proxy.faults["slow_down"] == 45


@pytest.fixture
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.3)
    monkeypatch.setattr(leases, "EXPIRES_AFTER_S", 2.5)


@pytest.mark.usefixtures("quick_lease")
def test_the_lease_is_one_runs_alone(bucket: str) -> None:
    output = Folder.at(f"s3://{bucket}/run")
    with lease(output) as held:
        with pytest.raises(ConfigurationError, match="in use by process"), lease(output):
            pass
        held.check()
    with lease(output) as held:
        held.check()
    assert not output.exists("lease.json")


@pytest.mark.usefixtures("quick_lease")
def test_a_lease_that_nobody_renews_is_taken_over_and_its_holder_told(bucket: str) -> None:
    output = Folder.at(f"s3://{bucket}/run")
    output.write_json("lease.json", {"holder": "process 1 on a machine that is gone", "token": "x"})
    with pytest.raises(RunError, match="taken over"), lease(output):
        output.write_json("lease.json", {"holder": "another", "token": "y"})
        time.sleep(30)
        pytest.fail("it continued")
    assert output.read_json("lease.json")["holder"] == "another"


@pytest.mark.usefixtures("quick_lease")
def test_a_lease_whose_answer_was_lost_is_known_as_ones_own(through: Through) -> None:
    answers = iter(["lost"])
    with through(lambda method, path: next(answers, None) if method == "PUT" else None) as (
        bucket,
        proxy,
    ):
        with lease(Folder.at(f"s3://{bucket}/run")) as held:
            held.check()
        assert proxy.faults["lost"] == 1


@pytest.mark.slow
def test_a_run_in_s3_outlasts_faults(through: Through, s3_port: int, tmp_path: Path) -> None:
    """From rendered images in the bucket to the trained model in it."""
    with through(at_random(0.03, "slow_down", "reset", "truncate", "lost", "slow", seed=1)) as (
        bucket,
        proxy,
    ):
        write_images(tmp_path / "images", kind="sign", count=96, seed=0)
        put(
            bucket,
            {f"images/{path.name}": path.read_bytes() for path in (tmp_path / "images").iterdir()},
        )
        place = {"output": f"s3://{bucket}/run", "source": f"s3://{bucket}/images"}
        run = Job(**place, log=tmp_path / "log", environment=settings(proxy.port), images=96)
        run.finish(calls=2)
        assert sum(proxy.faults.values()) > 5, proxy.faults
    with environment(s3_port):
        output = Folder.at(f"s3://{bucket}/run")
        assert_accounted_for(output)
        assert len(column(output.child("annotations"), "image_id")) == 96
        assert output.exists("model/model.safetensors") and not output.exists("lease.json")
