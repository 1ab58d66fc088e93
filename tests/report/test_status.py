"""How far a run is, told by its output."""

from pathlib import Path

import pyarrow as pa
import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.images import manifest
from mpa_ray.report.status import recent_rate, status
from mpa_ray.schema import MANIFEST
from mpa_ray.storage.folder import Folder


def commit(part: int, *, committed: float, call: float = 1000.0, images: int = 10) -> dict:
    verdicts = {"parity": 3, "svlm_correct": 6}
    quarantined = {"images/truncated": 1}
    return {
        "part": part,
        "images": images,
        "annotations": 9,
        "quarantined": quarantined,
        "verdicts": verdicts,
        "tokens": {},
        "call": call,
        "committed": committed,
    }


def run_of(tmp_path: Path, *commits: dict, parts: int = 5) -> Folder:
    output = Folder.at(tmp_path / "run")
    output.write_json("config.json", {})
    tables = [
        pa.table({"image_uri": [f"/{part}-{n}.png" for n in range(10)]}) for part in range(parts)
    ]
    manifest.write(iter(tables), output.child("manifest"), source="x", root="x", schema=MANIFEST)
    for one in commits:
        output.write_json(f"commits/part-{one['part']:08d}.json", one)
    return output


def test_a_run_under_way_says_what_is_done_the_rate_and_the_time_to_go(tmp_path: Path) -> None:
    output = run_of(
        tmp_path,
        commit(0, committed=1100.0),
        commit(1, committed=1110.0),
        commit(3, committed=1120.0),
    )
    progress = {"samples": 64, "of": 128, "loss": 0.5, "tokens_per_second": 1234.5}
    output.write_json("checkpoints/mpa/progress.json", progress | {"written": 1000.0})
    output.write_json("checkpoints/older/progress.json", progress)
    lines = status(output, now=1150.0).splitlines()
    assert lines[1] == "images: 30 of 50 in 3 of 5 parts, 1.0/s, 20 s to go; newest part 30 s ago"
    assert "quarantined: 3 images/truncated" in lines and "verdict: 9 parity (33.3%)" in lines
    assert lines[-2:] == [
        "training mpa: 64 of 128 samples, loss 0.500, 1,234 tokens/s; written 2 min 30 s ago",
        "training older: 64 of 128 samples, loss 0.500, 1,234 tokens/s",
    ]


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    output = run_of(tmp_path, commit(0, committed=1100.0), parts=1)
    output.write_json("stages/train_mpa.json", {"seconds": 75.0})
    output.write_json("run.json", {})
    lines = status(output, now=2000.0).splitlines()
    assert lines[0].endswith("(finished)") and lines[1] == "images: 10 of 10 in 1 of 1 parts"
    assert lines[-1] == "done: train_mpa in 1 min 15 s"


def test_a_run_from_a_parity_set_has_no_list_of_images(tmp_path: Path) -> None:
    output = Folder.at(tmp_path / "run")
    output.write_json("config.json", {"parity": "s3://bucket/parity"})
    output.write_json("stages/train_mpa.json", {"seconds": 75.0})
    assert status(output).splitlines()[1:] == [
        "parity set: s3://bucket/parity",
        "done: train_mpa in 1 min 15 s",
    ]
    output.write_json("run.json", {"annotations": 3500})
    assert status(output).splitlines()[1] == "parity set of 3,500 rows: s3://bucket/parity"


def test_a_run_of_rounds_shows_all_of_them_and_each_that_began(tmp_path: Path) -> None:
    output = run_of(tmp_path, parts=12)
    for number, (commits, parts) in enumerate([(3, 3), (2, 3), (0, 3)], 1):
        done = [
            commit(part, committed=1100.0 + 10 * part, call=1000.0 * number)
            for part in range(commits)
        ]
        made = run_of(tmp_path / str(number), *done, parts=parts)
        made.filesystem.create_dir(output.child("rounds").path, recursive=True)
        made.filesystem.move(made.path, output.child(f"rounds/{number}").path)
    output.child("rounds/1").write_json("run.json", {})
    output.child("rounds/1").write_json("stages/train_mpa.json", {"seconds": 75.0})
    output.child("rounds/3").delete("config.json")
    lines = status(output, now=1150.0).splitlines()
    assert (
        lines[1].startswith("images: 50 of 120 in 5 of 12 parts, 1.0/s")
        and "verdict: 15 parity (33.3%)" in lines
    )
    first, second = (
        lines.index(
            next(line for line in lines if line.startswith(f"round {number} of at most 3: "))
        )
        for number in (1, 2)
    )
    assert (
        lines[first].endswith("/run/rounds/1  (finished)")
        and lines[first + 1] == "  images: 30 of 30 in 3 of 3 parts"
    )
    assert "  done: train_mpa in 1 min 15 s" in lines[first:second]
    assert lines[second].endswith("/run/rounds/2") and lines[second + 1].startswith(
        "  images: 20 of 30 in 2 of 3 parts, 1.0/s, 10 s to go"
    )
    assert not any("round 3" in line for line in lines), "only its list is there"
    output.write_json("run.json", {})
    assert status(output, now=1150.0).splitlines()[1] == "images: 50 of 120 in 5 of 12 parts", (
        "rounds may end early"
    )


def test_the_rate_is_of_the_newest_call_and_its_newest_minutes() -> None:
    earlier = [commit(n, committed=100.0 + n, call=90.0) for n in range(50)]
    slow_start = [commit(50, committed=5000.0), commit(51, committed=7000.0)]
    recent = [commit(52 + n, committed=7010.0 + 10 * n) for n in range(4)]
    assert recent_rate(earlier + slow_start + recent) == pytest.approx(1.0)
    assert recent_rate([commit(0, committed=5.0)]) == 0.0 == recent_rate([])


def test_where_there_is_no_run_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no run"):
        status(Folder.at(tmp_path))
