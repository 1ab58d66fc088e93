"""What a run reads and writes: the first images, or what takes their place, and the rights at
--output.
"""

import tempfile
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images import decode, finding, references
from mpa_ray.images.decode import UnreadableImage
from mpa_ray.images.sources import parity_set, source_of
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder, is_remote
from mpa_ray.tools.doctor.finding import Finding

_IMAGES_LOOKED_AT = 3


def inputs(config: Config) -> Iterator[Finding]:
    """That there are images, or what takes their place, and that the first of them can be read."""
    try:
        if config.parity or config.annotations:
            yield _files_given(config)
        elif config.images:
            yield from _first_images(config)
        else:
            yield Finding(state="ok", what="images", said="not looked at: no --images")
    except (ConfigurationError, RunError) as error:
        yield Finding(
            state="failed",
            what="images",
            said=str(error),
            fix="look at the path, and at what may be read with these credentials",
        )


def _files_given(config: Config) -> Finding:
    # The list of a run is kept in its output; this one is thrown away.
    with tempfile.TemporaryDirectory() as listed:
        if config.parity:
            return Finding(
                state="ok",
                what="parity",
                said=f"{parity_set(config, Folder.at(listed)).rows:,} rows in {config.parity}",
            )
        found = source_of(config, Folder.at(listed))
        return Finding(
            state="ok", what="annotations", said=f"{found.rows:,} in {config.annotations}"
        )


def _first_images(config: Config) -> Iterator[Finding]:
    if not Folder.at(config.images).exists():
        raise ConfigurationError(
            f"images={config.images!r} does not exist; give a folder or prefix of images, Parquet"
            " files or tars"
        )
    first = [
        found.reference
        for found in islice(
            finding.find(config.images, image_roots=config.image_roots), _IMAGES_LOOKED_AT
        )
    ]
    bad = [
        why
        for content in references.fetch(first, max_image_bytes=config.max_image_bytes)
        if (why := _unreadable(content, config))
    ]
    said = f"{config.images}: listed; of the first {len(first)}, {len(first) - len(bad)} were read"
    yield Finding(
        state="warning" if bad else "ok",
        what="images",
        said=said,
        fix=f"{bad[0].reason}: {bad[0].detail}" if bad else "",
    )


def _unreadable(content: bytes | UnreadableImage, config: Config) -> UnreadableImage | None:
    if isinstance(content, UnreadableImage):
        return content
    try:
        decode.decode(
            content,
            max_image_pixels=config.max_image_pixels,
            max_image_bytes=config.max_image_bytes,
        )
    except UnreadableImage as error:
        return error
    return None


def storage(output: str) -> Iterator[Finding]:
    """That `--output` can be written, read, listed and deleted in; in S3 also that a conditional
    PUT keeps its condition.
    """
    if not output:
        yield Finding(state="ok", what="output", said="not looked at: no --output")
        return
    name = f"doctor-{uuid.uuid4().hex}.json"
    try:
        folder = Folder.at(output)
        made = _folders_to_make(folder)
        folder.write_json(name, {"written": True})
        try:
            if folder.read_json(name) != {"written": True} or name not in folder.names(".json"):
                yield Finding(
                    state="failed",
                    what="output",
                    said=f"{output}: what was written is not what is read",
                    fix="another storage",
                )
                return
            refused = not output.startswith(s3.SCHEME) or _second_put_is_refused(folder, name)
        finally:
            folder.delete(name)
        for path in made:
            path.rmdir()
    except (ConfigurationError, RunError) as error:
        fix = (
            "give these credentials the rights to list, read, write and delete there"
            if is_remote(output)
            else "another folder, or rights"
        )
        yield Finding(state="failed", what="output", said=str(error), fix=fix)
        return
    if not refused:
        said = (
            f"{output}: a conditional PUT wrote over what was there, so two runs on one output"
            " cannot be told apart"
        )
        yield Finding(
            state="warning",
            what="output",
            said=said,
            fix="take care that one run works on it, or take a store with If-None-Match",
        )
        return
    yield Finding(state="ok", what="output", said=f"{output}: written, read, listed and deleted")


def _folders_to_make(folder: Folder) -> list[Path]:
    """The folders that writing will make, the deepest first: a check leaves nothing behind."""
    if not folder.is_local:
        return []
    path = Path(folder.path)
    return [place for place in (path, *path.parents) if not place.exists()]


def _second_put_is_refused(folder: Folder, name: str) -> bool:
    from botocore.exceptions import ClientError

    bucket, _, prefix = folder.path.partition("/")
    try:
        s3.client().put_object(
            Bucket=bucket, Key=f"{prefix}/{name}".lstrip("/"), Body=b"again", IfNoneMatch="*"
        )
    except ClientError as error:
        return error.response["ResponseMetadata"].get("HTTPStatusCode") in (409, 412)
    return False
