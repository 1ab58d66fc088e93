"""Training curves in TensorBoard, W&B and MLflow, as their own libraries keep them."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.storage.folder import Folder
from mpa_ray.training import tracking
from mpa_ray.training.tracking import Tracking, trackers

ROOT = Path(__file__).parents[2]


def points(folder: Folder) -> dict[str, dict[int, float]]:
    """Name -> step -> value, as TensorBoard shows them: files in order, points that a later file
    purges left out.
    """
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for name in folder.names():
        data, place = folder.read_bytes(name), 0
        while place < len(data):
            # TFRecord: the length, its checksum, the record, its checksum.
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 12 + length + 4
            if event.session_log.status == event.session_log.START:
                found = {
                    tag: {step: value for step, value in curve.items() if step < event.step}
                    for tag, curve in found.items()
                }
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def train(folder: Folder, steps: range, *, kept: int) -> None:
    """Logs steps, is lost after the last, and had kept those up to `kept`."""
    [tracker] = trackers(
        Tracking(names=("tensorboard",), folder=folder, run="r"), settings={}, done=steps.start - 1
    )
    for step in steps:
        tracker.log(step, {"loss_per_sample": float(step), "learning_rate": 0.5})
        if step == kept:
            tracker.keep()
    if kept == steps[-1]:
        tracker.close()


def test_tensorboard_shows_a_training_that_went_on_as_one_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    folder = Folder.at(tmp_path / "tensorboard/mpa")
    train(folder, range(1, 9), kept=6)
    # Event files are named by the second.
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    train(folder, range(5, 11), kept=10)
    curve = points(folder)
    assert curve["loss_per_sample"] == {step: float(step) for step in range(1, 11)}
    assert len(folder.names()) == 2 and curve["learning_rate"].keys() == set(range(1, 11))


def test_all_that_was_logged_is_kept_when_the_worker_is_lost_at_that_moment(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "tensorboard/mpa")
    train(folder, range(1, 500), kept=498)
    curve = points(folder)
    assert all(
        curve[name].keys() == set(range(1, 499)) for name in ("loss_per_sample", "learning_rate")
    )


def test_tensorboards_files_lie_in_s3_where_the_output_does(bucket: str) -> None:
    folder = Folder.at(f"s3://{bucket}/run1/tensorboard/mpa")
    train(folder, range(1, 4), kept=3)
    assert points(folder)["loss_per_sample"] == {1: 1.0, 2: 2.0, 3: 3.0}


def test_without_a_folder_or_a_name_nothing_is_tracked() -> None:
    assert trackers(Tracking(names=("tensorboard",)), settings={}, done=0) == []
    assert trackers(Tracking(), settings={}, done=0) == []


def test_what_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking._PACKAGES, "wandb", "no_such_package_here")
    tracking.check(["tensorboard"])
    with pytest.raises(
        ConfigurationError,
        match=r"pl.tracking=wandb: no_such_package_here is not installed; pip install"
        r" 'mpa_ray\[wandb\]'",
    ):
        tracking.check(["tensorboard", "wandb"])


SCRIPT = """
import sys
from mpa_ray.training.tracking import Tracking, trackers
for first in (1, 3):
    tracking = Tracking(names=(sys.argv[1],), run="run1-ab-mpa")
    [tracker] = trackers(tracking, settings={"learning_rate": 1e-5}, done=first - 1)
    for step in range(first, first + 2):
        tracker.log(step, {"loss_per_sample": 10.0 - step, "learning_rate": 0.5})
        tracker.keep()
    tracker.close()
"""


def in_process(name: str, folder: Path, **environment: str) -> None:
    command = [sys.executable, "-c", SCRIPT, name]
    settings = (
        os.environ
        | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        | environment
    )
    done = subprocess.run(
        command, cwd=folder, env=settings, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def records(path: Path) -> Iterator[bytes]:
    """The records of W&B's file of a run: LevelDB's log format after a header of 7 bytes, in blocks
    of 32 KiB.
    """
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        # 1: whole, 2: the first piece, 3: one in between, 4: the last.
        if kind in (1, 4):
            yield whole
            whole = b""


def test_wandb_keeps_an_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    in_process(
        "wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true"
    )
    from wandb.proto.wandb_internal_pb2 import Record

    rows, names, settings = [], set(), set()
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        for record in map(Record.FromString, records(path)):
            if record.WhichOneof("record_type") == "history":
                rows.append(
                    {
                        item.key or "/".join(item.nested_key): item.value_json
                        for item in record.history.item
                    }
                )
            elif record.WhichOneof("record_type") == "run":
                names.add(record.run.run_id)
                settings |= {
                    (item.key, float(item.value_json))
                    for item in record.run.config.update
                    if item.key == "learning_rate"
                }
    assert names == {"run1-ab-mpa"}, "one run, that continued"
    assert settings == {("learning_rate", 1e-5)}
    assert sorted((int(row["_step"]), float(row["loss_per_sample"])) for row in rows) == [
        (1, 9.0),
        (2, 8.0),
        (3, 7.0),
        (4, 6.0),
    ]


@pytest.mark.parametrize("place", ["file:{}/mlruns", "sqlite:///{}/mlflow.db"])
def test_mlflow_keeps_one_run_of_a_training_that_went_on(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    if place.startswith("sqlite"):
        pytest.importorskip("sqlalchemy", reason="MLflow's databases need it")
    uri = place.format(tmp_path)
    # Files are kept for old users of MLflow alone.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    in_process("mlflow", tmp_path, MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="signs")
    client = mlflow.MlflowClient(tracking_uri=uri)
    [run] = client.search_runs([client.get_experiment_by_name("signs").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params == {"learning_rate": "1e-05"}
    history = client.get_metric_history(run.info.run_id, "loss_per_sample")
    assert [(metric.step, metric.value) for metric in history] == [
        (1, 9.0),
        (2, 8.0),
        (3, 7.0),
        (4, 6.0),
    ]
