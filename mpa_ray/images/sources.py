"""What a run starts from: images to annotate, annotations from elsewhere that are only to be
judged, or a parity set to train on.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import frozen, manifest, parts, references
from mpa_ray.images.frozen import Frozen
from mpa_ray.images.manifest import Manifest
from mpa_ray.images.uri_lists import place_of
from mpa_ray.schema import ANNOTATED_ROW, ANNOTATIONS, PARITY, SOURCE_ROW
from mpa_ray.storage.folder import Folder, is_remote


@dataclass(frozen=True, kw_only=True)
class Source:
    """Numbered parts, and how one is read.

    Attributes:
        parts: how many there are.
        rows: images, or annotations where those are the input.
        unit: what a row is, for people.
        read: a part's rows, of `schema`.
        schema: SOURCE_ROW, or ANNOTATED_ROW where the Pseudo Annotator's work is done already.
        first_file: the path of a file that is read, where that is on a disk; who reads on another
            host must see it.
        needs_lvlm: the L-VLM has something to do: to annotate, or to answer questions it did not
            ask itself.
    """

    parts: int
    rows: int
    unit: str
    read: Callable[[int], pa.Table]
    schema: pa.Schema
    first_file: str | None = None
    needs_lvlm: bool = True

    @property
    def is_annotated(self) -> bool:
        return self.schema is ANNOTATED_ROW


def source_of(config: Config, output: Folder) -> Source:
    """The run's input, listed and checked.

    Raises:
        ConfigurationError: it is not there, empty, no annotations folder, or not as it was at the
            run's first call.
    """
    return _annotations(config, output) if config.annotations else _images(config, output)


def refuse_output_among_images(config: Config, output: Folder) -> None:
    """Refuse a new output that the images' own list would find.

    Raises:
        ConfigurationError: the output is, or lies below, the folder of the images.
    """
    if not config.images or output.exists("config.json"):
        return
    here, below = (
        place if is_remote(place) else os.path.realpath(place)
        for place in map(place_of, (output.uri, config.images))
    )
    if f"{here}/".startswith(f"{below}/"):
        raise ConfigurationError(
            f"output={config.output!r} lies in images={config.images!r}, and what a run writes"
            " would be taken for images; give a folder beside it"
        )


def listed_images(config: Config, output: Folder) -> Manifest:
    """The list of `config.images` in `output`; made where there is none yet. Raises what
    `manifest.build` does.
    """
    folder = output.child("manifest")
    return manifest.load(folder, source=config.images) or manifest.build(
        config.images,
        folder,
        images_per_part=config.images_per_part,
        bytes_per_part=config.bytes_per_part,
        max_image_bytes=config.max_image_bytes,
        image_roots=config.image_roots,
    )


def _images(config: Config, output: Folder) -> Source:
    listed = listed_images(config, output)
    read = partial(parts.read_images, manifest=listed, max_image_bytes=config.max_image_bytes)
    first = references.local_path(listed.part(0).column("image_uri")[0].as_py())
    return Source(
        parts=listed.parts,
        rows=listed.images,
        unit="images",
        read=read,
        schema=SOURCE_ROW,
        first_file=first,
    )


def _annotations(config: Config, output: Folder) -> Source:
    assert config.annotations is not None
    listed = frozen.frozen(
        Folder.at(config.annotations),
        output.child("manifest"),
        name="annotations",
        schema=ANNOTATIONS,
        what="the annotations/ folder of a run or an import",
        fix="jobs/import_annotations.py makes such files",
    )
    read = partial(
        parts.read_annotations, annotations=listed, max_image_bytes=config.max_image_bytes
    )
    return Source(
        parts=listed.files,
        rows=listed.rows,
        unit="annotations",
        read=read,
        schema=ANNOTATED_ROW,
        first_file=listed.first_file,
        needs_lvlm=listed.unanswered > 0,
    )


def parity_set(config: Config, output: Folder) -> Frozen:
    """The parity set that the run is given.

    Raises:
        ConfigurationError: it is not there, empty, no parity set, or not as it was at the run's
            first call.
    """
    assert config.parity is not None
    what = "the parity/ folder of a run, or of what jobs/review.py wrote"
    return frozen.frozen(
        Folder.at(config.parity),
        output.child("manifest"),
        name="parity",
        schema=PARITY,
        what=what,
        fix=f"give {what}",
        refuses_new=True,
    )
