"""Rows of annotation files, read so that whatever is wrong with one is a ValueError naming the
file, the question's id and the field.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_PER_BATCH = 64


@dataclass(frozen=True)
class Row:
    """A row as annotated, and what its errors are named after."""

    source: Path
    question_id: str
    fields: Mapping[str, Any]

    def error(self, field: str, problem: str) -> ValueError:
        return ValueError(
            f"{self.source}: question_id {self.question_id!r}: field {field!r} {problem}"
        )

    def value(self, field: str) -> Any:
        if self.fields.get(field) is None:
            raise self.error(
                field,
                "is missing; use the annotation file as published, of a split whose labels are"
                " public",
            )
        return self.fields[field]

    def text(self, field: str) -> str:
        value = self.value(field)
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, f"is {value!r}; it must be a non-empty string")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        values = self.value(field)
        if (
            not isinstance(values, Sequence)
            or isinstance(values, str)
            or not all(isinstance(value, str) for value in values)
        ):
            raise self.error(field, f"is {values!r}; it must be a list of strings")
        if not any(value.strip() for value in values):
            raise self.error(field, "has no answer in it; a labeled question needs at least one")
        return tuple(values)

    def image_in(self, folder: str | Path | None, name: str, field: str) -> str:
        if folder is None:
            raise self.error(
                field,
                f"names the file {name!r}, but images_folder is None; give the folder that holds"
                " it",
            )
        path = Path(folder) / name
        if not path.is_file():
            raise self.error(
                field,
                f"leads to {str(path)!r}, which is no file; give the images_folder that holds"
                f" {name!r}",
            )
        return str(path)


def json_rows(path: str | Path, list_field: str | None, *, id_field: str | None) -> Iterator[Row]:
    """The rows under `list_field` of a JSON object, or of a JSON list. Without `id_field` a row's
    id is the file's name and its place.
    """
    source = Path(path)
    with open_annotations(source) as stream:
        try:
            document = json.load(stream)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{source}: is not JSON ({error}); download it again") from error
    rows = document.get(list_field) if isinstance(document, dict) and list_field else document
    if not isinstance(rows, list):
        raise ValueError(
            f"{source}: field {list_field!r} is missing; use the annotation file as published"
        )
    for index, fields in enumerate(rows):
        yield _row(source, index, fields, id_field, default_id=f"{source.stem}-{index}")


def parquet_rows(
    path: str | Path, needed: tuple[str, ...], *, id_field: str | None
) -> Iterator[Row]:
    """The rows of a Parquet file or of a folder of them, a few in memory at a time. Without
    `id_field` a row's id is its place.
    """
    index = 0
    for source in annotation_files(path, "*.parquet"):
        with open_annotations(source) as stream:
            try:
                file = pq.ParquetFile(stream)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{source}: is not Parquet ({error}); write it again") from error
            missing = [column for column in needed if column not in file.schema_arrow.names]
            if missing:
                raise ValueError(
                    f"{source}: field {missing[0]!r} is missing among {file.schema_arrow.names};"
                    " see the reader's layout"
                )
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
                for fields in batch.to_pylist():
                    yield _row(source, index, fields, id_field, default_id=str(index))
                    index += 1


def _row(source: Path, index: int, fields: object, id_field: str | None, *, default_id: str) -> Row:
    if not isinstance(fields, dict):
        raise ValueError(f"{source}: row {index} is {fields!r}; it must be an object")
    if id_field is None:
        return Row(source, default_id, fields)
    question_id = fields.get(id_field)
    if not isinstance(question_id, str | int) or not str(question_id).strip():
        raise ValueError(
            f"{source}: row {index}: field {id_field!r} is {question_id!r}; it must be a string or"
            " an integer"
        )
    return Row(source, str(question_id), fields)


def image_of(row: Row, images_folder: str | Path | None) -> str | bytes:
    """The bytes of an image {bytes, path}, or else the file its path leads to in
    `images_folder`.
    """
    image = row.value("image")
    if not isinstance(image, dict) or not (image.get("bytes") or image.get("path")):
        raise row.error("image", "has neither bytes nor path; it must be a struct with one of them")
    return image.get("bytes") or row.image_in(images_folder, image["path"], "image")


def annotation_files(path: str | Path, pattern: str) -> list[Path]:
    """`path` itself, or the files in it that match `pattern`, sorted."""
    files = sorted(Path(path).glob(pattern)) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise ValueError(
            f"annotations_path is {str(path)!r}, a folder without {pattern}; give the file, or the"
            " folder that holds it"
        )
    return files


def open_annotations(path: Path) -> BinaryIO:
    """The one place that opens annotations, so that another filesystem can be put here."""
    if not path.is_file():
        raise ValueError(
            f"annotations_path is {str(path)!r}, which is no file; give the benchmark's annotation"
            " file"
        )
    return path.open("rb")
