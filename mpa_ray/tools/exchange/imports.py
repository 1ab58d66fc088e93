"""Annotations from elsewhere as an annotations/ folder of ours, which can enter at the Parity
Identifier once the L-VLM has answered it.

OUTPUT/annotations/    our schema, `lvlm_answer` still empty (mpa_ray.stages.lvlm_answer fills it)
OUTPUT/quarantine/     records that cannot be used, with the reason
OUTPUT/import.json     counts; written last (until then OUTPUT/unfinished.json is there)
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, unquote

import pyarrow as pa

from mpa_ray.errors import ConfigurationError
from mpa_ray.images.decode import draw_key_of, image_id_of
from mpa_ray.images.finding import find, root_of
from mpa_ray.images.parts import part_name
from mpa_ray.observability.progress import say
from mpa_ray.report.run_folder import new_folder
from mpa_ray.schema import ANNOTATIONS, QUARANTINE, Reason, Stage
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.exchange.annotation_json import (
    CONVERSATIONS,
    IMAGE_KEYS,
    TEXT_KEYS,
    Imported,
    annotations_of,
    records,
)

RECORD = "import.json"

_RECORDS_PER_PART = 256
_SAY_EVERY = 400 * _RECORDS_PER_PART


class ImageIndex:
    """Where images are, by name. One entry an image is in memory, some hundred bytes each.

    A name in a file from elsewhere only ever chooses among the images that were found here; it is
    never opened as a path.
    """

    def __init__(self, images: str) -> None:
        """List `images`: a folder, prefix, or tar.

        Raises:
            ConfigurationError: it is not there, or two tars hold a member of one name.
        """
        self._by_path: dict[str, str] = {}
        self._by_stem: dict[str, str | None] = {}
        self.root = root_of(images)
        root = Folder.at(images).uri
        for uri, _ in find(images):
            path, _, fragment = uri.partition("#")
            fields = parse_qs(fragment)
            # What a fragment without these stands for has no name, or must not be opened.
            if fragment and not fields.keys() >= {"offset", "member"}:
                continue
            name = fields["member"][0] if fragment else unquote(path).removeprefix(root).lstrip("/")
            if name in self._by_path:
                raise ConfigurationError(
                    f"--images {images}: {name} is in two tars; a record that names it could mean"
                    " either"
                )
            self._by_path[name] = uri
            stem = posixpath.splitext(name)[0]
            self._by_stem[stem] = None if stem in self._by_stem else uri

    def find(self, name: str) -> str | None:
        """The reference of the image a record names, or None.

        A path of another machine is matched by its end, the longest that is there; a name without
        extension by the one image it fits.
        """
        places = [place for place in name.replace("\\", "/").split("/") if place not in ("", ".")]
        if ".." in places:
            return None
        ends = ["/".join(places[start:]) for start in range(len(places))]
        return next(
            (
                found
                for known in (self._by_path, self._by_stem)
                for end in ends
                if (found := known.get(end))
            ),
            None,
        )


def import_annotations(annotations: str, images: str, output: Folder) -> dict[str, Any]:
    """Read the JSON file `annotations`, find its images under `images`, and write `output`.

    Returns:
        What is in import.json: {"source", "images", "records", "annotations", "quarantined":
        {stage/reason: count}}.

    Raises:
        ConfigurationError: a file is not there or is no JSON, the layout of the first record is not
            known, no record could be used, or the output holds files.
    """
    found = records(annotations)
    first = next(found, None)
    if annotations_of(first) is None:
        raise ConfigurationError(f"--annotations {annotations}: {_unknown(first)}")
    with new_folder(output, by="jobs/import_annotations.py"):
        return _import(annotations, images, output, _chained(first, found))


def _import(annotations: str, images: str, output: Folder, found: Iterator[Any]) -> dict[str, Any]:
    index = ImageIndex(images)
    counts: Counter[str] = Counter()
    quarantined: Counter[str] = Counter()
    for part, chunk in enumerate(_chunks(found)):
        good, bad = part_rows(chunk, part * _RECORDS_PER_PART, index)
        for name, rows, schema in (
            ("annotations", good, ANNOTATIONS),
            ("quarantine", bad, QUARANTINE),
        ):
            if rows:
                output.write_table(
                    f"{name}/{part_name(part)}", pa.Table.from_pylist(rows, schema=schema)
                )
        counts.update(records=len(chunk), annotations=len(good))
        quarantined.update(f"{row['stage']}/{row['reason']}" for row in bad)
        if counts["records"] % _SAY_EVERY == 0:
            say(f"import: {counts['records']:,} records")
    record = {
        "source": annotations,
        "images": images,
        **counts,
        "quarantined": dict(quarantined.most_common()),
    }
    if not counts["annotations"]:
        raise ConfigurationError(
            f"--annotations {annotations}: none of {counts['records']:,} records can be used"
            f" ({_leading(quarantined)});"
            f" see {output.uri}/quarantine. Is --images {images} the folder of these images?"
        )
    output.write_json(RECORD, record)
    return record


def part_rows(
    chunk: Iterable[Any], first: int, index: ImageIndex
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ANNOTATIONS and of QUARANTINE that records become; `first` is the number of the first
    record in its file.
    """
    good, bad = [], []
    for number, record in enumerate(chunk, first):
        found = annotations_of(record)
        if found is None:
            found = [Imported(image="", problem=f"record {number}: {_unknown(record)}")]
        for turn, item in enumerate(found):
            uri = index.find(item.image)
            image_uri = uri or item.image
            # The record's number makes the id unique where an image has several records, without
            # remembering which had.
            sample_id = f"{draw_key_of(image_uri, index.root)}-{number}-{turn}"
            known = {
                "image_id": image_id_of(image_uri),
                "image_uri": image_uri,
                "sample_id": sample_id,
            }
            if item.problem is not None:
                detail = {"reason": Reason.UNPARSABLE_ANNOTATION, "detail": item.problem}
            elif uri is None:
                detail = {
                    "reason": Reason.MISSING,
                    "detail": f"record {number}: no image of this name",
                }
            else:
                good.append(known | {"question": item.question, "answer": item.answer})
                continue
            stage = Stage.IMAGES if detail["reason"] == Reason.MISSING else Stage.PSEUDO_ANNOTATOR
            bad.append(
                known
                | {"stage": str(stage), "reason": str(detail["reason"]), "detail": detail["detail"]}
            )
    return good, bad


def _unknown(record: Any) -> str:
    if record is None:
        return "it holds no record"
    if not isinstance(record, dict):
        return (
            f"a record is {type(record).__name__} and not an object with the image's name, a"
            " question and an answer"
        )
    pairs = ", ".join(" + ".join(pair) for pair in TEXT_KEYS)
    return (
        f"a record has the keys {', '.join(map(repr, record)) or '(none)'}; needed are one of"
        f" {', '.join(IMAGE_KEYS)} for the image, and"
        f" {CONVERSATIONS} or one of the pairs {pairs}. Rename its keys"
    )


def _leading(quarantined: Counter[str]) -> str:
    return "; ".join(f"{name} {count:,}" for name, count in quarantined.most_common())


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _chunks(items: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(items, _RECORDS_PER_PART)):
        yield chunk
