"""Whole run folders for the report's tests: judged, quarantined, trained and evaluated, without a
model.
"""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from mpa_ray.config import Config, ModelSection, identity
from mpa_ray.images.decode import image_id_of
from mpa_ray.images.parts import part_name
from mpa_ray.schema import QUARANTINE, Verdict
from mpa_ray.stages.commits import TOKEN_COLUMNS
from mpa_ray.stages.evaluate import PREDICTIONS
from mpa_ray.stages.held_out import HELD_OUT
from mpa_ray.storage.folder import Folder
from tests.run_folders import judged, write_run

HOSTILE = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    "\"><img src=x onerror='window.pwned = 3'>",
    "' onmouseover='window.pwned = 4' autofocus onfocus='window.pwned = 5",
    "javascript:window.pwned=6",
    "<svg onload=window.pwned=7></svg><!--<script>",
    "<iframe srcdoc='<script>parent.pwned = 8</script>'></iframe>",
    "</style></textarea></title><a href='javascript:alert(9)' id=cards name=found>x</a>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css><img src=http://127.0.0.1:9/x.png>",
    "\u202egpj.exe\u202c \u2066isolated\u2069 \u200emark",
    "line\u2028paragraph\u2029end",
    "\x00\x1b[31mred\x07",
    "{{ 7 * 7 }} {% raw %} ${7*7} &lt;b&gt; &amp;amp;",
    "w" * 3000,
    "שלום <b>עולם</b> 你好",
)
WORDS = [
    "red",
    "blue",
    "stop",
    "exit",
    "hotel",
    "seven",
    "42",
    "3.5%",
    "yes",
    "no",
    "open",
    "closed",
    "the",
    "left",
    "sign",
    "a",
    "long",
    "road",
]


def some_rows(images: Path, count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Judged rows with all three verdicts."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        verdict = (Verdict.PARITY, Verdict.SVLM_CORRECT, Verdict.LVLM_INCONSISTENT)[
            number % 10 // 4
        ]
        answer, other = (
            " ".join(draw.sample(WORDS, 1 + number % 3)),
            " ".join(draw.sample(WORDS, 2)),
        )
        lvlm = other if verdict == Verdict.LVLM_INCONSISTENT else answer
        svlm = {Verdict.PARITY: other, Verdict.SVLM_CORRECT: answer}.get(verdict)
        question = f"What does number {number} say, {' '.join(draw.sample(WORDS, 4))}?"
        rows.append(
            judged(
                f"{images}/{number:06d}.png",
                question=question,
                answer=answer,
                lvlm=lvlm,
                svlm=svlm,
                verdict=str(verdict),
            )
        )
    return rows


def rejected(
    uri: str,
    *,
    stage: str = "images",
    reason: str = "truncated",
    detail: str = "PNG: image file is truncated",
) -> dict[str, Any]:
    return {
        "image_id": image_id_of(uri),
        "image_uri": uri,
        "stage": stage,
        "reason": reason,
        "detail": detail,
    }


def write_commit(
    run: Folder, number: int, rows: list[dict[str, Any]], quarantined: list[dict[str, Any]]
) -> None:
    """A part's books and quarantine; its rows are there already."""
    if quarantined:
        run.write_table(
            f"quarantine/{part_name(number)}", pa.Table.from_pylist(quarantined, schema=QUARANTINE)
        )
    counts: dict[str, int] = {}
    for row in quarantined:
        counts[f"{row['stage']}/{row['reason']}"] = (
            counts.get(f"{row['stage']}/{row['reason']}", 0) + 1
        )
    verdicts = [row["verdict"] for row in rows]
    asked = sum(row["svlm_answer"] is not None for row in rows)
    commit = {
        "part": number,
        "images": len(rows) + len(quarantined),
        "annotations": len(rows),
        "quarantined": counts,
        "verdicts": {name: verdicts.count(name) for name in set(verdicts)},
        "tokens": {name: 0 if "cached" in name else 40 * len(rows) for name in TOKEN_COLUMNS},
        "svlm_asked": asked,
        "call": 1000.0,
        "committed": 1060.0 + number,
    }
    run.write_json(f"commits/{part_name(number, '.json')}", commit)


def write_started(
    folder: Path,
    parts: list[list[dict[str, Any]]],
    quarantined: list[dict[str, Any]],
    **settings: Any,
) -> Folder:
    """A run under way: books and rows, and no run.json."""
    run = write_run(folder, parts)
    models = {"lvlm": ModelSection(model="org/large"), "svlm": ModelSection(model="org/small")}
    config = Config(**({"images": f"{folder}/../images", "output": run.uri} | models | settings))
    run.write_json("config.json", identity(config))
    for number, rows in enumerate(parts):
        write_commit(run, number, rows, quarantined if number == 0 else [])
    run.write_json("stages/annotate_and_identify.json", {"seconds": 61.0})
    return run


def finish(
    run: Folder,
    *,
    gaps: bool = True,
    kinds: tuple[str, ...] = ("text", "count"),
    said: tuple[str, ...] = ("stop", "7", "yes"),
) -> None:
    """Training, held-out rows, evaluation and run.json on top of a started run."""
    judgements = run.child("judgements")
    held_out = []
    for row in judgements.read_table(judgements.names(".parquet")[0]).to_pylist()[:8]:
        was_wrong = row["verdict"] == "parity"
        change = (
            ("learned" if was_wrong else "forgotten")
            if len(held_out) % 2
            else ("still_wrong" if was_wrong else "kept")
        )
        held_out.append(
            {name: row[name] for name in ("sample_id", "image_uri", "question", "answer")}
            | {"before": row["svlm_answer"] or "", "after": said[0], "change": change}
        )
    run.write_table(f"holdout/mpa/{part_name(0)}", pa.Table.from_pylist(held_out, schema=HELD_OUT))
    curve = [[step, 4.0 / step, 1.0 / step] for step in range(1, 900)]
    run.write_json(
        "model/training_log.json",
        {"columns": ["step", "loss_per_sample", "nats_per_token"], "rows": curve},
    )
    changes = {
        name: sum(row["change"] == name for row in held_out)
        for name in ("learned", "forgotten", "kept", "still_wrong")
    }
    trained = {
        "seconds": 63.0,
        "samples": 20,
        "loss": 0.5,
        "tokens_per_second": 80.0,
        "batch_size": 4,
        "learning_rate": 1e-5,
    }
    run.write_json("stages/train_mpa.json", trained)
    run.write_json("stages/holdout_mpa.json", changes | {"seconds": 20.0})
    scores = [
        score
        for model, good in (("zero_shot", 40), ("mpa", 70), ("lvlm", 90))
        for score in write_predictions(run, model, good, kinds, said)
    ]
    if gaps:
        category = {
            "name": said[0],
            "count": 3,
            "percent": 60.0,
            "by_rule": 1,
            "by_judge": 2,
            "paper_percent": 33,
            "examples": [],
        }
        run.write_json(
            "studies/gaps.json",
            {
                "run": run.uri,
                "task": "textvqa",
                "judge": said[0],
                "samples": 5,
                "categories": [category],
            },
        )
    from mpa_ray.report.run_folder import config_of
    from mpa_ray.stages.commits import totals

    config = config_of(run)
    assert config is not None
    paid = {
        "requests": 9,
        "prompt_tokens": 900,
        "cached_tokens": 300,
        "output_tokens": 90,
        "unsure_prompt_tokens": 0,
        "unsure_output_tokens": 0,
    }
    record = {
        "config": config.model_dump(mode="json"),
        "versions": {"python": "3.11"},
        **totals(run),
        "seconds": 61.0,
    }
    record |= {"evaluation": scores}
    record |= {
        "training": {"mpa": trained | {"holdout": changes}},
        "stages": {"annotate_and_identify": 61.0, "train_mpa": 63.0},
    }
    record |= {
        "ledger": {"annotate_and_identify": paid | {"cost_usd": 0.0123, "at_most_usd": 0.02}},
        "cost_usd": {"annotate_and_identify": 0.0123},
    }
    run.write_json("run.json", record)


def write_predictions(
    run: Folder,
    model: str,
    good: int,
    kinds: tuple[str, ...],
    said: tuple[str, ...],
    *,
    questions: int = 100,
) -> list[dict[str, Any]]:
    """Predictions of which `good` in a hundred are right, and their score."""
    rows = [
        {
            "question_id": f"q{number:04d}",
            "question": f"Question {number}?",
            "answers": [said[number % len(said)]] * 10,
            "question_kind": kinds[number % len(kinds)] if kinds else "",
            "image_uri": "x",
            "prediction": said[number % len(said)] if number % 100 < good else "",
            "textvqa_accuracy": float(number % 100 < good),
        }
        for number in range(questions)
    ]
    schema = pa.schema([*PREDICTIONS, pa.field("textvqa_accuracy", pa.float64())])
    run.write_table(
        f"evaluation/predictions/{model}.parquet", pa.Table.from_pylist(rows, schema=schema)
    )
    score = {
        "model": model,
        "benchmark": "benchmark",
        "metric": "textvqa_accuracy",
        "score": float(good),
        "ci95": [good - 9.0, good + 9.0],
    }
    step = score | {"n": questions, "by_kind": {}}
    run.write_json(f"stages/evaluate_{model}.json", {"seconds": 27.0, "scores": [step]})
    return [step]


def write_finished(folder: Path, count: int = 60) -> Folder:
    """An ordinary finished run."""
    rows = some_rows(folder.parent / "images", count)
    run = write_started(
        folder,
        [rows[: count // 2], rows[count // 2 :]],
        [rejected(f"{folder.parent}/images/bad-{number}.png") for number in range(5)],
    )
    finish(run)
    return run


def write_hostile(folder: Path) -> Folder:
    """A run in which every text that could be somebody else's is hostile."""
    images = folder.parent / "ima\"ges' <b> & co"
    rows = []
    for number, text in enumerate(HOSTILE):
        verdict = ("parity", "svlm_correct", "lvlm_inconsistent")[number % 3]
        name = "".join(character for character in text[:60] if character not in "/\0%#") or "x"
        rows.append(
            judged(
                f"{images}/{number} {name}.png",
                question=text,
                answer=text,
                lvlm=text,
                svlm=text,
                verdict=verdict,
            )
        )
    bad = [
        rejected(
            f"{images}/<img src=x onerror=window.pwned=10>{number}.png",
            reason="corrupt",
            detail=text,
        )
        for number, text in enumerate(HOSTILE)
    ]
    bad.append(rejected("x", stage=HOSTILE[0], reason=HOSTILE[1], detail=HOSTILE[2]))
    prompt = "\n".join(HOSTILE[:9])
    run = write_started(
        folder,
        [rows],
        bad,
        prompt=prompt,
        lvlm=ModelSection(model=HOSTILE[0]),
        svlm=ModelSection(model=HOSTILE[2]),
    )
    finish(run, kinds=HOSTILE, said=HOSTILE)
    return run
