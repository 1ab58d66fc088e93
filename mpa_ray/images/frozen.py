"""Annotations or a parity set as a source: which files of the folder a run reads, written down at
its first call.

Part n of such a run is the n-th file of the list, so the list must never change: a file that comes
later would shift all behind it. The list is kept in the output, `manifest/annotations.parquet` or
`manifest/parity.parquet`, with what tells that a file is still the same; the JSON file of the same
name has the totals, and is written last.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.observability.progress import say
from mpa_ray.storage.folder import Entry, Folder, in_parallel

# In a folder that a job has not filled yet: {"by": the job}.
UNFINISHED = "unfinished.json"

_COLUMNS = pa.schema(
    [
        ("name", pa.string()),
        ("rows", pa.int64()),
        ("unanswered", pa.int64()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("footer", pa.string()),
    ]
)
# A worker that reads one file of 39,000 need not read the whole list.
_FILES_PER_ROW_GROUP = 1024
_NAMES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A folder's files as they were listed.

    Attributes:
        folder: where the files are.
        listed: where the list is.
        name: of the list.
        files: how many they are; the parts of the run.
        first: the name of the first.
        rows: in all of them.
        unanswered: of those, the rows without an answer of the L-VLM.
    """

    folder: Folder
    listed: Folder
    name: str
    files: int
    first: str
    rows: int
    unanswered: int

    @property
    def first_file(self) -> str | None:
        """The path of the first file; None where it is in an object store."""
        return f"{self.folder.path}/{self.first}" if self.folder.is_local else None

    def read(self, number: int, columns: list[str]) -> pa.Table:
        """Columns of one file.

        Raises:
            RunError: the file is gone, or is not what was listed.
        """
        group, row = divmod(number, _FILES_PER_ROW_GROUP)
        listed = (
            self.listed.read_parquet(
                f"{self.name}.parquet", lambda file: file.read_row_group(group)
            )
            .slice(row, 1)
            .to_pylist()[0]
        )
        place = f"{self.folder.uri}/{listed['name']}"
        try:
            footer, table = self.folder.read_parquet(
                listed["name"], lambda file: (_footer(file), file.read(columns=columns))
            )
        except FileNotFoundError as error:
            raise RunError(
                f"{place} is gone, and this run reads it; put it back and give the same command"
            ) from error
        if footer != listed["footer"]:
            raise RunError(
                f"{place} was changed since this run listed it; put it back as it was, or use a"
                " new output"
            )
        return table


def frozen(
    folder: Folder,
    listed: Folder,
    *,
    name: str,
    schema: pa.Schema,
    what: str,
    fix: str,
    refuses_new: bool = False,
) -> Frozen:
    """The files of `folder` as the first call of a run listed them; a first call lists them now.

    Args:
        folder: what the user gave.
        listed: where the list is kept; the run's manifest/.
        name: of the list and of the setting.
        schema: the columns that each file needs.
        what: the kind of folder that is needed, for people.
        fix: what makes such files, for people.
        refuses_new: files that came later are refused, because whoever reads the folder reads all
            of it; else they are ignored.

    Raises:
        ConfigurationError: the folder holds no such files, is still being written, or is not as it
            was listed.
    """
    given = f"{name}={folder.uri!r}"
    entries = folder.entries(".parquet")
    if (
        not listed.exists(f"{name}.json")
        or listed.read_json(f"{name}.json")["source"] != folder.uri
    ):
        if not entries:
            raise ConfigurationError(f"{given} holds no Parquet file; give {what}")
        _refuse_unfinished(folder, given)
        _freeze(
            folder,
            entries,
            listed,
            name,
            partial(_listed, folder=folder, schema=schema, given=given, fix=fix),
        )
    else:
        _refuse_changed(folder, entries, listed.read_table(f"{name}.parquet").to_pylist(), given)
        new = len(entries) - listed.read_json(f"{name}.json")["files"]
        if new and refuses_new:
            raise ConfigurationError(
                f"{given}: {new:,} files came after this run's first call; remove them, or use a"
                " new output"
            )
        if new:
            say(
                f"{given}: {new:,} files came after this run's first call and are ignored; a new"
                " output takes them in"
            )
    totals = listed.read_json(f"{name}.json")
    return Frozen(
        folder=folder,
        listed=listed,
        name=name,
        **{key: totals[key] for key in ("files", "first", "rows", "unanswered")},
    )


def _freeze(folder: Folder, entries: list[Entry], listed: Folder, name: str, look: Any) -> None:
    table = pa.Table.from_pylist(list(in_parallel(look, entries)), schema=_COLUMNS)
    listed.write_table(f"{name}.parquet", table, row_group_size=_FILES_PER_ROW_GROUP)
    totals = {
        column: pa.compute.sum(table.column(column)).as_py() for column in ("rows", "unanswered")
    }
    listed.write_json(
        f"{name}.json",
        {"source": folder.uri, "files": table.num_rows, "first": entries[0].name, **totals},
    )


def _listed(
    entry: Entry, *, folder: Folder, schema: pa.Schema, given: str, fix: str
) -> dict[str, Any]:
    try:
        columns, rows, unanswered, footer = folder.read_parquet(entry.name, _look)
    except (pa.ArrowException, ValueError) as error:
        raise ConfigurationError(
            f"{given}: {entry.name} cannot be read as Parquet ({error}); {fix}"
        ) from error
    lacking = [column for column in schema.names if column not in columns]
    if lacking:
        raise ConfigurationError(f"{given}: {entry.name} lacks {', '.join(lacking)}; {fix}")
    return {
        "name": entry.name,
        "rows": rows,
        "unanswered": unanswered,
        "size": entry.size,
        "etag": entry.etag,
        "footer": footer,
    }


def _look(file: pyarrow.parquet.ParquetFile) -> tuple[list[str], int, int, str]:
    names = file.schema_arrow.names
    unanswered = _nulls(file, "lvlm_answer") if "lvlm_answer" in names else 0
    return names, file.metadata.num_rows, unanswered, _footer(file)


def _nulls(file: pyarrow.parquet.ParquetFile, column: str) -> int:
    """How many nulls a column has; by the footer's statistics, where all row groups have them."""
    leaf = next(
        leaf
        for leaf in range(file.metadata.num_columns)
        if file.metadata.schema.column(leaf).path == column
    )
    count = 0
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(leaf).statistics
        if statistics is None or not statistics.has_null_count:
            return file.read(columns=[column]).column(0).null_count
        count += statistics.null_count
    return count


def _footer(file: pyarrow.parquet.ParquetFile) -> str:
    """A hash of the footer: of the number of rows, and of each column's place, size and bounds in
    each row group.
    """
    return hashlib.sha256(
        json.dumps(file.metadata.to_dict(), default=str, sort_keys=True).encode()
    ).hexdigest()[:32]


def _refuse_changed(
    folder: Folder, entries: list[Entry], listed: list[dict[str, Any]], given: str
) -> None:
    """Refuse where listed files are gone, or are not what they were."""
    now = {entry.name: entry for entry in entries}
    gone = [file["name"] for file in listed if file["name"] not in now]
    if gone:
        raise ConfigurationError(
            f"{given}: {_named(gone)} gone since this run's first call; put back what is gone, or"
            " use a new output"
        )
    # An ETag that is the same speaks for the content; where there is none, the footer is read
    # again.
    doubtful = [
        file for file in listed if not file["etag"] or now[file["name"]].etag != file["etag"]
    ]
    changed = [
        file["name"]
        for file, same in zip(
            doubtful, in_parallel(partial(_is_same, folder), doubtful), strict=True
        )
        if not same
    ]
    if changed:
        raise ConfigurationError(
            f"{given}: {_named(changed)} changed since this run's first call; put the files back"
            " as they were, or use a new output"
        )


def _is_same(folder: Folder, file: dict[str, Any]) -> bool:
    try:
        return folder.read_parquet(file["name"], _footer) == file["footer"]
    except (pa.ArrowException, ValueError):
        return False


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"


def _refuse_unfinished(folder: Folder, given: str) -> None:
    """Refuse what a run or a job has not finished: more files would come."""
    made_by = Folder.at(folder.uri.rpartition("/")[0] or "/")
    if made_by.exists("config.json") and not made_by.exists("stages/annotate_and_identify.json"):
        raise ConfigurationError(
            f"{given}: the run in {made_by.uri} has not finished annotating and identifying;"
            " finish it first (the same command resumes it)"
        )
    if made_by.exists(UNFINISHED):
        by = made_by.read_json(UNFINISHED).get("by", "the job")
        raise ConfigurationError(
            f"{given}: {by} has not finished {made_by.uri}; give it the same command again first"
        )
