"""What tools that work on a run's output folder share: its configuration, its samples, and their
images.
"""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from pydantic import ValidationError

from mpa_ray.config import API_SETTINGS, Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.images.draw import draw
from mpa_ray.images.frozen import UNFINISHED
from mpa_ray.images.parts import with_image_struct, with_images
from mpa_ray.schema import PARITY
from mpa_ray.storage.folder import Folder

Place = tuple[str, str]
"""Where a sample is: the name of its part's file, and its `sample_id`."""


def round_folders(run: Folder) -> list[Folder]:
    """The folders of a run's rounds, in their order, each a run of its own; none for a run that is
    its own only round.
    """
    rounds = run.child("rounds")
    return [rounds.child(name) for name in sorted(rounds.folders(), key=int)]


def folders(run: Folder) -> list[Folder]:
    """The folders that hold a run's rows, commits and stages: those of its rounds, or its own."""
    return round_folders(run) or [run]


def require(run: Folder, name: str) -> Folder:
    """The folder `name` of a run.

    Raises:
        ConfigurationError: it holds no Parquet file.
    """
    folder = run.child(name)
    if not folder.names(".parquet"):
        if rounds := round_folders(run):
            raise ConfigurationError(
                f"--run {run.uri}: each of its {len(rounds)} rounds has a {name}/ of its own; give"
                f" {rounds[0].uri}"
            )
        raise ConfigurationError(
            f"--run {run.uri}: it holds no {name}/ with Parquet files; give the output of a run"
            " that came so far"
        )
    return folder


def require_new(output: Folder, flag: str = "--output") -> None:
    """Refuse a folder that holds anything.

    Raises:
        ConfigurationError: it does.
    """
    if output.exists() and output.filesystem.get_file_info(pyarrow.fs.FileSelector(output.path)):
        raise ConfigurationError(
            f"{flag} {output.uri}: holds files already and nothing is overwritten; give a new"
            " folder"
        )


@contextmanager
def new_folder(output: Folder, *, by: str) -> Iterator[None]:
    """A new folder that a job fills with several files. Until the context ends well the folder
    holds UNFINISHED, and no run takes it for a source; the same job starts an unfinished folder of
    its own again.

    Args:
        output: the folder.
        by: the job, for people.

    Raises:
        ConfigurationError: the folder holds anything else.
    """
    if output.exists(UNFINISHED) and output.read_json(UNFINISHED).get("by") == by:
        output.delete_folder()
    require_new(output)
    output.write_json(UNFINISHED, {"by": by})
    yield
    output.delete(UNFINISHED)


def config_of(run: Folder) -> Config | None:
    """The configuration a run was made with; None where the folder does not say, as for rows from
    elsewhere.

    Settings that only change its speed are those of the call that finished the run, or the defaults
    while it is unfinished.

    Raises:
        ConfigurationError: the record is of another version of this program.
    """
    if not run.exists("config.json"):
        return None
    tree = run.read_json("run.json")["config"] if run.exists("run.json") else {}
    # config.json is what was asked for; the demo's run.json has the inputs that were rendered in
    # their place.
    for name, value in run.read_json("config.json").items():
        section, dot, key = name.partition(".")
        if dot:
            tree.setdefault(section, {})[key] = value
        else:
            tree[name] = value
    # Earlier versions wrote the settings of an API for the S-VLM too, which never had any.
    for name in API_SETTINGS:
        tree.get("svlm", {}).pop(name, None)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise ConfigurationError(
            f"--run {run.uri}: its configuration is of another version of mpa_ray (it differs in"
            f" {fields})"
        ) from error


def max_image_bytes(run: Folder) -> int:
    """The run's own bound on the size of an image file, in bytes."""
    return (config_of(run) or Config()).max_image_bytes


def drawn(
    judgements: Folder, count: int, *, salt: str, verdicts: frozenset[str] | None = None
) -> list[Place]:
    """`count` samples drawn without replacement from those with one of `verdicts` (None: all), in a
    random order.

    All of them where there are fewer. Which ones depends on the salt and the samples' ids alone.
    Memory does not grow with the rows.
    """

    def draws() -> Iterator[tuple[float, Place]]:
        for name in judgements.names(".parquet"):
            rows = judgements.read_table(name, ["sample_id", "verdict"])
            for sample_id, verdict in zip(
                *(column.to_pylist() for column in rows.columns), strict=True
            ):
                if verdicts is None or verdict in verdicts:
                    yield draw(sample_id, salt), (name, sample_id)

    return [place for _, place in heapq.nsmallest(count, draws())]


def rows_at(places: list[Place], folder: Folder, columns: list[str]) -> dict[Place, dict[str, Any]]:
    """The rows of `folder` at `places`; each file is read once."""
    found = {}
    for name in sorted({name for name, _ in places}):
        wanted = pa.array([sample_id for file, sample_id in places if file == name], pa.string())
        table = folder.read_table(name, [*columns, "sample_id"])
        for row in table.filter(pc.is_in(table.column("sample_id"), value_set=wanted)).to_pylist():
            found[name, row["sample_id"]] = row
    return found


def with_stored_images(
    rows: pa.Table, *, stored: Folder, name: str, max_image_bytes: int
) -> tuple[pa.Table, int]:
    """Judged rows of one part as PARITY, and how many images had to be fetched by their URI because
    `stored` lacks the sample.

    Args:
        rows: with image_id, image_uri, sample_id, question and answer.
        stored: a parity/ folder, which may lack the part.
        name: of the part's file.
        max_image_bytes: a file with more is not read.

    Raises:
        RunError: an image is neither stored nor to be had by its URI.
    """
    have = stored.read_table(name) if stored.exists(name) else PARITY.empty_table()
    places = pc.index_in(
        rows.column("sample_id"), value_set=have.column("sample_id").combine_chunks()
    )
    # Not by `take`, which puts what it takes into one array, and one holds at most 2 GiB of images.
    copied = pa.concat_tables(
        [have.slice(0, 0), *(have.slice(place, 1) for place in places.drop_null().to_pylist())]
    )
    copied = copied.select(PARITY.names).cast(PARITY)
    missing = rows.filter(pc.is_null(places))
    if not missing.num_rows:
        return copied, 0
    fetched = with_image_struct(with_images(missing, max_image_bytes=max_image_bytes))
    return pa.concat_tables([copied, fetched]), missing.num_rows
