"""Small run folders, written as a run writes them."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from mpa_ray.images.decode import image_id_of
from mpa_ray.images.parts import part_name, with_image_struct
from mpa_ray.schema import ANNOTATIONS, JUDGEMENTS, Verdict
from mpa_ray.storage.folder import Folder


def picture(number: int = 0, *, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256 % 256, 90)).save(buffer, kind)
    return buffer.getvalue()


def judged(
    image_uri: str,
    *,
    question: str = "What is it?",
    answer: str,
    lvlm: str,
    svlm: str | None,
    verdict: str,
    number: int = 0,
) -> dict[str, Any]:
    """A row of JUDGEMENTS."""
    image_id = image_id_of(image_uri)
    return {
        "image_id": image_id,
        "image_uri": image_uri,
        "sample_id": f"{image_id}-{number}",
        "question": question,
        "answer": answer,
        "annotation_text": f"Question: {question}, Answer: {answer}",
        "lvlm_answer": lvlm,
        "svlm_answer": svlm,
        "verdict": verdict,
    }


def write_run(folder: Path, parts: list[list[dict[str, Any]]]) -> Folder:
    """annotations/, judgements/ and parity/ of `parts`; images that are not there yet are written
    where their URIs say.
    """
    run = Folder.at(folder)
    for number, rows in enumerate(parts):
        for row in rows:
            path = Path(row["image_uri"])
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(picture(len(list(path.parent.iterdir()))))
        table = pa.Table.from_pylist(rows, schema=JUDGEMENTS)
        run.write_table(f"judgements/{part_name(number)}", table)
        run.write_table(f"annotations/{part_name(number)}", table.select(ANNOTATIONS.names))
        parity = [
            row | {"image": Path(row["image_uri"]).read_bytes()}
            for row in rows
            if row["verdict"] == Verdict.PARITY
        ]
        if parity:
            schema = pa.schema([*JUDGEMENTS, pa.field("image", pa.large_binary())])
            run.write_table(
                f"parity/{part_name(number)}",
                with_image_struct(pa.Table.from_pylist(parity, schema=schema)),
            )
    return run


def rows_of(folder: Folder) -> list[dict[str, Any]]:
    return [row for table in folder.tables() for row in table.to_pylist()]
