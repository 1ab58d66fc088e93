"""Parts: the unit of work. A part is read as one block, stays one block through every stage, and is committed whole.

Each part has one name in every folder (`annotations/part-00000012.parquet`, ...), so doing it again replaces and never duplicates. Its
commit, `commits/part-00000012.json`, is written after all its files, and says what is in them. A resume does the parts that have no commit.
"""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mpa_ray import logs
from mpa_ray.errors import RunError
from mpa_ray.images import UnreadableImage, draw_key_of
from mpa_ray.inputs import references
from mpa_ray.inputs.frozen import Frozen
from mpa_ray.inputs.manifest import Manifest
from mpa_ray.schema import ANNOTATED_ROW, ANNOTATIONS, JUDGEMENTS, PARITY, QUARANTINE, SOURCE_ROW, Reason, Stage, Verdict, encoder_runs
from mpa_ray.storage import Folder, in_parallel
from mpa_ray.telemetry import run_id

if TYPE_CHECKING:
    from ray.data import Dataset

# Reading and committing wait for storage most of the time. Where two cores are all there is and engine actors have one of them, both still
# run beside each other: reading ahead must not keep finished parts from being committed. With memory among its needs a read is like no
# engine actor, or Ray Data would put both into one process (an actor of as many cores), which then waits for storage between parts.
READING = {"num_cpus": 0.5, "memory": 256 * 2**20}
COMMITTING = {"num_cpus": 0.25}

TOKEN_COLUMNS = [name for name in JUDGEMENTS.names if name.endswith("_tokens")]


def part_name(number: int, suffix: str = ".parquet") -> str:
    return f"part-{number:08d}{suffix}"


def part_number(name: str) -> int:
    return int(name.removeprefix("part-").partition(".")[0])


def dataset_of(numbers: list[int], read: Callable[[int], pa.Table]) -> "Dataset":
    """A Dataset whose blocks are exactly the parts `numbers`, each read by a task of its own when its turn comes."""
    import ray.data
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Parts(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
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
        _require_on_this_host(references.local_path(manifest.root), "images")
    listed = manifest.part(number)
    columns = {"part": [number] * listed.num_rows, "image_id": listed.column("image_id"), "image_uri": listed.column("image_uri")}
    columns["draw_key"] = [draw_key_of(uri, manifest.root) for uri in listed.column("image_uri").to_pylist()]
    return pa.table(columns | _image_columns(listed, max_image_bytes), schema=SOURCE_ROW)


def read_annotations(number: int, *, annotations: Frozen, max_image_bytes: int) -> pa.Table:
    """One file of an annotations folder from elsewhere as ANNOTATED_ROW, its images fetched again. Raises what `Frozen.read` does."""
    listed = annotations.read(number, ANNOTATIONS.names)
    columns = {"part": [number] * listed.num_rows, "draw_key": pa.nulls(listed.num_rows, pa.string())}
    columns |= {name: listed.column(name) for name in ANNOTATIONS.names}
    return pa.table(columns | _image_columns(listed, max_image_bytes), schema=ANNOTATED_ROW)


def _image_columns(listed: pa.Table, max_image_bytes: int) -> dict[str, list[Any]]:
    """The images of rows that have an `image_uri`, and the status of those whose bytes cannot be had."""
    contents = references.fetch(listed.column("image_uri").to_pylist(), max_image_bytes=max_image_bytes)
    failed = [content if isinstance(content, UnreadableImage) else None for content in contents]
    return {
        "image": [None if error else content for content, error in zip(contents, failed, strict=True)],
        "stage": [str(Stage.IMAGES) if error else None for error in failed],
        "reason": [str(error.reason) if error else None for error in failed],
        "detail": [error.detail if error else None for error in failed],
    }


def with_images(table: pa.Table, *, max_image_bytes: int) -> pa.Table:
    """Rows that have an `image_uri`, with the encoded image beside it.

    Raises:
        RunError: an image that could be read when it was annotated is gone.
    """
    contents = references.fetch(table.column("image_uri").to_pylist(), max_image_bytes=max_image_bytes)
    for uri, content in zip(table.column("image_uri").to_pylist(), contents, strict=True):
        if isinstance(content, UnreadableImage):
            raise RunError(f"{uri}: could be read when it was annotated and cannot now ({content}); put it back and run again")
    return table.append_column("image", pa.array(contents, pa.large_binary()))


def _require_on_this_host(path: str | None, what: str) -> None:
    if path is not None and not os.path.exists(path):
        raise RunError(f"the host {socket.gethostname()} does not see {what}={path!r}; give a folder that all hosts share, or one in s3://")


def commit_part(rows: pa.Table, *, output: Folder, call: float) -> pa.Table:
    """Writes a part's files and then its commit. Gives back one row: the commit, as JSON.

    Of several attempts at a part, of which all but one were taken for lost, all files are of one in the end (`_written`).

    Args:
        rows: a whole part of JUDGED_ROW, images included; or none, where the stage was ended before the part was complete.
        output: the run's folder.
        call: when this call of the run began, in seconds since the epoch.
    """
    if not rows.num_rows:
        return pa.table({"commit": pa.array([], pa.string())})
    number = rows.column("part")[0].as_py()
    if output.is_local:
        _require_on_this_host(output.path, "output")
    runs, rows = encoder_runs(rows), rows.replace_schema_metadata()
    well = pc.is_null(rows.column("reason"))
    judged, rejected = rows.filter(well), rows.filter(pc.invert(well))
    parity = judged.filter(pc.equal(judged.column("verdict"), str(Verdict.PARITY)))
    files = {
        "quarantine": rejected.select(QUARANTINE.names),
        "annotations": judged.select(ANNOTATIONS.names),
        "parity": with_image_struct(parity),
        "judgements": judged.select(JUDGEMENTS.names),
    }
    images, annotated = (set(table.column("image_id").to_pylist()) for table in (rows, judged))
    counts = {
        "part": number,
        "images": len(images),
        "annotations": judged.num_rows,
        "quarantined_images": len(images - annotated),
        "quarantined": dict(
            Counter(
                f"{stage}/{reason}" for stage, reason in zip(*(rejected.column(c).to_pylist() for c in ("stage", "reason")), strict=True)
            )
        ),
        "verdicts": dict(Counter(judged.column("verdict").to_pylist())),
        "tokens": {name: pc.sum(judged.column(name)).as_py() or 0 for name in TOKEN_COLUMNS},
        "encoder_runs": runs,
        "svlm_asked": judged.num_rows - judged.column("svlm_answer").null_count,
        "call": call,
        "committed": time.time(),
    }
    stands = _written(output, number, files, counts)
    if stands is not counts:
        return _as_row(stands)
    logs.in_worker(run_id(output), "commit")
    logs.LOG.info("committed part %d: %d images, %d quarantined", number, counts["images"], rejected.num_rows)
    return _as_row(counts)


def _written(output: Folder, number: int, files: Mapping[str, pa.Table], counts: dict[str, Any]) -> dict[str, Any]:
    """Writes the files and the commit, and gives back the commit that stands: `counts`, or that of another attempt.

    An attempt writes nothing more once it finds the commit of another. Files of it that the other has not written over would then lie
    beside the other's: it makes the part wholly its own instead.
    """
    commit = f"commits/{part_name(number, '.json')}"
    done: list[str] = []
    for folder, table in files.items():
        if output.exists(commit):
            break
        _replace(output, folder, number, table)
        done.append(folder)
    else:
        if output.create_json(commit, counts):
            return counts
    if not any(_holds(output, folder, number, files[folder]) for folder in done):
        return output.read_json(commit)
    for folder, table in files.items():
        _replace(output, folder, number, table)
    output.write_json(commit, counts)
    return counts


def _holds(output: Folder, folder: str, number: int, table: pa.Table) -> bool:
    """Whether a part's file is what `_replace` made of `table`."""
    name = f"{folder}/{part_name(number)}"
    if not output.exists(name):
        return not table.num_rows
    return output.read_table(name).equals(table)


def _as_row(commit: dict[str, Any]) -> pa.Table:
    return pa.table({"commit": [json.dumps(commit)]})


# Arrow's binary columns hold 2 GiB a chunk; so many images of the largest size allowed by default fit into one.
_ROWS_PER_CHUNK = 16


def with_image_struct(rows: pa.Table) -> pa.Table:
    """Rows as PARITY: self-contained, with the encoded image as {bytes, path}."""
    chunks = [_with_image_struct(rows.slice(start, _ROWS_PER_CHUNK)) for start in range(0, rows.num_rows, _ROWS_PER_CHUNK)]
    return pa.concat_tables(chunks) if chunks else PARITY.empty_table()


def _with_image_struct(rows: pa.Table) -> pa.Table:
    pairs = zip(rows.column("image").to_pylist(), rows.column("image_uri").to_pylist(), strict=True)
    images = pa.array([{"bytes": data, "path": uri} for data, uri in pairs], PARITY.field("image").type)
    columns = {name: rows.column(name) for name in PARITY.names if name != "image"} | {"image": images}
    return pa.table([columns[name] for name in PARITY.names], schema=PARITY)


def _replace(output: Folder, folder: str, number: int, table: pa.Table) -> None:
    """Writes a part's file. An empty one is left out, and what an interrupted attempt left under the name is removed."""
    name = f"{folder}/{part_name(number)}"
    if table.num_rows:
        output.write_table(name, table)
    else:
        output.delete(name)


def rows_of_source(counts: Mapping[str, Any], *, annotated: bool) -> int:
    """How many rows of the source a commit, or a sum of commits, is about: images, or annotations where those are the source."""
    return counts["annotations"] + sum(counts["quarantined"].values()) if annotated else counts["images"]


def share_quarantined(counts: Mapping[str, Any], *, annotated: bool) -> tuple[int, int]:
    """What a sum of commits lost, and of how many rows of the source: annotations of annotations, or images of images. References that name
    what was named before are neither: nothing is lost with them."""
    repeats = counts["quarantined"].get(f"{Stage.IMAGES}/{Reason.DUPLICATE_REFERENCE}", 0)
    lost = sum(counts["quarantined"].values()) if annotated else counts["quarantined_images"]
    return lost - repeats, rows_of_source(counts, annotated=annotated) - repeats


def committed(output: Folder) -> set[int]:
    """The numbers of the finished parts."""
    return {part_number(name) for name in output.child("commits").names(".json")}


def totals(output: Folder) -> dict[str, Any]:
    """The sum of all commits: images, annotations, images without any, quarantined rows by stage/reason, verdicts, tokens, vision encoder
    runs by stage, and annotations that the S-VLM was asked about."""
    return add_up(commits(output))


def commits(output: Folder) -> Iterator[dict[str, Any]]:
    """What each commit says, in the order of the parts."""
    folder = output.child("commits")
    return in_parallel(folder.read_json, folder.names(".json"))


def add_up(commits: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """See `totals`."""
    images = annotations = lost = svlm_asked = 0
    quarantined: Counter[str] = Counter()
    verdicts: Counter[str] = Counter({str(verdict): 0 for verdict in Verdict})
    tokens: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for commit in commits:
        images += commit["images"]
        annotations += commit["annotations"]
        # Commits that do not say it are of runs whose images had one quarantined row at most.
        lost += commit.get("quarantined_images", min(commit["images"], sum(commit["quarantined"].values())))
        quarantined.update(commit["quarantined"])
        verdicts.update(commit["verdicts"])
        tokens.update(commit["tokens"])
        runs.update(commit.get("encoder_runs", {}))
        svlm_asked += commit.get("svlm_asked", 0)
    return {
        "images": images,
        "annotations": annotations,
        "quarantined_images": lost,
        "quarantined": dict(quarantined.most_common()),
        "verdicts": dict(verdicts),
        "tokens": dict(tokens),
        "encoder_runs": dict(runs),
        "svlm_asked": svlm_asked,
    }
