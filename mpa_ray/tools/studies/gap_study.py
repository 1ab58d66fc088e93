"""What parity samples show the S-VLM to lack (Table 8): by a rule where a rule does, by the L-VLM
as judge for the rest.

OUTPUT/gaps.json       counts beside the paper's, examples of each category
OUTPUT/gaps.parquet    every sample that was looked at, with its category, who decided, and the
                       judge's reply
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.engines import Sampling
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images.parts import dataset_of
from mpa_ray.placement import capacity
from mpa_ray.report.run_folder import Place, drawn, require, rows_at, with_stored_images
from mpa_ray.schema import SOURCE_ROW, Stage, Verdict
from mpa_ray.stages import early_stop
from mpa_ray.stages.row_worker import Ask, Row, RowStage, map_rows_with_model
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies.gap_categories import (
    CATEGORIES,
    UNCLASSIFIED,
    VERBOSE,
    Category,
    is_verbose,
    judge_prompt,
    parse_reply,
)

if TYPE_CHECKING:
    from ray.data import Dataset

RECORD = "gaps.json"
BY_RULE, BY_JUDGE = "rule", "judge"

_SAMPLE_COLUMNS = ["sample_id", "image_id", "image_uri", "question", "answer", "svlm_answer"]
_SAMPLES_PER_PART = 64
# A letter and a little more, so that a reply that argues is seen as one and not cut down to a
# letter.
_REPLY_TOKENS = 16

_TEXTS = [
    pa.field(name, pa.string()) for name in ("sample_id", "question", "answer", "svlm_answer")
]
_TO_JUDGE = pa.schema([*SOURCE_ROW, *_TEXTS])
_JUDGED = pa.schema([*_TO_JUDGE, *(pa.field(name, pa.string()) for name in ("reply", "category"))])
GAPS = pa.schema(
    [pa.field(name, pa.string()) for name in (*_SAMPLE_COLUMNS, "category", "decided_by", "reply")]
)


async def judge_row(row: Row, ask: Ask, *, categories: tuple[Category, ...]) -> list[Row]:
    """The row with the judge's reply and the category it names."""
    prompt = judge_prompt(
        categories, question=row["question"], answer=row["answer"], svlm_answer=row["svlm_answer"]
    )
    reply = await ask(prompt, Sampling(max_tokens=_REPLY_TOKENS))
    return [row | {"reply": reply.text, "category": parse_reply(reply.text, categories)}]


def judged_by(
    dataset: "Dataset",
    lvlm: LocalModelSection,
    config: Config,
    *,
    categories: tuple[Category, ...],
    output: Folder,
) -> "Dataset":
    """Samples with their images in, the same with `reply` and `category` and without the image
    out.
    """
    lvlm = capacity.place_single_model(lvlm, config, what="gap study")
    stage = RowStage(
        name="GapJudge",
        work=partial(judge_row, categories=categories),
        models=[lvlm],
        asks=[Stage.GAP_STUDY],
        schema=_JUDGED,
    )
    rows = map_rows_with_model(dataset, stage, config=config, output=output)
    return rows.drop_columns(["image"])


def study(
    run: Folder,
    output: Folder,
    *,
    config: Config,
    lvlm: LocalModelSection,
    samples: int = 100,
    seed: int = 0,
    examples: int = 5,
) -> dict[str, Any]:
    """Draw parity samples, put each into a category, and write gaps.parquet and gaps.json; the
    L-VLM is asked where no rule decides.

    Args:
        run: a run's output folder.
        output: where the study goes; it may hold other studies.
        config: the run's; its task chooses the categories.
        lvlm: the judge.
        samples: how many are drawn; all there are where they are fewer.
        seed: of what is drawn.
        examples: at most so many of each category in gaps.json.

    Returns:
        What is in gaps.json; see `summarize`.

    Raises:
        ConfigurationError: Table 8 has no categories for the task, there is no parity sample, or
            the study is there already.
        RunError: an image cannot be read, or the judge cannot continue.
    """
    task = config.task_spec.name
    if task not in CATEGORIES:
        raise ConfigurationError(
            f"task={task!r}: Table 8 has no categories for it; it has for {', '.join(CATEGORIES)}"
        )
    if samples < 1:
        raise ConfigurationError(f"--samples {samples}: give at least 1")
    if output.exists(RECORD):
        raise ConfigurationError(
            f"--output {output.uri}: holds {RECORD} already and nothing is overwritten; give"
            " another folder"
        )
    judgements = require(run, "judgements")
    places = drawn(
        judgements, samples, salt=f"gaps/{seed}", verdicts=frozenset({str(Verdict.PARITY)})
    )
    if not places:
        raise ConfigurationError(
            f"--run {run.uri}: it has no parity sample, so there is no gap to study"
        )
    rows = rows_at(places, judgements, _SAMPLE_COLUMNS)
    decided = [
        row | {"category": VERBOSE, "decided_by": BY_RULE, "reply": None}
        for row in rows.values()
        if is_verbose(row["answer"], row["svlm_answer"])
    ]
    by_rule = {row["sample_id"] for row in decided}
    left = [place for place in places if place[1] not in by_rule]
    decided += _ask(left, run, output, config, lvlm) if left else []
    categories = CATEGORIES[task]
    order = {sample_id: number for number, (_, sample_id) in enumerate(places)}
    decided.sort(key=lambda row: order[row["sample_id"]])
    output.write_table("gaps.parquet", pa.Table.from_pylist(decided, schema=GAPS))
    record = {"run": run.uri, "task": task, "judge": lvlm.model, "seed": seed} | summarize(
        decided, categories, examples=examples
    )
    output.write_json(RECORD, record)
    return record


def _ask(
    places: list[Place], run: Folder, output: Folder, config: Config, lvlm: LocalModelSection
) -> list[Row]:
    from mpa_ray.placement.ray_session import ray_session

    chunks = [
        places[start : start + _SAMPLES_PER_PART]
        for start in range(0, len(places), _SAMPLES_PER_PART)
    ]
    read = partial(read_samples, chunks=chunks, run=run, max_image_bytes=config.max_image_bytes)
    with ray_session():
        early_stop.begin_call(output)
        samples = dataset_of(list(range(len(chunks))), read)
        asked = judged_by(
            samples, lvlm, config, categories=CATEGORIES[config.task_spec.name], output=output
        )
        found = []
        table: pa.Table
        for table in asked.iter_batches(batch_size=None, batch_format="pyarrow"):
            found += table.to_pylist()
        early_stop.raise_if_stopped(
            output, f"{len(found):,} of {len(places):,} samples were judged"
        )
    if len(found) != len(places):
        raise RunError(
            f"{len(places):,} samples were given to the judge and {len(found):,} came back; run it"
            " again"
        )
    return [row | judgement(row) for row in found]


def read_samples(
    number: int, *, chunks: Sequence[list[Place]], run: Folder, max_image_bytes: int
) -> pa.Table:
    """One part for the judge: samples with their images, from parity/ where they are kept and by
    their URI where not.
    """
    rows: list[Row] = []
    for name in sorted({name for name, _ in chunks[number]}):
        found = rows_at(
            [place for place in chunks[number] if place[0] == name],
            run.child("judgements"),
            _SAMPLE_COLUMNS,
        )
        table = pa.Table.from_pylist(
            list(found.values()),
            schema=pa.schema([pa.field(column, pa.string()) for column in _SAMPLE_COLUMNS]),
        )
        pictures, _ = with_stored_images(
            table, stored=run.child("parity"), name=name, max_image_bytes=max_image_bytes
        )
        images = {
            row["sample_id"]: row["image"]["bytes"]
            for row in pictures.select(["sample_id", "image"]).to_pylist()
        }
        rows += [
            row | {"part": number, "image": images[row["sample_id"]]} for row in found.values()
        ]
    return pa.Table.from_pylist(rows, schema=_TO_JUDGE)


def judgement(row: Row) -> Row:
    """Category and who decided, of a row that came back from the judge; one that could not be asked
    about is unclassified and says why.
    """
    if row["reason"] is not None:
        return {
            "category": UNCLASSIFIED,
            "decided_by": BY_JUDGE,
            "reply": f"({row['stage']}: {row['reason']}: {row['detail']})",
        }
    return {"category": row["category"], "decided_by": BY_JUDGE, "reply": row["reply"]}


def summarize(
    decided: list[Row], categories: tuple[Category, ...], *, examples: int
) -> dict[str, Any]:
    """Counts and examples.

    Returns:
        {"samples", "categories": [{"name", "count", "percent", "by_rule", "by_judge",
        "paper_percent", "examples"}]}, in Table 8's order with "unclassified" last, whose
        paper_percent is None.
    """
    rows = []
    for name, paper in [
        *((category.name, category.paper_percent) for category in categories),
        (UNCLASSIFIED, None),
    ]:
        found = [row for row in decided if row["category"] == name]
        by_rule = sum(row["decided_by"] == BY_RULE for row in found)
        rows.append(
            {
                "name": name,
                "count": len(found),
                "percent": 100 * len(found) / len(decided),
                "by_rule": by_rule,
                "by_judge": len(found) - by_rule,
                "paper_percent": paper,
                "examples": [
                    {key: row[key] for key in GAPS.names if key != "category"}
                    for row in found[:examples]
                ],
            }
        )
    return {"samples": len(decided), "categories": rows}


def table(record: dict[str, Any]) -> str:
    """The counts beside Table 8's, for a terminal."""
    lines = [
        [
            f"{record['task']}, {record['samples']:,} parity samples",
            "count",
            "percent",
            "by rule",
            "by judge",
            "paper, percent",
        ]
    ]
    for row in record["categories"]:
        paper = "-" if row["paper_percent"] is None else str(row["paper_percent"])
        lines.append(
            [
                row["name"],
                str(row["count"]),
                f"{row['percent']:.1f}",
                str(row["by_rule"]),
                str(row["by_judge"]),
                paper,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
