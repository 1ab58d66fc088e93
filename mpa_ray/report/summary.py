"""What a run did, as a table on the terminal."""

from typing import Any

from mpa_ray.observability.progress import duration
from mpa_ray.observability.text_table import aligned, dollars, interval
from mpa_ray.report.run_record import RunRecord, Score
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY, CALLS, token_columns


def table(record: RunRecord) -> str:
    """The tables of a run.json: data, stages, scores."""
    return (
        "\n\n".join(
            [
                "",
                _data(record),
                _stages(record),
                *([_scores(record)] if record["evaluation"] else []),
                "",
            ]
        ).rstrip("\n")
        + "\n"
    )


def _data(record: RunRecord) -> str:
    annotations = record["annotations"]
    rows = [["images", f"{record['images']:,}", ""], ["annotations", f"{annotations:,}", ""]]
    rows += [
        [f"quarantined: {reason}", f"{count:,}", ""]
        for reason, count in record["quarantined"].items()
    ] or [["quarantined", "0", ""]]
    rows += [
        [
            f"verdict: {name}",
            f"{count:,}",
            f"{100 * count / max(1, annotations):.1f}% of annotations",
        ]
        for name, count in record["verdicts"].items()
    ]
    return aligned(rows)


def _stages(record: RunRecord) -> str:
    tokens = record["tokens"]
    text = {
        ANNOTATE_AND_IDENTIFY: "; ".join(
            f"{model} {prompt:,} tokens in ({cached:,} cached), {output:,} out"
            for model, (prompt, cached, output) in _tokens_by_model(tokens).items()
            if prompt
        )
    }
    if asked := record.get("svlm_asked"):
        spared = record["annotations"] - asked
        text[ANNOTATE_AND_IDENTIFY] += (
            f", spared {100 * spared / record['annotations']:.1f}% of annotations"
        )
    for name, arm in record["training"].items():
        change = arm.get("holdout")
        held_out = (
            f"; held out: learned {change['learned']:,}, forgot {change['forgotten']:,}"
            if change
            else ""
        )
        mfu = arm.get("mfu")
        used = f" ({100 * mfu:.0f}% MFU)" if mfu else ""
        text[f"train_{name}"] = (
            f"{arm['samples']:,} samples, {arm['tokens_per_second']:,.0f} tokens/s{used}{held_out}"
        )
    for name, account in record.get("ledger", {}).items():
        # The jury is asked while images are annotated and identified, and has no stage of its own.
        step, paid = (
            (ANNOTATE_AND_IDENTIFY, f"{name} {_paid(account)}")
            if name.startswith("jury_")
            else (name, _paid(account))
        )
        text[step] = "; ".join(filter(None, [text.get(step), paid]))
    return aligned(
        [
            ["stage", "time", ""],
            *(
                [name, duration(seconds), text.get(name, "")]
                for name, seconds in record["stages"].items()
            ),
        ]
    )


def _paid(account: dict[str, Any]) -> str:
    """What an API was asked and cost; replies that went into quarantine and parts that were done
    twice are in it.
    """
    line = (
        f"API: {account['requests']:,} requests, {account['prompt_tokens']:,} tokens in,"
        f" {account['output_tokens']:,} out"
    )
    if "cost_usd" in account:
        line += f", {dollars(account['cost_usd'])}"
    if account.get("at_most_usd", 0.0) > account.get("cost_usd", 0.0):
        line += f" (at most {dollars(account['at_most_usd'])}, with requests that had no reply)"
    return line


def _tokens_by_model(tokens: dict[str, int]) -> dict[str, list[int]]:
    """Tokens in, of these cached, and out, of each model over all its calls."""
    found: dict[str, list[int]] = {}
    for name, call in CALLS.items():
        counts = [tokens.get(column, 0) for column in token_columns(name)]
        earlier = found.get(call.model, [0] * len(counts))
        found[call.model] = [a + b for a, b in zip(earlier, counts, strict=True)]
    return found


def _scores(record: RunRecord) -> str:
    """A line a model: the official score with its interval first, further scores beside it, each
    under its own name.
    """
    metrics = list(dict.fromkeys(score["metric"] for score in record["evaluation"]))
    by_model: dict[str, dict[str, Score]] = {}
    for score in record["evaluation"]:
        by_model.setdefault(score["model"], {})[score["metric"]] = score
    rows = [
        [
            record["evaluation"][0]["benchmark"],
            metrics[0],
            "95% interval",
            *metrics[1:],
            "questions",
            "trained on",
        ]
    ]
    for model, scores in by_model.items():
        official = scores[metrics[0]]
        trained = record["training"].get(model)
        rows.append(
            [
                model,
                f"{official['score']:.1f}",
                interval(official["ci95"]),
                *(f"{scores[metric]['score']:.1f}" for metric in metrics[1:]),
                f"{official['n']:,}",
                f"{trained['samples']:,} samples" if trained else "-",
            ]
        )
    return aligned(rows)
