"""One typed configuration. The same names serve Python, YAML and flags: `lvlm.model` in YAML is `--lvlm.model` on the command line.

Every field says below it what it means and in which unit. Combinations that cannot work are refused here, before a model loads.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from mpa_ray.tasks import TASKS

Share = Annotated[float, Field(ge=0.0, le=1.0)]
ArmName = Literal["no_pi_same_size", "no_pi_all", "consistent"]


class Section(BaseModel):
    """A part of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


class ModelSection(Section):
    """A vision-language model and what it runs on."""

    model: str = ""
    """A hub name (`Qwen/Qwen2-VL-7B-Instruct`) or a local folder in the Hugging Face layout."""
    revision: str | None = None
    """The hub revision: a branch, tag or commit. Without it the newest is taken, which may change between runs."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """What serves the model: vLLM's async engine, or transformers' `generate` where vLLM cannot load (slower)."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The precision of the weights while serving; `auto` takes the checkpoint's."""
    max_pixels: PositiveInt = 512 * 28 * 28
    """Images with more pixels are shrunk to this many before the model sees them (512 x 28 x 28: 512 visual tokens of Qwen2-VL)."""
    max_model_len: PositiveInt = 4096
    """The longest prompt and reply together, in tokens. A request over it is quarantined, never cut."""
    images_in_flight: PositiveInt = 32
    """Images a replica works on at the same time. More fill a large card better; few keep an image's encoding cached until its second question."""
    min_replicas: PositiveInt = 1
    """Engine actors kept while the stage runs."""
    max_replicas: PositiveInt = 1
    """Engine actors the stage may grow to when the cluster has room."""
    gpus_per_replica: Annotated[float, Field(ge=0)] = 1
    """Cards of a replica: a whole number above one is the tensor parallel size, a fraction shares a card, 0 runs on the CPU."""
    cpus_per_replica: PositiveFloat = 1
    """CPU cores of a replica. Leave one core of each node free, or nothing reads and writes."""
    engine_options: dict[str, Any] = {}
    """Further arguments of vLLM's `AsyncEngineArgs`, as they are (`{gpu_memory_utilization: 0.9, quantization: fp8}`)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is below min_replicas={self.min_replicas}; raise the first or lower the second")
        if self.gpus_per_replica > 1 and self.gpus_per_replica != int(self.gpus_per_replica):
            raise ValueError(f"gpus_per_replica={self.gpus_per_replica}: above one card it must be a whole number (the tensor parallel size)")
        if self.engine != "vllm" and self.engine_options:
            raise ValueError(f"engine_options are vLLM's and engine={self.engine!r} has none; remove engine_options or set engine=vllm")
        return self


class AnnotateSection(Section):
    """The Pseudo Annotator."""

    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Of the annotation. 0 is greedy and asks much the same question of similar images. The L-VLM's own answer is always greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling of the annotation."""
    max_tokens: PositiveInt = 128
    """The longest annotation, in tokens."""
    questions_per_image: PositiveInt = 1
    """Annotations asked for an image. Each is sampled on its own, with a seed of its own."""


class IdentifySection(Section):
    """The Parity Identifier."""

    matcher: Literal["exact", "anls", "relaxed", "mpa_compat"] | None = None
    """Eq. 1, when an answer counts as the annotation's. Without it, the task's own."""
    exhaustive: bool = False
    """Ask the S-VLM about every row, also where the L-VLM disagreed with itself. Verdicts stay the same; it is for diagnosis."""
    max_tokens: PositiveInt = 32
    """The longest answer, in tokens, of the L-VLM's own answer and the S-VLM's."""


class LevelSection(Section):
    """The Parity Leveler: full fine-tuning of the S-VLM."""

    train_on: Literal["parity", "consistent", "all"] = "parity"
    """The rows trained on: the parity set; every row the L-VLM agrees with itself on; every annotation."""
    replay: Annotated[float, Field(ge=0)] = 0.0
    """Rows the S-VLM had right that are mixed in, per row of the parity set (0.25: one for every four), against forgetting."""
    holdout: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """The share of self-consistent rows kept out of training, to see what was learned and forgotten."""
    learning_rate: PositiveFloat = 1e-5
    """The peak. Table 11 of the paper: Qwen2-VL-2B 1e-5, InternVL2 4e-5, SmolVLM-500M and TinyLLaVA-2B 1e-4."""
    batch_size: PositiveInt = 16
    """Samples of an optimizer step over all workers. Table 11: 16, InternVL2-4B 6."""
    micro_batch_size: PositiveInt = 4
    """Samples a worker runs through the model at once; the rest of its share of the batch is accumulated."""
    epochs: PositiveInt = 1
    """The paper trains for one."""
    warmup: Share = 0.03
    """The share of steps over which the learning rate rises; then it falls along a cosine to a tenth."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    zero_stage: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO: what is split over the workers: 1 the optimizer's state, 2 also the gradients, 3 also the weights."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the forward and backward pass. The optimizer's copy of the weights is always float32."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: a third more work for most of the activations' memory."""
    workers: PositiveInt = 1
    """Training processes, one card each."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 1
    """1, or 0 to train on the CPU."""
    cpus_per_worker: PositiveFloat = 1
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts of the training group after a lost worker; -1 for no bound."""
    checkpoint_every: PositiveInt = 200
    """Optimizer steps between checkpoints that a restart goes on from."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.replay and self.train_on != "parity":
            raise ValueError(f"replay={self.replay} and train_on={self.train_on!r} exclude each other: those rows are trained on already; set replay=0")
        return self


class EvaluateSection(Section):
    """Labeled benchmarks: the only labels there are, and nothing before the evaluation reads them."""

    benchmark: str | None = None
    """A Parquet file with question_id, image {bytes, path}, question, answers (a list) and, if there is one, question_kind."""
    max_tokens: PositiveInt = 32
    """The longest answer, in tokens."""
    lvlm: bool = False
    """Score the L-VLM too, as the ceiling."""


class DemoSection(Section):
    """What the demo renders into the output folder, in place of `images` and `evaluate.benchmark`."""

    images: Annotated[int, Field(ge=0)] = 0
    """Unlabeled images; 0: this is no demo."""
    questions: PositiveInt = 1000
    """Of the labeled benchmark."""


class Config(Section):
    """A run of MPA: images in, an aligned S-VLM out."""

    images: str = ""
    """A folder or prefix of image files, Parquet files (an image or URI column) or WebDataset tars; local, s3:// or gs://."""
    output: str = ""
    """The folder of the run, local, s3:// or gs://. The same command on the same folder goes on where it stopped."""
    task: Literal[tuple(TASKS)] = "textvqa"  # type: ignore[valid-type]
    """What the questions are about: decides prompt, parser, matcher and metric."""
    prompt: str | None = None
    """The Pseudo Annotator's prompt, in place of the task's."""
    lvlm: ModelSection = ModelSection()
    """The large model, the guide. Its weights are never touched."""
    svlm: ModelSection = ModelSection()
    """The small model that is made better (at most 5B parameters in the paper)."""
    annotate: AnnotateSection = AnnotateSection()
    identify: IdentifySection = IdentifySection()
    pl: LevelSection = LevelSection()
    evaluate: EvaluateSection = EvaluateSection()
    ablations: tuple[ArmName, ...] = ()
    """Further S-VLMs trained for comparison: as many unfiltered rows as MPA had, all pseudo-labels, all self-consistent rows."""
    seed: int = 0
    """Of sampling, of what is drawn, and of the order of training."""
    images_per_part: PositiveInt = 256
    """The unit of work: a part is committed whole, and a killed run does at most the parts in flight again."""
    max_image_pixels: PositiveInt = 64_000_000
    """Images with more are quarantined before they are decoded."""
    max_image_bytes: PositiveInt = 64 * 2**20
    """Files with more bytes are quarantined unread."""
    demo: DemoSection = DemoSection()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.demo.images and self.images:
            raise ValueError(f"images={self.images!r} and the demo preset exclude each other: the demo renders its own; remove one of the two")
        if len(set(self.ablations)) != len(self.ablations):
            raise ValueError(f"ablations={list(self.ablations)} names one twice; name each once")
        return self

    def missing(self) -> list[str]:
        """The required settings that are not set, as flags."""
        needed = {"--images": self.images or self.demo.images, "--output": self.output, "--lvlm.model": self.lvlm.model}
        needed["--svlm.model"] = self.svlm.model
        return [flag for flag, value in needed.items() if not value]


# What may change between two calls on one output folder: how fast and where it runs, not what comes out.
_SPEED_ONLY = {
    "lvlm": {"images_in_flight", "min_replicas", "max_replicas", "gpus_per_replica", "cpus_per_replica"},
    "svlm": {"images_in_flight", "min_replicas", "max_replicas", "gpus_per_replica", "cpus_per_replica"},
    "pl": {"micro_batch_size", "zero_stage", "gradient_checkpointing", "workers", "gpus_per_worker", "cpus_per_worker", "max_failures", "checkpoint_every"},
}


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide what comes out, flat: {"lvlm.model": ...}. Two runs may share an output folder when these are equal."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        if name == "output":
            continue
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items() if key not in _SPEED_ONLY.get(name, ())}
        else:
            flat[name] = value
    return flat


def digest(config: Config) -> str:
    """A short hash of `identity`: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]
