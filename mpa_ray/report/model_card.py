"""model/README.md: what the aligned S-VLM is, what it was made from, and how it scored."""

from typing import TYPE_CHECKING

import yaml

from mpa_ray.config import LABELED_ARMS, Config
from mpa_ray.config.objectives import OBJECTIVES
from mpa_ray.observability.text_table import aligned, interval
from mpa_ray.report.run_record import RunRecord, Training

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_HUB_TASK = "image-text-to-text"


def model_card(config: Config, record: RunRecord) -> str:
    """The card as the hub shows it: metadata in YAML, then text. Names of models and folders are
    shown as code, never as markup.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=_HUB_TASK,
        base_model=config.svlm.model,
        model_name=f"{config.svlm.model.rstrip('/').rpartition('/')[2]}-mpa",
        tags=["mpa_ray", "model-parity-aligner", config.task_spec.name],
        eval_results=_eval_results(record),
    )
    trained = record["training"]["mpa"]
    lines = [
        "---",
        # Its own to_yaml leaves marks that reorder text as they are.
        yaml.safe_dump(metadata.to_dict(), sort_keys=False).rstrip(),
        "---",
        "",
        "# A vision-language model aligned with MPA",
        "",
        *_origin(config, record),
        "The method is the Model Parity Aligner (Penamakuri et al., EMNLP 2025, arXiv 2509.16633),"
        " by mpa_ray.",
        "",
        "## Data",
        "",
        *_data(config, record),
        f"- trained on {trained['samples']:,} samples ({code(config.pl.train_on)}), one answer"
        f" each; {_labels(config)}",
        "",
        "## Training",
        "",
        f"- {config.pl.epochs} epoch, batch size {trained['batch_size']}, peak learning rate"
        f" {trained['learning_rate']:g},"
        f" DeepSpeed ZeRO stage {config.pl.zero_stage}",
        f"- {_weights(config)}",
        f"- loss: {OBJECTIVES[config.pl.objective]}, last step {trained['loss']:.4f} a sample",
        *_held_out(trained),
        "",
        "## Scores",
        "",
        *(_scores(record) if record["evaluation"] else ["No labeled benchmark was given."]),
        "",
        "## Limits",
        "",
        "The large model's mistakes and biases carry over: a parity sample is what it repeats, not"
        " what is true. Scores are of the",
        "benchmark named above and say nothing of other tasks; what was forgotten was looked for"
        " in rows like those it was trained on.",
        "",
    ]
    return "\n".join(lines)


def _eval_results(record: RunRecord) -> "list[EvalResult] | None":
    """The model's own scores, as the hub shows them beside the card."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_HUB_TASK,
            dataset_type=score["benchmark"],
            dataset_name=score["benchmark"],
            metric_type=score["metric"],
            metric_name=f"{score['metric']}, in percent",
            metric_value=round(score["score"], 1),
        )
        for score in record["evaluation"]
        if score["model"] == "mpa"
    ] or None


def _origin(config: Config, record: RunRecord) -> list[str]:
    task = f"(task {code(config.task_spec.name)})."
    tuned = (
        f"fine-tuned with LoRA of rank {config.pl.lora_rank}"
        if config.pl.lora_rank
        else "fully fine-tuned"
    )
    if config.parity:
        return [
            f"{code(config.svlm.model)}, {tuned} on the parity set {code(config.parity)} {task}"
        ]
    return [
        f"{code(config.svlm.model)}, {tuned} on what {code(config.lvlm.model)} knew and it did"
        " not, found in",
        f"{record['images']:,} unlabeled images {task}",
    ]


def _data(config: Config, record: RunRecord) -> list[str]:
    if config.parity:
        return [f"- {record['annotations']:,} parity samples, made elsewhere"]
    return [
        f"- {record['annotations']:,} annotations by the large model, of which"
        f" {record['verdicts']['parity']:,} are parity samples"
    ]


def _labels(config: Config) -> str:
    """What is known of people's part in what it learned."""
    if config.parity:
        return "whether people wrote or changed any of them is not known here"
    if LABELED_ARMS & set(config.ablations):
        return "human labels trained the comparisons alone"
    return "no human label was used"


def _weights(config: Config) -> str:
    if config.pl.lora_rank:
        return f"LoRA of rank {config.pl.lora_rank} on all linear layers, merged into the weights"
    return "every weight was trained"


def code(text: str) -> str:
    """Text of unknown origin as a Markdown code span, whatever backticks and line ends it holds."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _held_out(trained: Training) -> list[str]:
    change = trained.get("holdout")
    return (
        [f"- on held-out rows it learned {change['learned']:,} and forgot {change['forgotten']:,}"]
        if change
        else []
    )


def _scores(record: RunRecord) -> list[str]:
    first = record["evaluation"][0]
    rows = [
        [score["model"], score["metric"], f"{score['score']:.1f}", interval(score["ci95"])]
        for score in record["evaluation"]
    ]
    shown = aligned([["model", "metric", "score", "95% interval"], *rows])
    return [
        f"{code(first['benchmark'])}, {first['n']:,} questions, in percent:",
        "",
        "```",
        shown,
        "```",
    ]
