"""Human labels as training rows, for the paper's supervised comparisons (Tables 5 and 6). Nothing
of MPA itself comes here.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from mpa_ray.config import Config
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import benchmark, references
from mpa_ray.images.decode import UnreadableImage
from mpa_ray.images.draw import draw
from mpa_ray.images.parts import dataset_of, part_name
from mpa_ray.schema import PARITY
from mpa_ray.storage.folder import Folder


def labeled_rows(config: Config, target: Folder, *, count: int, seed: int) -> Folder:
    """Write labeled questions as PARITY rows to `target`: `count` of them, drawn by `seed`, or all
    where it is 0.

    Raises:
        ConfigurationError: fewer questions are labeled than asked for, or an image is not there.
    """
    questions = target.child("questions")
    parts = benchmark.prepare(config.labels, questions)
    chosen = _draw(questions, count, f"few_shot/{seed}") if count else None
    # Rows of other labels, of a call that was stopped before it trained on them.
    for name in target.names(".parquet"):
        target.delete(name)
    write = partial(
        _write_part,
        questions=questions,
        target=target,
        chosen=chosen,
        max_image_bytes=config.max_image_bytes,
    )
    for _ in dataset_of(list(range(parts)), write).iter_batches(batch_size=None):
        pass
    return target


def _draw(questions: Folder, count: int, salt: str) -> frozenset[str]:
    ids = [
        question_id
        for table in questions.tables(["question_id"])
        for question_id in table.column(0).to_pylist()
    ]
    if len(ids) < count:
        raise ConfigurationError(
            f"few_shot={count} and labels.benchmark holds {len(ids)} questions; lower few_shot or"
            " give more labels"
        )
    return frozenset(heapq.nsmallest(count, ids, key=lambda question_id: draw(question_id, salt)))


def _write_part(
    number: int,
    *,
    questions: Folder,
    target: Folder,
    chosen: frozenset[str] | None,
    max_image_bytes: int,
) -> pa.Table:
    rows = [
        row
        for row in questions.read_table(part_name(number)).to_pylist()
        if chosen is None or row["question_id"] in chosen
    ]
    missing = [row for row in rows if row["image"] is None]
    for row, content in zip(
        missing,
        references.fetch([row["image_uri"] for row in missing], max_image_bytes=max_image_bytes),
        strict=True,
    ):
        if isinstance(content, UnreadableImage):
            raise ConfigurationError(
                f"labels.benchmark, question {row['question_id']} ({row['image_uri']}): {content}"
            )
        row["image"] = content
    fields = [
        {
            "image_id": row["image_id"],
            "sample_id": f"label-{row['question_id']}",
            "image": {"bytes": row["image"], "path": row["image_uri"]},
            "question": row["question"],
            "answer": commonest(row["answers"]),
        }
        for row in rows
    ]
    if fields:
        target.write_table(part_name(number), pa.Table.from_pylist(fields, schema=PARITY))
    return pa.table({"rows": [len(fields)]})


def commonest(answers: Sequence[str]) -> str:
    """The answer most people gave, the first of equals: one sample has one answer to learn."""
    return Counter(answers).most_common(1)[0][0]
