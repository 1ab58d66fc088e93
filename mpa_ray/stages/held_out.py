"""What an S-VLM learned and forgot, found without labels: it is asked again about self-consistent
rows that were held out of training.

No label is used: an answer is compared with the annotation, which the L-VLM itself answers alike.
Training on the parity set alone can overwrite what was known, and an accuracy on the task would
show it only where there are labels.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.images.draw import is_held_out
from mpa_ray.images.parts import part_name, part_number, with_images
from mpa_ray.observability.progress import Progress, Watch
from mpa_ray.schema import CHANGES, CONSISTENT, SOURCE_ROW
from mpa_ray.stages import early_stop
from mpa_ray.stages.ask_in_turn import Answered, Questions, ask_in_turn
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts
from mpa_ray.tasks.matchers import MATCHERS, Matcher

HELD_OUT = pa.schema(
    [
        pa.field(name, pa.string())
        for name in ("sample_id", "image_uri", "question", "answer", "before", "after", "change")
    ]
)
_HELD_OUT_ROW = pa.schema(
    [
        *SOURCE_ROW,
        *(pa.field(name, pa.string()) for name in ("sample_id", "question", "answer", "before")),
    ]
)


def compare_on_held_out(
    model: LocalModelSection, *, name: str, config: Config, output: Folder
) -> dict[str, int]:
    """Ask the trained S-VLM about the held-out rows and compare with what it answered before.
    Write holdout/<name>/.

    Returns:
        How many rows each of CHANGES has.

    Raises:
        RunError: the engine could not continue.
    """
    asked = held_out_questions(model, name=name, config=config, output=output)
    answered = next(ask_in_turn([asked], config=config, output=output))
    return changes_of(answered, asked, name=name, config=config, output=output)


def held_out_questions(
    model: LocalModelSection, *, name: str, config: Config, output: Folder
) -> Questions:
    """The held-out rows for `model`."""
    judgements = output.child("judgements")
    return Questions(
        name=f"holdout_{name}",
        model=model,
        numbers=[part_number(file) for file in judgements.names(".parquet")],
        read=partial(
            _read_held_out,
            judgements=judgements,
            share=config.pl.holdout,
            max_image_bytes=config.max_image_bytes,
        ),
        schema=_HELD_OUT_ROW,
        prompt=prompts.ANSWERING,
    )


def changes_of(
    answered: Iterator[Answered], asked: Questions, *, name: str, config: Config, output: Folder
) -> dict[str, int]:
    """As `compare_on_held_out`, of the answered parts."""
    matches = MATCHERS[config.matcher]
    counts = dict.fromkeys(CHANGES, 0)
    progress = Progress("held out", len(asked.numbers), unit="parts")
    with Watch(progress.waiting, stage="held out, loading"):
        for number, table in answered:
            progress.add(1)
            rows: list[dict[str, Any]] = table.to_pylist()
            for row in rows:
                row["after"] = row["prediction"]
                row["change"] = _change(row, matches)
                counts[row["change"]] += 1
            output.write_table(
                f"holdout/{name}/{part_name(number)}",
                pa.Table.from_pylist(rows, schema=HELD_OUT),
            )
    progress.end()
    early_stop.raise_if_stopped(
        output, "The held-out rows were not all asked again, and all of them are by the next call"
    )
    return counts


def _change(row: dict[str, Any], matches: Matcher) -> str:
    if row["reason"] is not None:
        return "unanswered"
    return change(matches(row["before"], row["answer"]), matches(row["after"], row["answer"]))


def change(right_before: bool, right_after: bool) -> str:
    """What became of a held-out row that was answered."""
    return {
        (False, True): "learned",
        (True, False): "forgotten",
        (True, True): "kept",
        (False, False): "still_wrong",
    }[right_before, right_after]


def _read_held_out(
    number: int, *, judgements: Folder, share: float, max_image_bytes: int
) -> pa.Table:
    table = judgements.read_table(
        part_name(number),
        ["image_id", "image_uri", "sample_id", "question", "answer", "svlm_answer", "verdict"],
    )
    keep = [
        verdict in CONSISTENT and is_held_out(sample_id, share)
        for sample_id, verdict in zip(
            table.column("sample_id").to_pylist(), table.column("verdict").to_pylist(), strict=True
        )
    ]
    rows = with_images(table.filter(pa.array(keep, pa.bool_())), max_image_bytes=max_image_bytes)
    rows = rows.rename_columns(
        ["before" if column == "svlm_answer" else column for column in rows.column_names]
    )
    return pa.Table.from_pylist(
        [row | {"part": number} for row in rows.drop_columns(["verdict"]).to_pylist()],
        schema=_HELD_OUT_ROW,
    )
