"""The Parity Leveler in the configuration: what the S-VLM is trained on, how, and on how many
workers.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mpa_ray.config.objectives import ObjectiveName
from mpa_ray.config.section import MayChange, Section, Share


class TrainingSection(Section):
    """The Parity Leveler: full fine-tuning of the S-VLM."""

    train_on: Literal["parity", "consistent", "all"] = "parity"
    """The rows trained on: the parity set; every row the L-VLM agrees with itself on; every
    annotation.
    """
    replay: Annotated[float, Field(ge=0)] = 0.0
    """Replay ratio: rows the S-VLM had right that are mixed in against forgetting, per row of the
    parity set (0.25: one for every four).
    """
    holdout: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """The share of self-consistent rows kept out of training, to see what was learned and
    forgotten.
    """
    objective: ObjectiveName = "answer_nll"
    """What training minimizes: `answer_nll`, the negative log likelihood of the answer's tokens,
    averaged over the samples of a batch (Eq. 3).
    """
    learning_rate: PositiveFloat | None = None
    """Peak learning rate. Without it, Table 11's for the paper's S-VLMs (Qwen2-VL-2B 1e-5,
    InternVL2 4e-5, SmolVLM-500M and TinyLLaVA-2B 1e-4), else 1e-5.
    """
    batch_size: PositiveInt | None = None
    """Samples of an optimizer step over all workers. Without it, Table 11's: 16, and 6 for
    InternVL2-4B.
    """
    micro_batch_size: Annotated[PositiveInt, MayChange()] = 4
    """Samples a worker runs through the model at once; the rest of its share of the batch is
    accumulated.
    """
    epochs: PositiveInt = 1
    """The paper trains for one."""
    warmup: Share = 0.03
    """The share of steps over which the learning rate rises; then it falls along a cosine to a
    tenth.
    """
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    zero_stage: Annotated[Literal[1, 2, 3] | None, MayChange()] = None
    """DeepSpeed ZeRO: what is split over the workers: 1 the optimizer's state, 2 also the
    gradients, 3 also the weights. Without it, 2, or 3 where only that fits the GPUs.
    """
    offload: Annotated[bool | None, MayChange()] = None
    """Keep Adam's state in the nodes' memory, 22 bytes a parameter, and step on their CPU cores:
    slower, and a GPU holds weights, gradients and activations alone. Without it, only where nothing
    else fits the GPUs and the nodes are known to have that memory.
    """
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the forward and backward pass. The optimizer's copy of the weights is always float32."""
    gradient_checkpointing: Annotated[bool, MayChange()] = True
    """Recompute activations in the backward pass: a third more work for most of the activations'
    memory.
    """
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """0 trains every weight, as the paper does; above, LoRA of this rank on all linear layers,
    merged into the model at the end (a comparison).
    """
    workers: Annotated[PositiveInt | None, MayChange()] = None
    """Training processes, one GPU each. Without it, as many as the GPUs and the batch give work
    to; on the CPU 1.
    """
    min_workers: Annotated[PositiveInt | None, MayChange()] = None
    """Where nodes are lost, training continues with fewer workers, down to these; the batch stays
    what it is. Without it, the fewest whose GPUs hold the model's state.
    """
    node_labels: dict[
        str, Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")]
    ] = {}
    """Train on nodes with these labels alone (`{ray.io/market-type: on-demand}`: not on those that
    may be taken away). Training then waits for all its workers, and does not continue with fewer.
    """
    gpus_per_worker: Annotated[int, Field(ge=0, le=1), MayChange()] = 1
    """1, or 0 to train on the CPU."""
    cpus_per_worker: Annotated[PositiveFloat | None, MayChange()] = None
    """CPU cores of a worker, which also decode its images, one thread each. Without it, those of
    its GPU's share of the node, of which one stays free, at most 8; on the CPU 1.
    """
    max_failures: Annotated[int, Field(ge=-1), MayChange()] = 3
    """Restarts of the training group after a lost worker; -1 for no bound."""
    checkpoint_every: Annotated[PositiveInt | None, MayChange()] = None
    """Optimizer steps between checkpoints that a restart resumes from. Without it,
    `checkpoint_every_s` counts.
    """
    checkpoint_every_s: Annotated[PositiveFloat, MayChange()] = 900.0
    """Seconds between checkpoints: what a lost worker costs at most."""
    tracking: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], MayChange()] = (
        "tensorboard",
    )
    """Where the curve goes: TensorBoard's files in `tensorboard/` of the output, W&B, MLflow. The
    latter two are set up by their own environment variables, where the training workers run
    (docs/watching.md).
    """

    @property
    def cpus(self) -> float:
        """CPU cores of a worker, 1 where neither the configuration nor a run's placement says."""
        return self.cpus_per_worker or 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.replay and self.train_on != "parity":
            raise ValueError(
                f"replay={self.replay} and train_on={self.train_on!r} exclude each other: those"
                " rows are trained on already; set replay=0"
            )
        if self.min_workers and self.workers and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers={self.min_workers} is above workers={self.workers}; lower the first"
                " or raise the second"
            )
        if self.node_labels and self.min_workers not in (None, self.workers):
            raise ValueError(
                f"min_workers={self.min_workers} and node_labels={self.node_labels} exclude each"
                " other: Ray Train counts nodes without the labels too when it makes a smaller"
                " group, and would wait for ever; remove one of the two"
            )
        if self.lora_rank and self.zero_stage == 3:
            raise ValueError(
                f"lora_rank={self.lora_rank} and zero_stage=3 exclude each other: LoRA trains few"
                " weights, so nothing is"
                " gained; set zero_stage=2"
            )
        if self.lora_rank and self.offload:
            raise ValueError(
                f"lora_rank={self.lora_rank} and offload=true exclude each other: LoRA trains few"
                " weights, so nothing is gained; set offload=false"
            )
        return self


# Its earlier name, for scripts that import it.
LevelSection = TrainingSection
