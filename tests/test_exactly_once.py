"""Random sources, calls that are killed anywhere, sources that change between calls: every input
row ends in exactly one row, and every parity row has the image of its question. What came out is
read with pyarrow alone.
"""

import hashlib
import io
import json
import random
import tarfile
from collections import Counter
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import exactly_once
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exactly_once import End
from PIL import Image

ENGINE = {"engine": "exactly_once:load", "gpus_per_replica": 0}
REFUSED, CANNOT_CONTINUE = 2, 3
CALLS = 12


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that have imported everything, and in which no thread was started before they were
    forked.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["exactly_once", "mpa_ray.pipeline", "ray.data"])
    return context


@pytest.mark.parametrize("seed", range(50))
def test_every_row_ends_once(processes: ForkServerContext, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    source = (Images if seed % 2 else Annotations)(tmp_path, draw)
    settings = source.settings | {
        "output": str(tmp_path / "out"),
        "max_quarantined": 1.0,
        "lvlm": ENGINE | {"model": "l", "images_in_flight": draw.randint(1, 6)},
        "svlm": ENGINE | {"model": "s", "images_in_flight": draw.randint(1, 6)},
    }
    log = tmp_path / "log"

    def call(end: End) -> int | None:
        process = processes.Process(target=exactly_once.call, args=(settings, end, str(log)))
        process.start()
        process.join(120)
        return process.exitcode

    for number in range(CALLS):
        at = (
            draw.choice(["write", "write", "replace", "request", "budget", ""])
            if number < CALLS - 1
            else ""
        )
        end = End(at=at, count=draw.randint(1, 40), order=draw.randint(0, 99))
        status = call(end)
        assert status in (0, -9, CANNOT_CONTINUE), log.read_text()
        if status == 0:
            break
        assert status != CANNOT_CONTINUE or at == "budget", log.read_text()
        if number and (tmp_path / "out/config.json").exists() and (undo := source.change()):
            # What the run reads was changed or taken away: it says so, and resumes when that is put
            # back.
            assert call(End()) == REFUSED, log.read_text()
            undo()
    assert status == 0, log.read_text()
    source.check(tmp_path / "out")


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(Image.open(io.BytesIO(data)).convert("RGB").tobytes()).hexdigest()[:12]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        row
        for path in sorted(folder.glob("*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]


def check_judged(output: Path) -> None:
    """What must hold whatever the source was."""
    annotations, judgements, parity = (
        rows(output / name) for name in ("annotations", "judgements", "parity")
    )
    samples = [row["sample_id"] for row in annotations]
    assert len(samples) == len(set(samples))
    assert sorted(samples) == sorted(row["sample_id"] for row in judgements)
    assert {row["sample_id"]: row["question"] for row in annotations} == {
        row["sample_id"]: row["question"] for row in judgements
    }
    verdicts = {row["sample_id"]: row["verdict"] for row in judgements}
    assert sorted(row["sample_id"] for row in parity) == sorted(
        sample for sample, verdict in verdicts.items() if verdict == "parity"
    )
    for row in parity:
        assert digest(row["image"]["bytes"]) in row["question"], (
            "the image is not the one of its question"
        )
    commits = [json.loads(path.read_text()) for path in (output / "commits").glob("*.json")]
    assert sum(commit["annotations"] for commit in commits) == len(annotations)
    assert sum(sum(commit["quarantined"].values()) for commit in commits) == len(
        rows(output / "quarantine")
    )
    assert not [
        path
        for path in output.rglob("*")
        if path.suffix == ".parquet" and path.parent.name in ("stop", "attempts")
    ]


class Images:
    """A folder of image files, broken ones among them, a tar, Parquet with images, and a list that
    names some again.
    """

    def __init__(self, root: Path, draw: random.Random) -> None:
        self._folder, self._draw = root / "photos", draw
        self._folder.mkdir()
        self._questions = draw.choice([1, 1, 2, 3])
        for number in range(draw.randint(4, 20)):
            self._write(
                f"{draw.choice('abc')}/{number:03d}.png",
                picture(number) if draw.random() < 0.9 else b"no image",
            )
        if draw.random() < 0.5:
            with tarfile.open(self._folder / "t.tar", "w") as archive:
                for number in range(200, 200 + draw.randint(1, 6)):
                    member = tarfile.TarInfo(f"{number}.png")
                    member.size = len(picture(number))
                    archive.addfile(member, io.BytesIO(picture(number)))
        if draw.random() < 0.5:
            table = pa.table(
                {"image": [picture(number) for number in range(300, 300 + draw.randint(1, 6))]}
            )
            pq.write_table(table, self._folder / "rows.parquet", row_group_size=2)
        if draw.random() < 0.3:
            files = sorted(
                str(path.relative_to(self._folder)) for path in self._folder.rglob("*.png")
            )
            pq.write_table(
                pa.table({"file_name": draw.choices([*files, "gone.png"], k=5)}),
                self._folder / "list.parquet",
            )
        self.settings = {
            "images": str(self._folder),
            "images_per_part": draw.randint(1, 7),
            "annotate": {"questions_per_image": self._questions},
            "identify": {"in_one_actor": draw.random() < 0.3},
        }

    def _write(self, name: str, data: bytes) -> None:
        (self._folder / name).parent.mkdir(exist_ok=True)
        (self._folder / name).write_bytes(data)

    def change(self) -> None:
        """Images that come are not of this run; one that goes is missing, if it was not annotated
        before. Neither is refused.
        """
        if self._draw.random() < 0.5:
            self._write(f"a/new-{self._draw.random()}.png", picture(700))
        if self._draw.random() < 0.3:
            self._draw.choice(sorted(self._folder.rglob("*.png"))).unlink()

    def check(self, output: Path) -> None:
        check_judged(output)
        listed = [row["image_id"] for row in rows(output / "manifest")]
        assert len(listed) == len(set(listed)) and not [
            row for row in rows(output / "manifest") if "new-" in row["image_uri"]
        ]
        annotations, quarantine = rows(output / "annotations"), rows(output / "quarantine")
        whole = [row["image_id"] for row in quarantine if row["sample_id"] is None]
        asked = Counter(
            row["image_id"] for row in [*annotations, *quarantine] if row["sample_id"] is not None
        )
        assert len(whole) == len(set(whole)) and not set(whole) & asked.keys()
        assert {*whole, *asked} == set(listed)
        assert set(asked.values()) <= {self._questions}, "every question that was asked has a row"
        samples = [
            row["sample_id"] for row in [*annotations, *quarantine] if row["sample_id"] is not None
        ]
        assert len(samples) == len(set(samples))


TEXTS = (
    "image_id",
    "image_uri",
    "sample_id",
    "question",
    "answer",
    "annotation_text",
    "lvlm_answer",
)
TOKENS = [
    f"{call}_{kind}_tokens"
    for call in ("annotation", "lvlm_answer")
    for kind in ("prompt", "cached", "output")
]
ANNOTATIONS = pa.schema(
    [*((name, pa.string()) for name in TEXTS), *((name, pa.int32()) for name in TOKENS)]
)


class Annotations:
    """A folder of annotations, some without an answer of the L-VLM, of images of which some are
    gone.
    """

    def __init__(self, root: Path, draw: random.Random) -> None:
        self._folder, self._draw = root / "given", draw
        (root / "photos").mkdir()
        self._folder.mkdir()
        self._given: list[str] = []
        self._questions: dict[str, str] = {}
        unanswered = draw.choice([0.0, 0.3, 1.0])
        for part in range(draw.randint(2, 7)):
            found = [
                self._row(root, 20 * part + number, unanswered)
                for number in range(draw.randint(1, 8))
            ]
            pq.write_table(
                pa.Table.from_pylist(found, schema=ANNOTATIONS),
                self._folder / f"part-{10 * part:08d}.parquet",
            )
            self._given += [row["sample_id"] for row in found]
        self.settings = {"annotations": str(self._folder)}

    def _row(self, root: Path, number: int, unanswered: float) -> dict[str, Any]:
        image = root / f"photos/{number:03d}.png"
        if self._draw.random() < 0.95:
            image.write_bytes(picture(number))
        sample_id = f"s-{number}"
        self._questions[sample_id] = f"Is it {digest(picture(number))}?"
        answered = self._draw.random() >= unanswered
        return {
            "image_id": hashlib.sha256(str(image).encode()).hexdigest()[:32],
            "image_uri": str(image),
            "sample_id": sample_id,
            "question": self._questions[sample_id],
            "answer": "yes",
            "lvlm_answer": self._draw.choice(["yes", "no"]) if answered else None,
        }

    def change(self) -> Any:
        """A file that comes is not of this run. One that is gone or changed is refused; the result
        puts it back.
        """
        files = sorted(self._folder.glob("part-*0.parquet"))
        kind = self._draw.choice(["comes", "goes", "changes", "stays"])
        one, other = self._draw.sample(files, 2)
        if kind == "comes":
            later = pq.read_table(one).slice(0, 1)
            later = later.set_column(2, "sample_id", pa.array(["new"]))
            pq.write_table(later, self._folder / f"part-{self._draw.randint(0, 60):07d}5.parquet")
        if kind in ("comes", "stays"):
            return None
        before = one.read_bytes()
        if kind == "goes":
            one.unlink()
        else:
            one.write_bytes(other.read_bytes())
        return lambda: one.write_bytes(before)

    def check(self, output: Path) -> None:
        check_judged(output)
        found = [*rows(output / "annotations"), *rows(output / "quarantine")]
        assert sorted(row["sample_id"] for row in found) == sorted(self._given)
        for row in rows(output / "judgements"):
            assert row["question"] == self._questions[row["sample_id"]]
