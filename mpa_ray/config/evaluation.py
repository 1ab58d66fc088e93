"""Labeled questions in the configuration: for the evaluation, for supervised comparisons, and those
that the demo makes.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from mpa_ray.config.locations import OptionalLocation
from mpa_ray.config.section import MayChange, Section
from mpa_ray.tasks.benchmarks import BENCHMARKS

# Computed, as in mpa_ray/tasks/tasks.py.
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(BENCHMARKS)]


class LabeledSection(Section):
    """Questions with people's answers, for the supervised comparisons alone (Tables 5 and 6): MPA
    itself never reads them.
    """

    benchmark: OptionalLocation = None
    """The annotation file, as published for `format`. For `parquet`: question_id, image {bytes,
    path}, question, answers (a list), question_kind (optional).
    """
    format: FormatName = "parquet"
    """The layout of the annotation file; it decides the official score too. A Parquet file is
    scored as the task is.
    """
    images: OptionalLocation = None
    """The folder of the benchmark's images, for the formats whose files only name them."""


class EvaluateSection(LabeledSection):
    """Labeled benchmarks: the only labels there are, and nothing before the evaluation reads
    them.
    """

    max_tokens: PositiveInt = 32
    """The longest answer, in tokens."""
    lvlm: bool = False
    """Score the L-VLM too, as the ceiling."""
    models_at_once: Annotated[PositiveInt, MayChange()] = 1
    """Models that are asked at the same time; each needs the GPUs or cores of its replicas. Models
    of one architecture that are asked one after the other share engines.
    """


class DemoSection(Section):
    """What the demo renders into the output folder, in place of `images` and
    `evaluate.benchmark`.
    """

    images: Annotated[int, Field(ge=0)] = 0
    """Unlabeled images; 0: this is no demo."""
    questions: PositiveInt = 1000
    """Of the labeled benchmark."""
