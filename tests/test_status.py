"""How far a run is, told by its output."""

from pathlib import Path

import pyarrow as pa
import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.inputs import manifest
from mpa_ray.schema import MANIFEST
from mpa_ray.status import recent_rate, status
from mpa_ray.storage import Folder


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
    tables = [pa.table({"image_uri": [f"/{part}-{n}.png" for n in range(10)]}) for part in range(parts)]
    manifest.write(iter(tables), output.child("manifest"), source="x", root="x", schema=MANIFEST)
    for one in commits:
        output.write_json(f"commits/part-{one['part']:08d}.json", one)
    return output


def test_a_run_under_way_says_what_is_done_the_rate_and_the_time_to_go(tmp_path: Path) -> None:
    output = run_of(tmp_path, commit(0, committed=1100.0), commit(1, committed=1110.0), commit(3, committed=1120.0))
    output.write_json("checkpoints/mpa/progress.json", {"samples": 64, "of": 128, "loss": 0.5, "tokens_per_second": 1234.5})
    lines = status(output, now=1150.0).splitlines()
    assert lines[1] == "images: 30 of 50 in 3 of 5 parts, 1.0/s, 20 s to go; newest part 30 s ago"
    assert "quarantined: 3 images/truncated" in lines and "verdict: 9 parity (33.3%)" in lines
    assert lines[-1] == "training mpa: 64 of 128 samples, loss 0.500, 1,234 tokens/s"


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    output = run_of(tmp_path, commit(0, committed=1100.0), parts=1)
    output.write_json("stages/train_mpa.json", {"seconds": 75.0})
    output.write_json("run.json", {})
    lines = status(output, now=2000.0).splitlines()
    assert lines[0].endswith("(finished)") and lines[1] == "images: 10 of 10 in 1 of 1 parts"
    assert lines[-1] == "done: train_mpa in 1 min 15 s"


def test_the_rate_is_of_the_newest_call_and_its_newest_minutes() -> None:
    earlier = [commit(n, committed=100.0 + n, call=90.0) for n in range(50)]
    slow_start = [commit(50, committed=5000.0), commit(51, committed=7000.0)]
    recent = [commit(52 + n, committed=7010.0 + 10 * n) for n in range(4)]
    assert recent_rate(earlier + slow_start + recent) == pytest.approx(1.0)
    assert recent_rate([commit(0, committed=5.0)]) == 0.0 == recent_rate([])


def test_where_there_is_no_run_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no run"):
        status(Folder.at(tmp_path))
