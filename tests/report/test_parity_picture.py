"""The picture of parity samples, from whatever images a run had."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mpa_ray.report import parity_picture
from mpa_ray.schema import JUDGEMENTS, PARITY
from mpa_ray.storage.folder import Folder

RED = (255, 0, 0)


def write_part(
    output: Folder,
    number: int,
    images: list[Image.Image],
    *,
    question: str = "What color?",
    said: str | None = "blue",
) -> None:
    parity, judged = [], []
    for place, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        known = {
            "image_id": f"{number}{place}",
            "sample_id": f"{number}{place}-0",
            "question": question,
            "answer": "red",
        }
        parity.append(known | {"image": {"bytes": buffer.getvalue(), "path": "/a.png"}})
        judged.append(known | {"image_uri": "/a.png", "svlm_answer": said})
    output.write_table(
        f"parity/part-{number:08d}.parquet", pa.Table.from_pylist(parity, schema=PARITY)
    )
    # Judgements hold more rows than parity, in their own order.
    others = [{"image_id": "x", "image_uri": "/x.png", "sample_id": "x-0"}]
    output.write_table(
        f"judgements/part-{number:08d}.parquet",
        pa.Table.from_pylist([*others, *reversed(judged)], schema=JUDGEMENTS),
    )


def red_places(folder: Path) -> int:
    """How many of the eight places show a red thumbnail."""
    with Image.open(folder / "report/parity_samples.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 4
    cells = [
        pixels[row * height :, column * width :][:height, :width]
        for row in range(2)
        for column in range(4)
    ]
    return sum(bool((cell == RED).all(-1).sum() > 150) for cell in cells)


@pytest.mark.parametrize(
    ("parts", "each", "shown"), [(1, 1, 1), (1, 12, 8), (3, 2, 6), (5, 3, 8), (12, 1, 8)]
)
def test_eight_samples_or_as_many_as_there_are(
    tmp_path: Path, parts: int, each: int, shown: int
) -> None:
    for number in range(parts):
        write_part(Folder.at(tmp_path), number, [Image.new("RGB", (40, 40), RED)] * each)
    parity_picture(Folder.at(tmp_path))
    assert red_places(tmp_path) == shown


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (3000, 2000), RED),
        Image.new("RGB", (8, 4000), RED),
        Image.new("RGB", (4000, 8), RED),
        Image.new("RGBA", (40, 40), (*RED, 255)),
        Image.new("P", (40, 40)),
        Image.fromarray(np.full((40, 40), 3000, np.uint16)),
    ],
    ids=["large", "tall line", "long line", "with transparency", "palette", "16-bit"],
)
def test_images_of_every_shape_and_kind_are_drawn(tmp_path: Path, image: Image.Image) -> None:
    write_part(Folder.at(tmp_path), 0, [image])
    parity_picture(Folder.at(tmp_path))
    assert (tmp_path / "report/parity_samples.png").stat().st_size > 500


@pytest.mark.parametrize("question", ["Was für ein Schild? 图 🎉", "x" * 300, "words " * 60, ""])
def test_any_text_is_drawn(tmp_path: Path, question: str) -> None:
    write_part(
        Folder.at(tmp_path), 0, [Image.new("RGB", (40, 40), RED)], question=question, said=None
    )
    parity_picture(Folder.at(tmp_path))
    assert red_places(tmp_path) == 1


def test_no_sample_is_an_empty_picture(tmp_path: Path) -> None:
    parity_picture(Folder.at(tmp_path))
    assert red_places(tmp_path) == 0
