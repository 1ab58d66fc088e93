"""Grids of runs without models: the paper's figures, each cell's configuration, what is skipped,
shared and reported, and who leads.
"""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from mpa_ray import cli, pipeline
from mpa_ray.config import Config, hyperparameters, identity
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.tables import grid as tables
from mpa_ray.tools.tables import grid_data
from mpa_ray.tools.tables.paper import DEMO_TABLES, TABLES, Cell, demo_cell, demo_table

ROOT = Path(__file__).parents[2]
# Of 8 questions, how many each model has right: in all seeds, and one more in odd seeds.
RIGHT = {
    "zero_shot": 2,
    "lvlm": 8,
    "human_labels": 3,
    "no_pi_all": 8,
    "no_pi_same_size": 5,
    "mpa": 6,
}


class FakeRuns:
    """Stands where pipeline.run does: leaves a finished run of the configuration's models, without
    asking any.
    """

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.failing: dict[str, Exception] = {}

    def __call__(self, config: Config) -> dict[str, Any]:
        self.configs.append(config)
        output = Folder.at(config.output)
        for part, error in self.failing.items():
            if part in config.output:
                if isinstance(error, RunError):
                    output.write_json("config.json", identity(config))
                raise error
        output.write_json("config.json", identity(config))
        output.write_json("stages/annotate_and_identify.json", {})
        scores = []
        for model in [
            "zero_shot",
            *(["lvlm"] if config.evaluate.lvlm else []),
            "mpa",
            *config.ablations,
        ]:
            right = [
                float(number < RIGHT.get(model, 4) + (config.seed % 2 if model == "mpa" else 0))
                for number in range(8)
            ]
            table = pa.table(
                {"question_id": [f"q{number}" for number in range(8)], "textvqa_accuracy": right}
            )
            output.write_table(f"evaluation/predictions/{model}.parquet", table)
            for metric in ("textvqa_accuracy", "mpa_compat_accuracy"):
                scores.append(
                    {
                        "model": model,
                        "benchmark": "b",
                        "metric": metric,
                        "score": 12.5 * sum(right),
                        "ci95": [1.0, 99.0],
                        "n": 8,
                    }
                )
        training = {name: {"samples": 1000 + len(name)} for name in ("mpa", *config.ablations)}
        return {"training": training, "evaluation": scores}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    fake = FakeRuns()
    monkeypatch.setattr(pipeline, "run", fake)
    return fake


@pytest.fixture
def data(tmp_path: Path) -> grid_data.GridData:
    return grid_data.read(ROOT / "jobs" / "data.example.yaml")


def made(
    number: int,
    folder: Path,
    *,
    data: grid_data.GridData | None = None,
    seeds: tuple[int | None, ...] = (None,),
) -> tuple[str, dict]:
    table = TABLES[number] if data else demo_table(number)
    return tables.run_table(table, output=Folder.at(folder), seeds=seeds, data=data)


def test_the_papers_figures_are_all_there() -> None:
    assert {number: len(table.cells) for number, table in TABLES.items()} == {
        1: 40,
        2: 2,
        3: 1,
        5: 4,
        6: 3,
        7: 1,
        9: 20,
        10: 1,
    }
    mpa = {}
    for number in (1, 5, 6, 9):
        for cell in TABLES[number].cells:
            found = next(figure.paper for figure in cell.figures if figure.model == "mpa")
            mpa.setdefault((cell.task, cell.lvlm, cell.svlm), set()).add(found)
    differing = {key: scores for key, scores in mpa.items() if len(scores) > 1}
    # As printed: Table 9 gives 66.1 where Table 1 gives 66.6.
    assert differing == {("stvqa", "Qwen2VL-7B", "InternVL2-4B"): {66.6, 66.1}}


def test_a_cell_is_configured_alike_by_every_table(data: grid_data.GridData) -> None:
    def known_by(number: int) -> dict[str, Any]:
        table = TABLES[number]
        cell = next(
            cell
            for cell in table.cells
            if (cell.task, cell.lvlm, cell.svlm) == ("textvqa", "Qwen2VL-7B", "Qwen2VL-2B")
        )
        return identity(grid_data.cell_config(cell, data, output="o", seed=0))

    assert known_by(1) == known_by(5) == known_by(6) == known_by(9)
    assert known_by(1)["labels.format"] == "textvqa" and known_by(1)["pl.learning_rate"] == 1e-5


@pytest.mark.parametrize("number", TABLES)
def test_every_cell_has_a_valid_configuration(number: int, data: grid_data.GridData) -> None:
    for cell in TABLES[number].cells:
        config = grid_data.cell_config(cell, data, output="o", seed=3)
        expected = hyperparameters.with_hyperparameters(
            config.pl, grid_data.MODELS[cell.svlm]["model"]
        )
        assert (config.pl.batch_size, config.pl.learning_rate) == (
            expected.batch_size,
            expected.learning_rate,
        )
        assert (config.task, config.seed, config.ablations, config.pl.workers) == (
            cell.task,
            3,
            cell.ablations,
            3,
        )
        assert (config.lvlm.engine == "openai") == (cell.lvlm == "GPT-4o")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"taks": {}}, "taks: unknown setting; did you mean tasks?"),
        ({"tasks": {"vqa": {}}}, "Input should be 'textvqa'"),
        ({"tasks": {"okvqa": {"evaluate": {}}}}, "tasks.okvqa.images: Field required"),
        ({"models": {"GPT-5": {}}}, "models.GPT-5: the paper has no model of this name"),
        ({"settings": {"seed": 3}}, "settings.seed: the grid sets this itself"),
    ],
)
def test_bad_data_is_refused(tmp_path: Path, tree: dict[str, Any], message: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigurationError) as caught:
        grid_data.read(file)
    assert message in str(caught.value) and str(caught.value).startswith(f"--data {file}: ")


def test_data_that_is_no_file_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        grid_data.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("tasks: {a")
    with pytest.raises(ConfigurationError, match="not YAML"):
        grid_data.read(tmp_path / "bad.yaml")


def test_annotations_are_made_once_for_each_lvlm_and_task(
    runs: FakeRuns, data: grid_data.GridData, tmp_path: Path
) -> None:
    made(1, tmp_path, data=data)
    makers = [config for config in runs.configs if config.annotations is None]
    assert len(runs.configs) == 40 and len(makers) == 8
    assert all(config.images and "smolvlm-500m" in config.output for config in makers)
    for config in runs.configs:
        if config.annotations is not None:
            assert config.images == "" and config.annotations.endswith("/smolvlm-500m/annotations")
            assert Path(config.annotations).parent.parent == Path(config.output).parent
    first = {config.output: config.annotations for config in runs.configs}
    made(9, tmp_path, data=data)
    assert {config.output: config.annotations for config in runs.configs} == first, (
        "a run resumes as it began"
    )


def test_annotations_are_not_paid_for_twice_while_they_are_unfinished(
    runs: FakeRuns, data: grid_data.GridData, tmp_path: Path
) -> None:
    runs.failing["textvqa/gpt-4o/tinyllava-2b"] = RunError("the budget is spent")
    _, found = made(2, tmp_path, data=data)
    assert [item["reason"] for item in found["did_not_run"]] == [
        "the budget is spent",
        f"the annotations of GPT-4o are being made by {tmp_path}/textvqa/gpt-4o/tinyllava-2b,"
        " which is not finished; finish or remove it",
    ]
    assert len(runs.configs) == 1


def test_a_cell_that_cannot_run_is_a_dash_with_its_reason_and_the_others_run(
    runs: FakeRuns, tmp_path: Path
) -> None:
    given = {"images": "i", "evaluate": {"benchmark": "b"}}
    data = grid_data.GridData.model_validate(
        {"tasks": {"textvqa": given | {"labels": {"benchmark": "l"}}, "stvqa": given}}
    )
    runs.failing["textvqa"] = ConfigurationError("svlm.model='x' cannot be served\nand more")
    text, found = made(6, tmp_path, data=data)
    reasons = {item["cell"].partition(" ")[0]: item["reason"] for item in found["did_not_run"]}
    assert reasons["textvqa"] == "svlm.model='x' cannot be served"
    assert reasons["stvqa"].startswith(
        "ablations=['human_labels'] are trained on human labels and labels.benchmark is not set"
    )
    assert reasons["chartqa"] == "data.yaml has no tasks.chartqa"
    line = next(line for line in text.splitlines() if line.startswith("chartqa") and "MPA" in line)
    assert line.split()[-5:] == ["-", "-", "-", "67.6", "1.6K"]
    assert "- chartqa / Qwen2VL-7B / Qwen2VL-2B: data.yaml has no tasks.chartqa" in text


def test_our_figures_stand_beside_the_papers(
    runs: FakeRuns, data: grid_data.GridData, tmp_path: Path
) -> None:
    text, found = made(6, tmp_path, data=data)
    row = next(row for row in found["rows"] if (row["task"], row["model"]) == ("textvqa", "mpa"))
    assert (row["mean"], row["ci95"], row["paper"], row["paper_samples"], row["samples"]) == (
        75.0,
        [1.0, 99.0],
        75.1,
        "2K",
        1003,
    )
    assert row["standard_deviation"] is None and row["mpa_compat"] == 75.0
    line = next(
        line for line in text.splitlines() if line.startswith("textvqa") and "  MPA" in line
    )
    assert line.split()[4:] == [
        "textvqa_accuracy",
        "75.0",
        "1.0",
        "to",
        "99.0",
        "75.0",
        "1,003",
        "75.1",
        "2K",
    ]
    assert (
        json.loads((tmp_path / "table-6.json").read_text()) == found
        and (tmp_path / "table-6.md").read_text() == text
    )


def test_the_demo_says_where_mpa_leads_and_where_training_on_everything_does(
    runs: FakeRuns, tmp_path: Path
) -> None:
    text, found = made(6, tmp_path, seeds=(0, 1, 2))
    cells = [(task, seed) for task in ("textvqa", "chartqa") for seed in (0, 1, 2)]
    assert [(config.task, config.seed) for config in runs.configs] == cells
    folders = [f"{tmp_path}/{task}/embedded-lvlm/embedded-svlm/seed-{seed}" for task, seed in cells]
    assert [config.output for config in runs.configs] == folders
    models = [row["model"] for row in found["rows"] if row["task"] == "textvqa"]
    assert models == ["zero_shot", "lvlm", "human_labels", "no_pi_all", "no_pi_same_size", "mpa"]
    mpa = next(row for row in found["rows"] if row["model"] == "mpa")
    assert mpa["scores"] == [75.0, 87.5, 75.0] and mpa["mean"] == pytest.approx(79.17, abs=0.01)
    assert mpa["standard_deviation"] == pytest.approx(7.2, abs=0.1)
    assert mpa["ci95"][0] < mpa["mean"] < mpa["ci95"][1]
    assert "paper" not in text and "sd over seeds" in text
    claims = {
        (claim["cell"].partition(" ")[0], claim["against"]): claim for claim in found["claims"]
    }
    assert set(claims) == {
        (task, arm)
        for task in ("textvqa", "chartqa")
        for arm in ("human_labels", "no_pi_all", "no_pi_same_size")
    }
    human, everything = claims["textvqa", "human_labels"], claims["textvqa", "no_pi_all"]
    assert human["difference"] == pytest.approx(41.67, abs=0.01) and (
        human["leads"],
        human["ahead"],
        human["of"],
    ) == ("mpa", 3, 3)
    assert everything["difference"] < 0 and everything["ahead"] == 0
    where = "textvqa / embedded-lvlm / embedded-svlm"
    assert (
        f"- MPA leads over all human labels, {where}: +41.7" in text
        and "ahead in 3 of 3 seeds)" in text
    )
    said = "MPA trails" if everything["leads"] else "too close to tell:"
    assert f"- {said} all pseudo-labels (no PI), {where}: {everything['difference']:+.1f}" in text


def test_a_demo_cell_is_what_the_jobs_demo_is(tmp_path: Path) -> None:
    """So that claim.py, the job and the tables do nothing twice."""
    cell = demo_cell("chartqa", ("human_labels",))
    job = runpy.run_path(str(ROOT / "jobs" / "mpa_chartqa.py"))["CONFIG"]
    asked = cli.parse(job, ["--preset", "demo", "--output", "o", "--seed", "2"])
    assert identity(asked) == identity(grid_data.demo_config(cell, output="elsewhere", seed=2))


def test_the_demo_has_no_api_and_no_other_benchmarks() -> None:
    assert set(TABLES) - set(DEMO_TABLES) == {2, 3, 10}
    assert {cell.task for cell in demo_table(7).cells} == {"pathvqa"}


def test_transfer_scores_each_model_once(
    runs: FakeRuns, data: grid_data.GridData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def score_alone(
        model: Any, *, name: str, config: Config, output: Folder
    ) -> list[dict[str, Any]]:
        asked.append((name, model.model, config.evaluate.format, output.uri))
        metrics = {
            "icdar2015": ["word_recognition_rate"],
            "textcaps": ["bleu_1", "rouge_l", "cider"],
        }[config.evaluate.format]
        return [
            {"model": name, "metric": metric, "score": 10.0, "ci95": None, "n": 3}
            for metric in metrics
        ]

    monkeypatch.setattr(tables, "score_alone", score_alone)
    text, found = made(10, tmp_path, data=data)
    cell = tmp_path / "textvqa" / "qwen2vl-7b" / "tinyllava-2b"
    at = {
        "zero_shot": "models/TinyLLaVA-2B-hf",
        "human_labels": f"{cell}/models/human_labels",
        "mpa": f"{cell}/model",
    }
    expected = [
        (name, at[name], bench, f"{cell}/transfer/{bench}")
        for bench in ("icdar2015", "textcaps")
        for name in at
    ]
    assert asked == expected
    assert [
        (row["benchmark"], row["metric"]) for row in found["rows"] if row["model"] == "mpa"
    ] == [
        ("icdar2015", "word_recognition_rate"),
        ("textcaps", "bleu_1"),
        ("textcaps", "rouge_l"),
        ("textcaps", "cider"),
    ]
    assert all(row["mean"] == 10.0 for row in found["rows"]) and "textcaps cider" in text


def test_transfer_needs_its_benchmarks(
    runs: FakeRuns, data: grid_data.GridData, tmp_path: Path
) -> None:
    _, found = made(3, tmp_path, data=data.model_copy(update={"transfer": {}}))
    assert (
        found["did_not_run"][0]["reason"] == "data.yaml has no transfer.icdar2015"
        and not runs.configs
    )


def test_another_error_is_not_swallowed(runs: FakeRuns, tmp_path: Path) -> None:
    runs.failing["textvqa"] = KeyError("a bug")
    with pytest.raises(KeyError):
        made(6, tmp_path)


def test_the_job(runs: FakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = runpy.run_path(str(ROOT / "jobs" / "table.py"))

    def call(*argv: str) -> argparse.Namespace:
        return job["main"](
            job["arguments"]().parse_args([*argv, "--output", str(tmp_path / "grid")])
        )

    job["main"].__globals__["RESULTS"] = tmp_path / "results"
    call("--table", "6", "--preset", "demo")
    assert len(runs.configs) == 6 and "## Table 6" in capsys.readouterr().out
    [report] = (tmp_path / "results").glob("*-table-6-demo.md")
    assert "- versions: " in report.read_text() and "MPA leads over" in report.read_text()
    call("--table", "7", "--data", str(ROOT / "jobs" / "data.example.yaml"))
    assert runs.configs[-1].output == f"{tmp_path}/grid/pathvqa/qwen2vl-7b/tinyllava-2b"
    assert len(list((tmp_path / "results").iterdir())) == 2, (
        "only the demo's tables are results of this machine"
    )
    with pytest.raises(
        ConfigurationError, match="give --data FILE, or --preset demo, and not both"
    ):
        call("--table", "6")
    with pytest.raises(ConfigurationError, match="it has tables 1, 5, 6, 7, 9"):
        call("--table", "3", "--preset", "demo")


def test_shared_folders_have_plain_names(tmp_path: Path) -> None:
    cell = Cell(task="okvqa", lvlm="GPT-4o", svlm="SmolVLM-500M", figures=())
    assert (
        tables.cell_folder(Folder.at(tmp_path), cell, 4).uri
        == f"{tmp_path}/okvqa/gpt-4o/smolvlm-500m/seed-4"
    )
    assert (
        tables.cell_folder(Folder.at(tmp_path), cell, None).uri
        == f"{tmp_path}/okvqa/gpt-4o/smolvlm-500m"
    )
