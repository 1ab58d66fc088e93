"""One typed configuration. The same names serve Python, YAML and flags: `lvlm.model` in YAML is
`--lvlm.model` on the command line.

Every field says below it what it means and in which unit. Combinations that cannot work are refused
here, before a model loads.
"""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from mpa_ray.config.arms import FEW_SHOT_ARMS, LABELED_ARMS, ArmName
from mpa_ray.config.cluster import ClusterSection
from mpa_ray.config.evaluation import DemoSection, EvaluateSection, LabeledSection
from mpa_ray.config.locations import Location, OptionalLocation
from mpa_ray.config.model import LocalModelSection, ModelSection
from mpa_ray.config.section import MayChange, ReadBy, Section, Share
from mpa_ray.config.stages import AnnotateSection, IdentifySection
from mpa_ray.config.training import TrainingSection
from mpa_ray.tasks import TASKS, Task

# So that a mistake in a task is reported of the kind of task that was meant, and not of both.
TASK_TAGS = ("task by name", "own task")
# Computed, as in mpa_ray/tasks/tasks.py.
if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]
TaskChoice = Annotated[
    Annotated[TaskName, Tag(TASK_TAGS[0])] | Annotated[Task, Tag(TASK_TAGS[1])],
    Discriminator(lambda value: TASK_TAGS[isinstance(value, dict | Task)]),
]


class Config(Section):
    """A run of MPA: images in, an aligned S-VLM out."""

    images: Location = ""
    """A folder or prefix of image files, Parquet files (an image or URI column) or WebDataset tars;
    local, s3:// or gs://.
    """
    image_roots: tuple[Location, ...] = ()
    """Further folders, prefixes or buckets that a list of URIs may name, if you trust it
    (`--image_roots s3://photos`). Without them a list leads to what lies below its own folder or
    `images`, and to URIs in their buckets.
    """
    output: Annotated[Location, MayChange()] = ""
    """The folder of the run, local, s3:// or gs://. The same command on the same folder resumes
    it.
    """
    task: TaskChoice = "textvqa"
    """What the questions are about: decides prompt, matcher and metric. One of the paper's tasks by
    name (`--task chartqa`), or a task of your own: its name, prompt, matcher and metric
    (docs/own_task.md).
    """
    prompt: str | None = None
    """The Pseudo Annotator's prompt, in place of the task's."""
    lvlm: ModelSection = ModelSection()
    """The large model, the guide. Its weights are never touched."""
    svlm: LocalModelSection = LocalModelSection()
    """The small model that is made better (at most 5B parameters in the paper)."""
    jury: tuple[ModelSection, ...] = ()
    """Further large models, each asked every self-consistent question: an annotation counts only
    where all of them answer as it does. In YAML a list of model sections; as flags `--jury "{model:
    A}" "{model: B}"`.
    """
    annotate: AnnotateSection = AnnotateSection()
    identify: IdentifySection = IdentifySection()
    pl: TrainingSection = TrainingSection()
    evaluate: EvaluateSection = EvaluateSection()
    cluster: Annotated[ClusterSection, MayChange()] = ClusterSection()
    labels: Annotated[LabeledSection, ReadBy(LABELED_ARMS)] = LabeledSection()
    ablations: Annotated[tuple[ArmName, ...], MayChange()] = ()
    """Further S-VLMs trained for comparison: on as many unfiltered rows as MPA had; on all
    pseudo-labels; on all self-consistent rows; and, with `labels`, on all human labels, or on
    `few_shot` of them with full fine-tuning or LoRA.
    """
    few_shot: Annotated[PositiveInt, ReadBy(FEW_SHOT_ARMS)] = 100
    """Labeled samples of the few-shot comparisons (Table 5: 100)."""
    annotations: OptionalLocation = None
    """An annotations folder to start from instead of images (another run's, or an imported one):
    the Pseudo Annotator's work is not paid twice.
    """
    parity: OptionalLocation = None
    """A parity set to train on (parity/ of another run, or one that jobs/review.py has fixed):
    nothing is annotated or judged, and no row of it is held out.
    """
    rounds: PositiveInt = 1
    """Above 1, the images are split into so many shares; each round judges a fresh share with the
    S-VLM of the round before and trains it further, until that stops helping (docs/rounds.md).
    """
    seed: int = 0
    """Of sampling, of what is drawn, and of the order of training."""
    images_per_part: PositiveInt = 256
    """At most so many images in a part, the unit of work: a part is committed whole, and a killed
    run does at most the parts in flight again.
    """
    bytes_per_part: PositiveInt = 256 * 2**20
    """At most so many bytes of encoded images in a part, where the listing tells their sizes (a
    list of URIs does not). A single larger image is a part of its own.
    """
    max_quarantined: Annotated[Share, MayChange()] = 0.05
    """The run stops when a larger share of its images than this is quarantined, and says which
    reason leads. 1 never stops it.
    """
    max_quarantined_after: Annotated[PositiveInt, MayChange()] = 1000
    """Images after which that share is looked at: a few bad ones at the start prove nothing."""
    max_image_pixels: Annotated[int, Field(gt=0, le=178_956_970)] = 64_000_000
    """Images with more are quarantined before they are decoded."""
    max_image_bytes: PositiveInt = 64 * 2**20
    """Files with more bytes are quarantined unread."""
    max_decode_seconds: PositiveFloat = 30
    """An image whose decoding takes a core for longer is quarantined (`decode_timeout`); a
    photograph of 12 megapixels takes a tenth of a second.
    """
    demo: DemoSection = DemoSection()
    """What the demo preset sets."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.svlm.kind.is_api:
            raise ValueError(
                "svlm.engine='openai': the S-VLM is trained here, so its weights must be here too;"
                " set svlm.engine to vllm or transformers"
            )
        own = self.task if isinstance(self.task, Task) else None
        if own and own.name in TASKS and own != TASKS[own.name]:
            raise ValueError(
                f"task.name={own.name!r} is one of the paper's tasks and this is another; give it"
                " a name of its own"
            )
        if own and self.demo.images:
            raise ValueError(
                f"task.name={own.name!r} and the demo preset exclude each other: the demo renders"
                " images for the paper's tasks; name one"
            )
        if self.demo.images and self.images:
            raise ValueError(
                f"images={self.images!r} and demo.images={self.demo.images} exclude each other: the"
                " demo renders its own; remove one of the two"
            )
        if self.annotations and (self.images or self.demo.images):
            raise ValueError(
                f"annotations={self.annotations!r} and images exclude each other: annotations name"
                " their images; remove one of the two"
            )
        labeled = sorted(LABELED_ARMS & set(self.ablations))
        if labeled and not self.labels.benchmark and not self.demo.images:
            raise ValueError(
                f"ablations={labeled} are trained on human labels and labels.benchmark is not set;"
                " set it or remove them"
            )
        if len(set(self.ablations)) != len(self.ablations):
            raise ValueError(f"ablations={list(self.ablations)} names one twice; name each once")
        if self.annotate.constrained and not self.lvlm.kind.holds_form:
            raise ValueError(
                f"annotate.constrained and lvlm.engine={self.lvlm.engine!r} exclude each other: it"
                " cannot hold a reply to a form; remove"
                " one of the two, or set lvlm.engine=vllm"
            )
        self._check_parity()
        self._check_jury()
        self._check_one_actor()
        self._check_rounds()
        return self

    def _check_parity(self) -> None:
        if not self.parity:
            return
        needs_judgements = sorted(set(self.ablations) - LABELED_ARMS)
        others: dict[str, object] = {
            "images": self.images or self.demo.images,
            "annotations": self.annotations,
            "rounds": self.rounds > 1,
            "jury": self.jury,
        }
        others |= {
            "pl.replay": self.pl.replay,
            "pl.train_on": self.pl.train_on != "parity",
            f"ablations={needs_judgements}": needs_judgements,
        }
        for name in (name for name, given in others.items() if given):
            raise ValueError(
                f"parity={self.parity!r} and {name} exclude each other: with a parity set nothing"
                " is annotated or judged; remove one of the two"
            )

    def _check_jury(self) -> None:
        names = [self.lvlm.model, *(juror.model for juror in self.jury)]
        for place, juror in enumerate(self.jury):
            if not juror.model:
                raise ValueError(f"jury.{place}.model is not set; name a model")
            if names.count(juror.model) > 1:
                raise ValueError(
                    f"jury.{place}.model={juror.model!r} is asked twice and would agree with"
                    " itself; name another model"
                )
            if juror.max_cost_usd is not None:
                raise ValueError(
                    f"jury.{place}.max_cost_usd={juror.max_cost_usd}: a budget is kept for the"
                    " L-VLM alone; remove it"
                )

    def _check_one_actor(self) -> None:
        if not self.identify.in_one_actor:
            return
        others = {"jury": self.jury, "annotations": self.annotations, "parity": self.parity}
        for name, value in others.items():
            if value:
                raise ValueError(
                    f"identify.in_one_actor and {name} exclude each other: the L-VLM and then the"
                    " S-VLM are asked; remove one"
                )
        if self.lvlm.kind.is_api:
            raise ValueError(
                "identify.in_one_actor and lvlm.engine='openai' exclude each other: an API has no"
                " GPU; remove one of the two"
            )
        shares = {"lvlm": self.lvlm.gpus_per_replica, "svlm": self.svlm.gpus_per_replica}
        if None in shares.values() or sum(share or 0.0 for share in shares.values()) > 1:
            raise ValueError(
                "identify.in_one_actor needs what share of a GPU each model gets, together at"
                f" most 1 (is {shares}); set lvlm.gpus_per_replica and svlm.gpus_per_replica, such"
                " as 0.75 and 0.25, or 0 and 0 for the CPU"
            )

    def _check_rounds(self) -> None:
        if self.rounds > 1 and self.annotations:
            raise ValueError(
                f"rounds={self.rounds} and annotations={self.annotations!r} exclude each other: a"
                " round annotates fresh images; give images"
            )
        if self.rounds > 1 and not self.pl.holdout:
            raise ValueError(
                f"rounds={self.rounds} and pl.holdout=0 exclude each other: held-out rows tell"
                " when to stop; set pl.holdout to 0.1"
            )

    @property
    def task_spec(self) -> Task:
        """The run's task: one of `TASKS`, or the configuration's own."""
        return TASKS[self.task] if isinstance(self.task, str) else self.task

    @property
    def matcher(self) -> str:
        """The name of Eq. 1's matcher in this run."""
        return self.identify.matcher or self.task_spec.matcher

    @property
    def asks_lvlm(self) -> bool:
        """Whether the run has anything to ask the L-VLM."""
        return not self.parity or self.evaluate.lvlm

    def missing(self) -> list[str]:
        """The required settings that are not set, as flags."""
        source = self.images or self.annotations or self.parity or self.demo.images
        needed = {
            "--images": source,
            "--output": self.output,
            "--lvlm.model": self.lvlm.model or not self.asks_lvlm,
        }
        needed["--svlm.model"] = self.svlm.model
        return [flag for flag, value in needed.items() if not value]
