import asyncio
import subprocess
import sys
from functools import partial

import pytest

from mpa_ray.config import Config, ModelSection
from mpa_ray.engines import Reply
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.report.run_folder import drawn
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies import gap_study
from mpa_ray.tools.studies.gap_categories import CATEGORIES, UNCLASSIFIED, VERBOSE
from mpa_ray.tools.studies.gap_study import (
    judge_row,
    judgement,
    read_samples,
    study,
    summarize,
    table,
)
from tests.run_folders import judged, rows_of, write_run

CONFIG = Config(task="okvqa")
LVLM = ModelSection(model="a/judge")


@pytest.fixture
def run(tmp_path):
    """Parity samples: two verbose ones, six for the judge; and one that is no parity sample."""
    answers = ["it is red", "a red thing", "blue", "green", "not red", "", "black", "cyan"]
    rows = [
        judged(f"{tmp_path}/images/{n}.png", answer="red", lvlm="red", svlm=said, verdict="parity")
        for n, said in enumerate(answers)
    ]
    right = judged(
        f"{tmp_path}/images/right.png", answer="red", lvlm="red", svlm="red", verdict="svlm_correct"
    )
    return write_run(tmp_path / "run", [[*rows[:5], right], rows[5:]])


def reads(run, places, size=64):
    chunks = [places[start : start + size] for start in range(0, len(places), size)]
    return [
        read_samples(number, chunks=chunks, run=run, max_image_bytes=10**6)
        for number in range(len(chunks))
    ]


@pytest.fixture
def judge(monkeypatch, run):
    """In place of Ray and a model: replies by the S-VLM's answer, and the prompts that were
    asked.
    """
    replies = {
        "blue": "B",
        "green": "A.",
        "not red": "hard to say",
        "": "D",
        "black": "visual guesswork",
    }
    prompts = []

    async def ask(prompt, sampling):
        prompts.append(prompt)
        said = prompt.partition("Small model's answer: ")[2].partition("\n")[0]
        text = replies.get("" if said == "(nothing)" else said, "E")
        return Reply(
            text=text, prompt_tokens=1, cached_tokens=0, output_tokens=1, finish_reason="stop"
        )

    def asked(places, run, output, config, lvlm):
        rows = [row for part in reads(run, places, size=4) for row in part.to_pylist()]
        found = [
            asyncio.run(judge_row(row, ask, categories=CATEGORIES[config.task]))[0] for row in rows
        ]
        found[0] |= {"stage": "gap_study", "reason": "engine_rejected", "detail": "too long"}
        return [row | judgement(row) for row in found]

    monkeypatch.setattr(gap_study, "_ask", asked)
    return prompts


def test_a_study(run, tmp_path, judge):
    output = Folder.at(tmp_path / "studies")
    record = study(run, output, config=CONFIG, lvlm=LVLM, examples=1)
    counts = {row["name"]: row["count"] for row in record["categories"]}
    assert record["samples"] == sum(counts.values()) == 8
    assert counts[VERBOSE] == 2
    assert len(judge) == 6
    assert output.read_json("gaps.json") == record
    assert all(len(row["examples"]) <= 1 for row in record["categories"])
    rows = rows_of(output)
    assert {row["decided_by"] for row in rows if row["category"] == VERBOSE} == {"rule"}
    rejected = [
        row for row in rows if (row["reply"] or "").startswith("(gap_study: engine_rejected")
    ]
    assert [row["category"] for row in rejected] == [UNCLASSIFIED]
    by_answer = {row["svlm_answer"]: row["category"] for row in rows if row not in rejected}
    expected = {
        "blue": "visual guesswork",
        "green": "lack of knowledge grounding",
        "not red": UNCLASSIFIED,
        "": "noisy or irrelevant",
    }
    expected |= {
        "black": "visual guesswork",
        "cyan": UNCLASSIFIED,
        "it is red": VERBOSE,
        "a red thing": VERBOSE,
    }
    assert by_answer.items() <= expected.items()
    text = table(record)
    assert (
        "visual guesswork" in text
        and "58" in text
        and text.splitlines()[-1].startswith(UNCLASSIFIED)
    )


def test_the_samples_come_with_their_images(run, tmp_path):
    places = drawn(run.child("judgements"), 100, salt="x", verdicts=frozenset({"parity"}))
    stored = {row["sample_id"]: row["image"]["bytes"] for row in rows_of(run.child("parity"))}
    first = [row for part in reads(run, places, size=3) for row in part.to_pylist()]
    run.child("parity").delete_folder()
    again = [row for part in reads(run, places, size=3) for row in part.to_pylist()]
    assert (
        {row["sample_id"]: row["image"] for row in first}
        == {row["sample_id"]: row["image"] for row in again}
        == stored
    )
    assert all(row["reason"] is None and row["svlm_answer"] is not None for row in first)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(RunError, match="could be read when it was annotated"):
        reads(run, places)


def test_no_model_is_asked_where_the_rule_decides_all(tmp_path):
    run = write_run(
        tmp_path / "run",
        [
            [
                judged(
                    f"{tmp_path}/i/1.png",
                    answer="a b",
                    lvlm="a b",
                    svlm="it is a b",
                    verdict="parity",
                )
            ]
        ],
    )
    record = study(run, Folder.at(tmp_path / "studies"), config=CONFIG, lvlm=LVLM)
    assert [row["by_rule"] for row in record["categories"] if row["count"]] == [1]


def test_what_cannot_be_studied_is_refused(run, tmp_path):
    refused = partial(study, config=CONFIG, lvlm=LVLM)
    output = Folder.at(tmp_path / "studies")
    with pytest.raises(
        ConfigurationError, match="Table 8 has no categories for it; it has for textvqa"
    ):
        study(run, output, config=Config(task="pathvqa"), lvlm=LVLM)
    with pytest.raises(ConfigurationError, match="--samples 0"):
        refused(run, output, samples=0)
    output.write_json("gaps.json", {})
    with pytest.raises(ConfigurationError, match=r"holds gaps\.json already"):
        refused(run, output)
    without = write_run(
        tmp_path / "other",
        [[judged(f"{tmp_path}/i/1.png", answer="a", lvlm="a", svlm="a", verdict="svlm_correct")]],
    )
    with pytest.raises(ConfigurationError, match="no parity sample"):
        refused(without, Folder.at(tmp_path / "new"))


def test_the_numbers_of_a_table():
    """Three rows by the rule and one by the judge, which agreed with it; two more by the judge
    alone.
    """
    other = CATEGORIES["chartqa"][0].name
    assert other != VERBOSE
    decided = [(VERBOSE, "rule")] * 3 + [(VERBOSE, "judge"), (other, "judge")]
    rows = [
        {name: "x" for name in gap_study.GAPS.names} | {"category": name, "decided_by": by}
        for name, by in decided
    ]
    record = summarize(rows, CATEGORIES["chartqa"], examples=2)
    shown = {
        row["name"]: (
            row["count"],
            row["percent"],
            row["by_rule"],
            row["by_judge"],
            len(row["examples"]),
        )
        for row in record["categories"]
        if row["count"]
    }
    assert record["samples"] == 5
    assert shown == {VERBOSE: (4, 80.0, 3, 1, 2), other: (1, 20.0, 0, 1, 1)}
    assert sum(row["percent"] for row in record["categories"]) == 100
    (line,) = [
        line.split()
        for line in table(record | {"task": "chartqa"}).splitlines()
        if line.startswith(VERBOSE)
    ]
    assert line[-5:-1] == ["4", "80.0", "3", "1"]


def test_a_category_nobody_was_put_in_counts_zero():
    row = {name: "x" for name in gap_study.GAPS.names} | {"category": VERBOSE, "decided_by": "rule"}
    record = summarize([row], CATEGORIES["chartqa"], examples=0)
    assert [(item["name"], item["count"]) for item in record["categories"] if item["count"]] == [
        (VERBOSE, 1)
    ]
    assert record["categories"][-1]["paper_percent"] is None


def test_the_job_refuses_a_folder_without_a_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "jobs/gap_study.py", "--run", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"error: --run {str(tmp_path)!r}: holds no config.json; give the output folder of a run\n",
    )
