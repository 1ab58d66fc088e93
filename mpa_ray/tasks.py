"""The tasks of the paper. A new one is one entry: what to ask for, how to compare answers, how to score."""

from dataclasses import dataclass

from mpa_ray import prompts


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the Pseudo Annotator asks for and how its answers are compared."""

    prompt: str
    """The Pseudo Annotator's prompt; it follows the image."""
    matcher: str = "exact"
    """Eq. 1 for this task, a key of `mpa_ray.matchers.MATCHERS`."""
    metric: str
    """The official score, a key of `mpa_ray.evaluate.METRICS`."""


TASKS: dict[str, Task] = {
    "textvqa": Task(prompt=prompts.SCENE_TEXT, metric="textvqa_accuracy"),
    "stvqa": Task(prompt=prompts.SCENE_TEXT, metric="anls"),
    "chartqa": Task(prompt=prompts.CHART, metric="relaxed_accuracy"),
    "okvqa": Task(prompt=prompts.WORLD_KNOWLEDGE, metric="vqa_accuracy"),
    "pathvqa": Task(prompt=prompts.PATHOLOGY_YES_NO, metric="exact_match"),
}
