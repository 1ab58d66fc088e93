"""A labeled benchmark as it is asked and scored: read once from its official files, kept in the
output in parts, scored by the official rule.

`evaluation/questions/` holds the questions of the run's benchmark, so that every model is asked the
same ones by the same code.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from threading import Lock
from typing import Any

import pyarrow as pa

from mpa_ray.config import EvaluateSection, LabeledSection
from mpa_ray.errors import ConfigurationError
from mpa_ray.images.decode import image_id_of
from mpa_ray.images.parts import part_name
from mpa_ray.images.references import quote_path
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.benchmark_readers import LabeledQuestion, files_of
from mpa_ray.tasks.benchmarks import BENCHMARKS

QUESTION_COLUMNS = [
    pa.field("question_id", pa.string()),
    pa.field("question", pa.string()),
    pa.field("answers", pa.list_(pa.string())),
    pa.field("question_kind", pa.string()),
]
QUESTIONS = pa.schema(
    [
        *QUESTION_COLUMNS,
        pa.field("image_id", pa.string()),
        pa.field("image_uri", pa.string()),
        pa.field("image", pa.large_binary()),
    ]
)

_INDEX = "index.json"
_QUESTIONS_PER_PART = 128
# Models are asked side by side in threads.
_ONE_AT_A_TIME = Lock()


def prepare(
    settings: LabeledSection, questions: Folder, *, predictions: Folder | None = None
) -> int:
    """Read the benchmark into `questions`, once, and again where its files have changed; return
    how many parts it has.

    Args:
        settings: which benchmark, and where.
        questions: where it is kept.
        predictions: of models that were asked these questions: while there are some, the benchmark
            must be the one they were asked.

    Raises:
        ConfigurationError: a file, an image, an answer or a column is missing, and the message
            names it; or the files have changed since models were scored.
    """
    assert settings.benchmark is not None
    with _ONE_AT_A_TIME:
        index = questions.read_json(_INDEX) if questions.exists(_INDEX) else None
        if index and LabeledSection(**index["source"]) == LabeledSection(**_source(settings)):
            if not changed(settings, index):
                return index["parts"]
            if predictions and predictions.names(".parquet"):
                raise ConfigurationError(
                    f"{_named(settings)} has changed since models were scored on it"
                    f" ({predictions.uri}); give another output, or the"
                    " benchmark as it was"
                )
        return _read(settings, questions)


def changed(settings: LabeledSection, record: Mapping[str, Any]) -> bool:
    """Whether the benchmark holds other questions than when `record` was made. Where its files are
    gone, or older versions kept nothing of them, it does not.

    Args:
        settings: which benchmark.
        record: with `files` and `digest`, as index.json has them.
    """
    files = _files(settings)
    if not files or files == record.get("files", files):
        return False
    digest = hashlib.sha256()
    for labeled in _labeled(settings):
        digest.update(_entry(labeled))
    return digest.hexdigest() != record["digest"]


def record(output: Folder) -> dict[str, Any]:
    """What `changed` compares with, of the benchmark that models in `output` were asked."""
    index = output.read_json(f"evaluation/questions/{_INDEX}")
    return {name: index[name] for name in ("files", "digest") if name in index}


def _read(settings: LabeledSection, questions: Folder) -> int:
    files, found, digest = _files(settings), _labeled(settings), hashlib.sha256()
    questions.delete_folder()
    count = 0
    while rows := list(islice(found, _QUESTIONS_PER_PART)):
        for labeled in rows:
            digest.update(_entry(labeled))
        table = pa.Table.from_pylist(
            list(_rows(rows, settings, count * _QUESTIONS_PER_PART)), schema=QUESTIONS
        )
        questions.write_table(part_name(count), table)
        count += 1
    if not count:
        raise ConfigurationError(f"{_named(settings)} holds no question; give another file")
    questions.write_json(
        _INDEX,
        {"source": _source(settings), "parts": count, "files": files, "digest": digest.hexdigest()},
    )
    return count


def _labeled(settings: LabeledSection) -> Iterator[LabeledQuestion]:
    try:
        yield from BENCHMARKS[settings.format].read(settings.benchmark or "", settings.images)
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{_named(settings)}: {error}") from error


def _named(settings: LabeledSection) -> str:
    section = "evaluate" if isinstance(settings, EvaluateSection) else "labels"
    return f"{section}.benchmark={settings.benchmark!r}"


def _source(settings: LabeledSection) -> dict[str, Any]:
    return {"benchmark": settings.benchmark, "format": settings.format, "images": settings.images}


def _files(settings: LabeledSection) -> dict[str, list[int]]:
    """The benchmark's files: path -> size and time of the last change, which tell cheaply that
    nothing was written.
    """
    found = [path for path in files_of(settings.format, settings.benchmark or "") if path.is_file()]
    return {str(path): [(stat := path.stat()).st_size, stat.st_mtime_ns] for path in found}


def _entry(labeled: LabeledQuestion) -> bytes:
    """What is asked of a question, for a hash; an image in a file counts by its path."""
    image = (
        hashlib.sha256(labeled.image_bytes).hexdigest()
        if labeled.image_bytes
        else labeled.image_path
    )
    return json.dumps(
        [labeled.question_id, labeled.question, labeled.answers, labeled.question_kind, image]
    ).encode()


def _rows(
    found: Sequence[LabeledQuestion], settings: LabeledSection, first: int
) -> Iterator[dict[str, Any]]:
    """An image that comes as bytes is known by its place: equal images of two questions are cached
    apart, which costs little and is never wrong.
    """
    for number, labeled in enumerate(found, first):
        uri = (
            quote_path(labeled.image_path)
            if labeled.image_path
            else f"{quote_path(settings.benchmark or '')}#question={number}"
        )
        yield {
            "question_id": labeled.question_id,
            "question": labeled.question,
            "answers": list(labeled.answers),
            "question_kind": labeled.question_kind,
            "image_id": image_id_of(uri),
            "image_uri": uri,
            "image": labeled.image_bytes,
        }


def metrics_of(settings: EvaluateSection, task_metric: str) -> tuple[str, ...]:
    """The scores a run reports, the official one first."""
    return BENCHMARKS[settings.format].metrics or (task_metric, "mpa_compat_accuracy")
