"""When annotating and identifying is over: every part is there, and what is quarantined was judged
the same way at each call.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from in_process import in_process  # noqa: F401
from run_folders import picture

from mpa_ray.config import Config
from mpa_ray.errors import RunError
from mpa_ray.images.parts import part_name
from mpa_ray.images.sources import source_of
from mpa_ray.schema import ANNOTATIONS, JUDGED_ROW
from mpa_ray.stages import commits
from mpa_ray.steps import annotate_and_identify as step
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

pytestmark = pytest.mark.usefixtures("in_process")


def settings(root: Path, **changes: Any) -> Config:
    model = {"engine": "sure_engine:load", "gpus_per_replica": 0, "images_in_flight": 4}
    tree: dict[str, Any] = {
        "output": str(root / "out"),
        "images_per_part": 8,
        "lvlm": {"model": "l", **model},
        "svlm": {"model": "wrong", **model},
    }
    return Config.model_validate(
        ({} if "annotations" in changes else {"images": str(root / "images")}) | tree | changes
    )


def write_images(root: Path, *, good: int, bad: int = 0) -> None:
    """Bad ones lie evenly among the good ones."""
    (root / "images").mkdir()
    for number in range(good + bad):
        is_bad = bad and number % ((good + bad) // bad) == 0
        (root / "images" / f"{number:04d}.png").write_bytes(
            b"no image" if is_bad else picture(number)
        )


def annotate_and_identify(config: Config) -> dict[str, Any]:
    output = Folder.at(config.output)
    return step.annotate_and_identify(config, output, source_of(config, output), Lease())


def test_a_part_whose_commit_is_not_there_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a node commits to a disk of its own."""
    write_images(tmp_path, good=48)
    config, commit_part = settings(tmp_path), commits.commit_part

    def commit(rows: Any, *, output: Folder, call: float) -> Any:
        odd = rows.column("part")[0].as_py() % 2
        if odd:
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
        return commit_part(
            rows, output=Folder.at(tmp_path / "elsewhere") if odd else output, call=call
        )

    monkeypatch.setattr(commits, "commit_part", commit)
    with pytest.raises(
        RunError,
        match=r"^3 of 6 parts were done and are not in .*/out/commits \(part 1, 3, 5\): do all"
        r" nodes share",
    ):
        annotate_and_identify(config)
    assert not (tmp_path / "out/stages").exists()
    monkeypatch.setattr(commits, "commit_part", commit_part)
    assert annotate_and_identify(config)["images"] == 48


def test_commits_of_something_else_end_the_run(tmp_path: Path) -> None:
    write_images(tmp_path, good=48)
    annotate_and_identify(settings(tmp_path))
    commit = tmp_path / "out/commits" / part_name(2, ".json")
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"images": 7}))
    with pytest.raises(
        RunError, match=r"are about 47 images and the source has 48: .*use a new output"
    ):
        annotate_and_identify(settings(tmp_path))


def test_a_node_without_the_output_commits_nothing(tmp_path: Path) -> None:
    write_images(tmp_path, good=8)
    config = settings(tmp_path)
    output = Folder.at(config.output)
    source = source_of(config, output)
    rows = source.read(0)
    with pytest.raises(
        RunError,
        match=r"the host .* does not see output='.*/nowhere'; give a folder that all hosts share",
    ):
        commits.commit_part(rows, output=Folder.at(tmp_path / "nowhere"), call=1.0)
    (tmp_path / "images").rename(tmp_path / "gone")
    with pytest.raises(RunError, match=r"the host .* does not see images='.*/images'"):
        source.read(0)


def test_too_much_in_quarantine_is_judged_alike_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, good=24, bad=24)
    config = settings(tmp_path, max_quarantined_after=8)
    loaded: list[int] = []
    monkeypatch.setattr(step, "say", lambda line: loaded.append(1) if "loading" in line else None)
    found = []
    for _ in range(4):
        with pytest.raises(
            RunError,
            match=r"of .* images \(50.0%\) are quarantined, more than max_quarantined=0.05",
        ) as error:
            annotate_and_identify(config)
        found.append(str(error.value))
    assert len(loaded) == 1 and len(set(found)) == 1, (
        "a call that is refused again loads nothing and commits nothing"
    )
    assert len(list((tmp_path / "out/commits").iterdir())) == 1
    assert (
        annotate_and_identify(settings(tmp_path, max_quarantined=0.6))["quarantined_images"] == 24
    )


def test_the_last_part_is_judged_too(tmp_path: Path) -> None:
    """Only the last image crosses the bound; the next call must not train on what this one
    refused.
    """
    write_images(tmp_path, good=19)
    (tmp_path / "images/9999.png").write_bytes(b"no image")
    config = settings(tmp_path, max_quarantined_after=20, max_quarantined=0.04)
    for _ in range(3):
        with pytest.raises(RunError, match=r"1 of 20 images \(5.0%\) are quarantined"):
            annotate_and_identify(config)
    assert not (tmp_path / "out/stages").exists()


def test_few_images_prove_nothing(tmp_path: Path) -> None:
    write_images(tmp_path, good=8, bad=8)
    assert annotate_and_identify(settings(tmp_path))["quarantined"] == {"images/not_an_image": 8}


def test_images_are_compared_with_images(tmp_path: Path) -> None:
    """Of four questions about each image two come to nothing, and every image keeps its other
    two.
    """
    write_images(tmp_path, good=24)
    changes = {
        "annotate": {"questions_per_image": 4},
        "max_quarantined_after": 8,
        "lvlm": {"model": "half", "engine": "sure_engine:load"},
    }
    data = annotate_and_identify(settings(tmp_path, **changes))
    assert (data["images"], data["annotations"], data["quarantined_images"]) == (24, 48, 0)
    assert sum(data["quarantined"].values()) == 48


def test_annotations_are_compared_with_annotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of 100 images are gone, each with four annotations: 2% of the rows as of the images."""
    write_images(tmp_path, good=100)
    row = dict.fromkeys(ANNOTATIONS.names) | {
        "question": "What is it?",
        "answer": "a sign",
        "lvlm_answer": "a sign",
    }
    rows = [
        row
        | {
            "image_id": f"{image}",
            "image_uri": f"{tmp_path}/images/{image:04d}.png",
            "sample_id": f"{image}-{number}",
        }
        for image in range(100)
        for number in range(4)
    ]
    folder = Folder.at(tmp_path / "annotations")
    for part in range(10):
        folder.write_table(
            part_name(part),
            pa.Table.from_pylist(rows[40 * part : 40 * part + 40], schema=ANNOTATIONS),
        )
    for image in (3, 77):
        (tmp_path / f"images/{image:04d}.png").unlink()
    changes = {"annotations": folder.uri, "max_quarantined_after": 10}
    with pytest.raises(
        RunError,
        match=r"[48] of \d+ annotations \(.*%\) are quarantined, more than max_quarantined=0.01",
    ):
        annotate_and_identify(settings(tmp_path, **changes, max_quarantined=0.01))
    changes["max_quarantined_after"] = 400
    data = annotate_and_identify(settings(tmp_path, **changes, max_quarantined=0.05))
    assert (data["annotations"], data["quarantined"]) == (392, {"images/missing": 8})
    assert "identify: 400 of 400 annotations, 8 quarantined" in capsys.readouterr().out


def test_what_is_named_twice_is_no_loss(tmp_path: Path) -> None:
    """The layout of `datasets`: a folder of images, and a Parquet file that names them."""
    write_images(tmp_path, good=16)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    Folder.at(tmp_path / "images").write_table(
        "metadata.parquet", pa.table({"file_name": names, "text": names})
    )
    data = annotate_and_identify(settings(tmp_path, max_quarantined_after=4))
    assert (data["images"], data["annotations"], data["quarantined"]) == (
        32,
        16,
        {"images/duplicate_reference": 16},
    )


@pytest.mark.parametrize("moment", range(9))
def test_an_attempt_that_wakes_up_late_mixes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Another attempt is made and commits at some moment of the first: before or after a write of
    it.
    """
    write_images(tmp_path, good=8)
    annotate_and_identify(settings(tmp_path))
    one, other = (with_questions(judged_rows(tmp_path / "out"), text) for text in ("one", "other"))
    output = Folder.at(tmp_path / "second")
    output.write_bytes("made", b"")
    replace, moments = commits._replace, iter(range(8))

    def look_away() -> None:
        if next(moments, None) == moment:
            with monkeypatch.context() as patch:
                patch.setattr(commits, "_replace", replace)
                commits.commit_part(other, output=output, call=2.0)

    def slowly(*arguments: Any) -> None:
        look_away()
        replace(*arguments)
        look_away()

    monkeypatch.setattr(commits, "_replace", slowly)
    commits.commit_part(one, output=output, call=1.0)
    found = {column(output, name) for name in ("annotations", "parity", "judgements")}
    assert len(found) == 1
    assert (
        output.read_json(f"commits/{part_name(0, '.json')}")["call"]
        == {"one": 1.0, "other": 2.0}[found.pop()]
    )


def column(output: Folder, name: str) -> str:
    [question] = {*output.read_table(f"{name}/{part_name(0)}", ["question"]).column(0).to_pylist()}
    return question


def judged_rows(output: Path) -> list[dict[str, Any]]:
    rows = Folder.at(output).read_table(f"judgements/{part_name(0)}").to_pylist()
    nothing = {
        "part": 0,
        "draw_key": None,
        "stage": None,
        "reason": None,
        "detail": None,
        "verdict": "parity",
    }
    return [row | nothing | {"image": Path(row["image_uri"]).read_bytes()} for row in rows]


def with_questions(rows: list[dict[str, Any]], text: str) -> pa.Table:
    return pa.Table.from_pylist([row | {"question": text} for row in rows], schema=JUDGED_ROW)
