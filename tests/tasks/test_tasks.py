"""What a task is: the paper's five, a task of one's own from YAML and Python, and its worked
example in the docs.
"""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpa_ray import cli
from mpa_ray.config import Config, identity, parse
from mpa_ray.demo import inputs
from mpa_ray.errors import ConfigurationError
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import TASKS, Task

ROOT = Path(__file__).parents[2]
OWN = {"name": "mine", "prompt": "Ask.", "metric": "anls"}
GIVEN = ["--images", "i", "--output", "o", "--lvlm.model", "a/b", "--svlm.model", "c/d"]


def test_only_pathvqa_is_bound_to_answers() -> None:
    assert {name: task.answers for name, task in TASKS.items() if task.answers} == {
        "pathvqa": ("yes", "no")
    }


def test_the_task_of_a_run() -> None:
    assert Config(task="chartqa").task_spec is TASKS["chartqa"]
    own = Task(**OWN)
    assert Config(task=own).task_spec is own
    assert Config.model_validate({"task": OWN}).task_spec == own
    assert (own.matcher, own.answers) == ("exact", ())


@pytest.mark.parametrize("task", ["chartqa", OWN])
def test_a_configuration_with_a_task_comes_back_from_json(task: Any) -> None:
    config = Config.model_validate({"task": task})
    again = Config.model_validate(config.model_dump(mode="json"))
    assert again.task_spec == config.task_spec and identity(again) == identity(config)


def test_a_task_from_flags() -> None:
    config = cli.parse(
        Config(task="okvqa"),
        [*GIVEN, "--task.name", "mine", "--task.prompt", "Ask: one", "--task.metric", "anls"],
    )
    assert config.task_spec == Task(name="mine", prompt="Ask: one", metric="anls")
    assert cli.parse(Config(), [*GIVEN, "--task", "okvqa"]).task == "okvqa"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("vqa", "task: Input should be 'textvqa', "),
        (7, "task: Input should be 'textvqa', "),
        ({**OWN, "promt": "x"}, "task.promt: unknown setting; did you mean task.prompt?"),
        ({"name": "mine", "metric": "anls"}, "task.prompt: Field required"),
        ({**OWN, "metric": "bleu"}, "task.metric: Input should be 'textvqa_accuracy'"),
        ({**OWN, "matcher": "fuzzy"}, "task.matcher: Input should be 'exact'"),
        ({**OWN, "name": "My task"}, "task.name: String should match pattern"),
        (
            {**OWN, "name": "textvqa"},
            "task.name='textvqa' is one of the paper's tasks and this is another",
        ),
        ({**OWN, "answers": [True, False]}, "task.answers.0: Input should be a valid string"),
    ],
)
def test_a_task_that_cannot_be_is_refused(task: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse.validate({"task": task})
    assert str(caught.value).startswith(message)


def test_the_demo_renders_no_own_task() -> None:
    with pytest.raises(
        ConfigurationError, match="task.name='mine' and the demo preset exclude each other"
    ):
        parse.validate({"task": OWN, "demo": {"images": 3}})


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_job(task: str, tmp_path: Path) -> None:
    job = runpy.run_path(str(ROOT / "jobs" / f"mpa_{task}.py"))["CONFIG"]
    config = cli.parse(job, ["--preset", "demo", "--output", str(tmp_path)])
    assert config.task == task and config.demo.images and not config.missing()
    assert (
        cli.parse(job, ["--images", "i", "--output", "o"]).lvlm.model == "Qwen/Qwen2-VL-7B-Instruct"
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_demo_asks_what_the_task_asks(task: str, tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    inputs.write(folder, task=task, images=1, questions=24, seed=0)
    inputs.write_labels(folder, task=task, count=24, seed=0)
    for name in (inputs.BENCHMARK, inputs.LABELS):
        answers = {row["answers"][0] for row in folder.read_table(name, ["answers"]).to_pylist()}
        assert (answers <= {"Yes", "No"}) == (task == "pathvqa")


def test_the_worked_example_is_a_configuration() -> None:
    found = re.findall(
        r"```yaml[^\n]*\n(.+?)```", (ROOT / "docs" / "own_task.md").read_text(), re.DOTALL
    )
    [text] = found
    config = parse.validate(yaml.safe_load(text))
    task = config.task_spec
    assert (task.name, task.answers, task.metric) == ("parking", ("yes", "no"), "exact_match")
    assert task.prompt.endswith("Question: <question>, Answer: <answer>")
