"""Where a grid's images, benchmarks and labels are (`data.yaml`), and the configuration of a cell
that follows from it.
"""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mpa_ray.config import Config, EvaluateSection, LabeledSection, TaskName, hyperparameters
from mpa_ray.config.parse import merge, problems, validate
from mpa_ray.config.section import Section
from mpa_ray.demo import presets
from mpa_ray.errors import ConfigurationError
from mpa_ray.tools.tables.paper import Cell

# The paper's names. What a checkpoint is called on the hub may be in a layout that transformers
# does not serve: `models` in data.yaml says where a converted one is.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2VL-7B": presets.PAPER["qwen2vl-7b"]["lvlm"],
    "InternVL2-8B": presets.PAPER["internvl2-8b"]["lvlm"],
    "GPT-4o": presets.PAPER["gpt-4o"]["lvlm"],
    "Qwen2VL-2B": presets.PAPER["qwen2vl-2b"]["svlm"],
    "InternVL2-2B": presets.PAPER["internvl2-2b"]["svlm"],
    "InternVL2-4B": presets.PAPER["internvl2-4b"]["svlm"],
    "SmolVLM-500M": presets.PAPER["smolvlm-500m"]["svlm"],
    "TinyLLaVA-2B": presets.PAPER["tinyllava-2b"]["svlm"],
}
SVLMS = ("SmolVLM-500M", "TinyLLaVA-2B", "InternVL2-2B", "InternVL2-4B", "Qwen2VL-2B")

# The grid decides these, cell by cell.
_NOT_SETTINGS = {
    "images",
    "output",
    "task",
    "lvlm",
    "svlm",
    "jury",
    "labels",
    "ablations",
    "annotations",
    "rounds",
    "seed",
    "demo",
}


class TaskData(Section):
    """What a task's runs read."""

    images: str
    """The unlabeled images, as `--images` takes them."""
    evaluate: EvaluateSection
    """The labeled benchmark: annotation file, format, and the folder of its images."""
    labels: LabeledSection = LabeledSection()
    """Human labels of the training split, for the supervised comparisons (Tables 3, 5, 6, 10)."""


class GridData(Section):
    """The whole of data.yaml."""

    tasks: dict[TaskName, TaskData] = Field(default={})
    """Task -> its data. Cells of tasks that are not here do not run."""
    transfer: dict[Literal["icdar2015", "textcaps"], EvaluateSection] = Field(default={})
    """The benchmarks of Tables 3 and 10; their formats are known."""
    models: dict[str, dict[str, Any]] = Field(default={})
    """The paper's name of a model -> settings as under `lvlm` or `svlm`: another checkpoint,
    replicas, prices.
    """
    settings: dict[str, Any] = Field(default={})
    """Settings of every run, as in a run's YAML: `{pl: {workers: 3}}`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.models:
            if name not in MODELS:
                raise ValueError(
                    f"models.{name}: the paper has no model of this name; it has"
                    f" {', '.join(MODELS)}"
                )
        if decided := sorted(_NOT_SETTINGS & self.settings.keys()):
            raise ValueError(
                f"settings.{decided[0]}: the grid sets this itself, from tasks and models; remove"
                " it"
            )
        return self


def read(path: str | Path) -> GridData:
    """data.yaml, checked.

    Raises:
        ConfigurationError: it is not there, no YAML, or says something that is unknown.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
        return GridData.model_validate(tree)
    except OSError as error:
        raise ConfigurationError(
            f"--data {path}: cannot be read: {error.strerror}; give a YAML file"
            " (jobs/data.example.yaml)"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"--data {path}: not YAML: {' '.join(str(error).split())}"
        ) from error
    except ValidationError as error:
        lines = problems(error, GridData)
        raise ConfigurationError(*(f"--data {path}: {line}" for line in lines)) from error


def cell_config(cell: Cell, data: GridData, *, output: str, seed: int) -> Config:
    """The run of a cell. Tables that share it configure it alike but for its ablations, so that
    none is made twice.

    Raises:
        ConfigurationError: the data lacks the task or labels the cell needs, or the settings do not
            go together.
    """
    task = data.tasks.get(cell.task)
    if task is None:
        raise ConfigurationError(f"data.yaml has no tasks.{cell.task}")
    for benchmark in cell.benchmarks:
        if benchmark not in data.transfer:
            raise ConfigurationError(f"data.yaml has no transfer.{benchmark}")
    models = {
        role: MODELS[name] | data.models.get(name, {})
        for role, name in (("lvlm", cell.lvlm), ("svlm", cell.svlm))
    }
    batch_size, learning_rate = hyperparameters.TABLE_11[_table_11_name(cell.svlm)]
    own: dict[str, Any] = {
        "task": cell.task,
        "images": task.images,
        "output": output,
        "seed": seed,
        "ablations": cell.ablations,
        "labels": task.labels.model_dump(exclude_unset=True),
        "evaluate": task.evaluate.model_dump(exclude_unset=True),
        # By the paper's name: the checkpoint may be a folder, whose name says nothing.
        "pl": {"batch_size": batch_size, "learning_rate": learning_rate},
        **models,
    }
    return validate(
        merge(
            own,
            {
                **data.settings,
                "evaluate": merge(data.settings.get("evaluate", {}), own["evaluate"]),
            },
        )
    )


def _table_11_name(svlm: str) -> str:
    name = svlm.lower().replace("qwen2vl", "qwen2-vl")
    return next(part for part in hyperparameters.TABLE_11 if part in name)


def demo_config(cell: Cell, *, output: str, seed: int) -> Config:
    """The run of a cell with the embedded pair: what the task's job with `--preset demo` does."""
    own = {"task": cell.task, "output": output, "seed": seed, "ablations": cell.ablations}
    return validate(merge(presets.preset("demo"), own))
