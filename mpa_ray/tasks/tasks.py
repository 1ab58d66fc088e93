"""The tasks of the paper, and what one is: what to ask for, which answers count, how to compare and
how to score them.

A task of one's own is the same `Task`, in Python or as the section `task` in YAML; docs/own_task.md
has a worked example.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpa_ray.tasks import prompts
from mpa_ray.tasks.benchmarks import METRICS
from mpa_ray.tasks.matchers import MATCHERS

# The tables are the one source of the names; what type checkers read cannot be computed.
if TYPE_CHECKING:
    MatcherName = str
    MetricName = str
else:
    MatcherName = Literal[tuple(MATCHERS)]
    MetricName = Literal[tuple(METRICS)]


class Task(BaseModel):
    """What the Pseudo Annotator asks for and how its answers are compared and scored."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """By which reports and model cards call it."""
    prompt: Annotated[str, Field(min_length=1)]
    """The Pseudo Annotator's prompt; it follows the image, and asks for a reply of the form
    "Question: ..., Answer: ...".
    """
    matcher: MatcherName = "exact"
    """Eq. 1 for this task, a key of `mpa_ray.tasks.matchers.MATCHERS`."""
    metric: MetricName
    """The official score, a key of `mpa_ray.tasks.benchmarks.METRICS`."""
    answers: tuple[str, ...] = ()
    """The only answers an annotation may have, compared as `exact` compares; one with another
    answer is quarantined. Without them, any.
    """


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="textvqa", prompt=prompts.SCENE_TEXT, metric="textvqa_accuracy"),
        Task(name="stvqa", prompt=prompts.SCENE_TEXT, metric="anls"),
        Task(name="chartqa", prompt=prompts.CHART, metric="relaxed_accuracy"),
        Task(name="okvqa", prompt=prompts.WORLD_KNOWLEDGE, metric="vqa_accuracy"),
        # The paper evaluates PathVQA's binary questions (Table 7): an annotation with another
        # answer is not of this task.
        Task(
            name="pathvqa",
            prompt=prompts.PATHOLOGY_YES_NO,
            metric="exact_match",
            answers=("yes", "no"),
        ),
    )
}
