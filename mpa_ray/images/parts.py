"""Parts: the unit of work. A part is read as one block, stays one block through every stage, and is
committed whole.

Each part has one name in every folder (`annotations/part-00000012.parquet`, ...), so doing it again
replaces and never duplicates.
"""

import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mpa_ray.errors import RunError
from mpa_ray.images import references
from mpa_ray.images.decode import UnreadableImage, draw_key_of
from mpa_ray.images.frozen import Frozen
from mpa_ray.images.manifest import Manifest
from mpa_ray.schema import ANNOTATED_ROW, ANNOTATIONS, PARITY, SOURCE_ROW, Stage

if TYPE_CHECKING:
    from ray.data import Dataset

# Reading and committing wait for storage most of the time. Where two cores are all there is and
# engine actors have one of them, both still run beside each other: reading ahead must not keep
# finished parts from being committed. With memory among its needs a read is like no engine actor,
# or Ray Data would put both into one process (an actor of as many cores), which then waits for
# storage between parts.
READING = {"num_cpus": 0.5, "memory": 256 * 2**20}


def part_name(number: int, suffix: str = ".parquet") -> str:
    return f"part-{number:08d}{suffix}"


def part_number(name: str) -> int:
    return int(name.removeprefix("part-").partition(".")[0])


def dataset_of(numbers: list[int], read: Callable[[int], pa.Table]) -> "Dataset":
    """A Dataset whose blocks are exactly the parts `numbers`, each read by a task of its own when
    its turn comes.
    """
    import ray.data
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Parts(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            unknown = BlockMetadata(
                num_rows=None, size_bytes=None, input_files=None, exec_stats=None
            )
            return [ReadTask(partial(_read_as_block, read, number), unknown) for number in numbers]

    return ray.data.read_datasource(Parts(), override_num_blocks=len(numbers), **READING)


def _read_as_block(read: Callable[[int], pa.Table], number: int) -> list[pa.Table]:
    return [read(number)]


def read_images(number: int, *, manifest: Manifest, max_image_bytes: int) -> pa.Table:
    """One part's images as SOURCE_ROW; a row whose bytes cannot be had is quarantined from here on.

    Raises:
        RunError: this host does not see the images at all; they are not at fault.
    """
    if manifest.root is not None:
        require_on_this_host(references.local_path(manifest.root), "images")
    listed = manifest.part(number)
    columns = {
        "part": [number] * listed.num_rows,
        "image_id": listed.column("image_id"),
        "image_uri": listed.column("image_uri"),
    }
    columns["draw_key"] = [
        draw_key_of(uri, manifest.root) for uri in listed.column("image_uri").to_pylist()
    ]
    return pa.table(columns | _image_columns(listed, max_image_bytes), schema=SOURCE_ROW)


def read_annotations(number: int, *, annotations: Frozen, max_image_bytes: int) -> pa.Table:
    """One file of an annotations folder from elsewhere as ANNOTATED_ROW, its images fetched again.
    Raises what `Frozen.read` does.
    """
    listed = annotations.read(number, ANNOTATIONS.names)
    columns = {
        "part": [number] * listed.num_rows,
        "draw_key": pa.nulls(listed.num_rows, pa.string()),
    }
    columns |= {name: listed.column(name) for name in ANNOTATIONS.names}
    return pa.table(columns | _image_columns(listed, max_image_bytes), schema=ANNOTATED_ROW)


def _image_columns(listed: pa.Table, max_image_bytes: int) -> dict[str, list[Any]]:
    """The images of rows that have an `image_uri`, and the status of those whose bytes cannot be
    had.
    """
    contents = references.fetch(
        listed.column("image_uri").to_pylist(), max_image_bytes=max_image_bytes
    )
    failed = [content if isinstance(content, UnreadableImage) else None for content in contents]
    return {
        "image": [
            None if error else content for content, error in zip(contents, failed, strict=True)
        ],
        "stage": [str(Stage.IMAGES) if error else None for error in failed],
        "reason": [str(error.reason) if error else None for error in failed],
        "detail": [error.detail if error else None for error in failed],
    }


def with_images(table: pa.Table, *, max_image_bytes: int) -> pa.Table:
    """Rows that have an `image_uri`, with the encoded image beside it.

    Raises:
        RunError: an image that could be read when it was annotated is gone.
    """
    contents = references.fetch(
        table.column("image_uri").to_pylist(), max_image_bytes=max_image_bytes
    )
    for uri, content in zip(table.column("image_uri").to_pylist(), contents, strict=True):
        if isinstance(content, UnreadableImage):
            raise RunError(
                f"{uri}: could be read when it was annotated and cannot now ({content}); put it"
                " back and run again"
            )
    return table.append_column("image", pa.array(contents, pa.large_binary()))


def require_on_this_host(path: str | None, what: str) -> None:
    if path is not None and not os.path.exists(path):
        raise RunError(
            f"the host {socket.gethostname()} does not see {what}={path!r}; give a folder that all"
            " hosts share, or one in s3://"
        )


# Arrow's binary columns hold 2 GiB a chunk; so many images of the largest size allowed by default
# fit into one.
_ROWS_PER_CHUNK = 16


def with_image_struct(rows: pa.Table) -> pa.Table:
    """Rows as PARITY: self-contained, with the encoded image as {bytes, path}."""
    chunks = [
        _with_image_struct(rows.slice(start, _ROWS_PER_CHUNK))
        for start in range(0, rows.num_rows, _ROWS_PER_CHUNK)
    ]
    return pa.concat_tables(chunks) if chunks else PARITY.empty_table()


def _with_image_struct(rows: pa.Table) -> pa.Table:
    pairs = zip(rows.column("image").to_pylist(), rows.column("image_uri").to_pylist(), strict=True)
    images = pa.array(
        [{"bytes": data, "path": uri} for data, uri in pairs], PARITY.field("image").type
    )
    columns = {name: rows.column(name) for name in PARITY.names if name != "image"} | {
        "image": images
    }
    return pa.table([columns[name] for name in PARITY.names], schema=PARITY)
