"""What a run starts from: images to annotate, annotations from elsewhere that are only to be judged, or a parity set to train on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet

from mpa_ray import parts
from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.inputs import manifest
from mpa_ray.inputs.manifest import Manifest
from mpa_ray.schema import ANNOTATED_ROW, ANNOTATIONS, PARITY, SOURCE_ROW
from mpa_ray.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Source:
    """Numbered parts, and how one is read.

    Attributes:
        parts: how many there are.
        rows: images, or annotations where those are the input.
        unit: what a row is, for people.
        read: a part's rows, of `schema`.
        schema: SOURCE_ROW, or ANNOTATED_ROW where the Pseudo Annotator's work is done already.
        needs_lvlm: the L-VLM has something to do: to annotate, or to answer questions it did not ask itself.
    """

    parts: int
    rows: int
    unit: str
    read: Callable[[int], pa.Table]
    schema: pa.Schema
    needs_lvlm: bool = True

    @property
    def is_annotated(self) -> bool:
        return self.schema is ANNOTATED_ROW


def source_of(config: Config, output: Folder) -> Source:
    """The run's input, listed and checked.

    Raises:
        ConfigurationError: it is not there, empty, or no annotations folder.
    """
    return _annotations(config) if config.annotations else _images(config, output)


def listed_images(config: Config, output: Folder) -> Manifest:
    """The list of `config.images` in `output`; made where there is none yet. Raises what `manifest.build` does."""
    folder = output.child("manifest")
    return manifest.load(folder, source=config.images) or manifest.build(
        config.images,
        folder,
        images_per_part=config.images_per_part,
        bytes_per_part=config.bytes_per_part,
        max_image_bytes=config.max_image_bytes,
    )


def _images(config: Config, output: Folder) -> Source:
    listed = listed_images(config, output)
    read = partial(parts.read_images, manifest=listed, max_image_bytes=config.max_image_bytes)
    return Source(parts=listed.parts, rows=listed.images, unit="images", read=read, schema=SOURCE_ROW)


def _annotations(config: Config) -> Source:
    assert config.annotations is not None
    folder = Folder.at(config.annotations)
    given = f"annotations={config.annotations!r}"
    rows = _rows_of(
        folder, ANNOTATIONS, given, "the annotations/ folder of a run or an import", "jobs/import_annotations.py makes such files"
    )
    names = folder.names(".parquet")
    read = partial(parts.read_annotations, annotations=folder, names=names, max_image_bytes=config.max_image_bytes)
    needs_lvlm = any(folder.read_table(name, ["lvlm_answer"]).column(0).null_count for name in names)
    return Source(parts=len(names), rows=rows, unit="annotations", read=read, schema=ANNOTATED_ROW, needs_lvlm=needs_lvlm)


def parity_rows(config: Config) -> int:
    """How many rows the parity set has that the run is given.

    Raises:
        ConfigurationError: it is not there, empty, or no parity set.
    """
    assert config.parity is not None
    given, mend = f"parity={config.parity!r}", "the parity/ folder of a run, or of what jobs/review.py wrote"
    return _rows_of(Folder.at(config.parity), PARITY, given, mend, f"give {mend}")


def _rows_of(folder: Folder, schema: pa.Schema, given: str, what: str, mend: str) -> int:
    names = folder.names(".parquet")
    if not names:
        raise ConfigurationError(f"{given} holds no Parquet file; give {what}")
    rows = 0
    for name in names:
        with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
            file = pyarrow.parquet.ParquetFile(stream)
            lacking = [column for column in schema.names if column not in file.schema_arrow.names]
            if lacking:
                raise ConfigurationError(f"{given}: {name} lacks {', '.join(lacking)}; {mend}")
            rows += file.metadata.num_rows
    return rows
