import io
import json
import subprocess
import sys
import tarfile

import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.images.decode import image_id_of
from mpa_ray.schema import ANNOTATIONS
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.exchange.exports import export
from mpa_ray.tools.exchange.imports import ImageIndex, import_annotations
from tests.run_folders import judged, picture, rows_of, write_run


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name in (
        "train2014/a.jpg",
        "coco-text/a.jpg",
        "b.png",
        "100%#1.png",
        "both.png",
        "both.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    (tmp_path / "secret.jpg").write_bytes(picture())
    return folder


def annotations(tmp_path, rows):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    return str(path)


def record(image, **changes):
    return {
        "image_path": image,
        "predicted_question": "What is it",
        "predicted_answer": "red",
    } | changes


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/workspace/data/train2014/a.jpg", "train2014/a.jpg"),
        ("/workspace/data/coco-text/a.jpg", "coco-text/a.jpg"),
        ("C:\\data\\coco-text\\a.jpg", "coco-text/a.jpg"),
        ("./b.png", "b.png"),
        ("b", "b.png"),
        ("100%#1.png", "100%25%231.png"),
        ("a.jpg", None),
        ("both", None),
        ("both.jpg", "both.jpg"),
        ("../secret.jpg", None),
        ("train2014/../../secret.jpg", None),
        ("/etc/passwd", None),
        ("", None),
    ],
)
def test_images_are_found_by_the_end_of_their_path(images, name, found):
    assert ImageIndex(str(images)).find(name) == (f"{images}/{found}" if found else None)


def test_images_in_a_tar(tmp_path):
    for number in (1, 2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            member = tarfile.TarInfo(f"train/{number}.jpg")
            member.size = len(picture())
            archive.addfile(member, io.BytesIO(picture()))
    assert "member=train/1.jpg" in ImageIndex(str(tmp_path)).find("/data/train/1.jpg")
    (tmp_path / "again.tar").write_bytes((tmp_path / "1.tar").read_bytes())
    with pytest.raises(ConfigurationError, match=r"train/1\.jpg is in two tars"):
        ImageIndex(str(tmp_path))


def test_an_import(tmp_path, images):
    rows = [record("/x/train2014/a.jpg")] * 2 + [
        record("b.png", predicted_answer=None),
        record("nowhere.jpg"),
        {"odd": 1},
    ]
    output = Folder.at(tmp_path / "out")
    result = import_annotations(annotations(tmp_path, rows), str(images), output)
    assert (result["records"], result["annotations"]) == (5, 2)
    assert result["quarantined"] == {
        "pseudo_annotator/unparsable_annotation": 2,
        "images/missing": 1,
    }
    assert output.read_json("import.json") == result
    (table,) = output.child("annotations").tables()
    assert table.schema.equals(ANNOTATIONS)
    first, second = table.to_pylist()
    assert first["image_id"] == image_id_of(f"{images}/train2014/a.jpg")
    assert (first["question"], first["answer"], first["lvlm_answer"]) == (
        "What is it?",
        "red",
        None,
    )
    assert first["sample_id"] != second["sample_id"]
    details = [row["detail"] for row in rows_of(output.child("quarantine"))]
    assert details[0] == "predicted_answer is null; it must be a text"
    assert details[1] == "record 3: no image of this name"
    assert details[2].startswith("record 4: a record has the keys 'odd'; needed are one of image, ")


def test_parts_are_of_a_bounded_size(tmp_path, images):
    output = Folder.at(tmp_path / "out")
    import_annotations(annotations(tmp_path, [record("b.png")] * 600), str(images), output)
    assert [table.num_rows for table in output.child("annotations").tables()] == [256, 256, 88]
    assert len({row["sample_id"] for row in rows_of(output.child("annotations"))}) == 600


def test_what_was_exported_can_be_imported(tmp_path):
    sample = judged(
        f"{tmp_path}/images/a.png",
        question="What color is it?",
        answer="red",
        lvlm="red",
        svlm="blue",
        verdict="parity",
    )
    run = write_run(tmp_path / "run", [[sample]])
    export(run, Folder.at(tmp_path / "llava"), layout="llava")
    output = Folder.at(tmp_path / "out")
    import_annotations(f"{tmp_path}/llava/train.json", f"{tmp_path}/llava", output)
    (row,) = rows_of(output.child("annotations"))
    assert (row["question"], row["answer"]) == ("What color is it?", "red")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "it holds no record"),
        ([7], "a record is int and not an object"),
        (
            [{"picture": "a", "q": "b"}],
            "a record has the keys 'picture', 'q'; needed are one of image, .*Rename its keys",
        ),
        (
            [record("no.jpg"), record("nor.jpg")],
            r"none of 2 records can be used \(images/missing 2\)",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(tmp_path, images, rows, message):
    with pytest.raises(ConfigurationError, match=message):
        import_annotations(annotations(tmp_path, rows), str(images), Folder.at(tmp_path / "out"))
    assert not (tmp_path / "out" / "import.json").exists()


def test_the_job(tmp_path, images):
    arguments = [
        "--annotations",
        annotations(tmp_path, [record("b.png")]),
        "--images",
        str(images),
        "--output",
        f"{tmp_path}/out",
    ]
    jobs = [
        subprocess.run(
            [sys.executable, "jobs/import_annotations.py", *arguments],
            capture_output=True,
            text=True,
        )
        for _ in range(2)
    ]
    assert [(job.returncode, job.stdout) for job in jobs] == [
        (0, "1 annotations of 1 records\n"),
        (2, ""),
    ]
