"""What a run did, as a table on the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from mpa_ray.progress import duration


def table(record: dict[str, Any]) -> str:
    """The tables of a run.json: data, stages, scores."""
    return "\n\n".join(["", _data(record), _stages(record), *([_scores(record)] if record["evaluation"] else []), ""]).rstrip("\n") + "\n"


def _data(record: dict[str, Any]) -> str:
    annotations = record["annotations"]
    rows = [["images", f"{record['images']:,}", ""], ["annotations", f"{annotations:,}", ""]]
    rows += [[f"quarantined: {reason}", f"{count:,}", ""] for reason, count in record["quarantined"].items()] or [["quarantined", "0", ""]]
    rows += [[f"verdict: {name}", f"{count:,}", f"{100 * count / max(1, annotations):.1f}% of annotations"] for name, count in record["verdicts"].items()]
    return aligned(rows)


def _stages(record: dict[str, Any]) -> str:
    tokens = record["tokens"]
    text = {
        "annotate_and_identify": f"L-VLM {_sum(tokens, 'annotation_prompt', 'lvlm_answer_prompt')} tokens in ({_sum(tokens, 'annotation_cached', 'lvlm_answer_cached')}"
        f" cached), {_sum(tokens, 'annotation_output', 'lvlm_answer_output')} out; S-VLM {_sum(tokens, 'svlm_answer_prompt')} in, {_sum(tokens, 'svlm_answer_output')} out"
    }
    for name, arm in record["training"].items():
        change = arm.get("holdout")
        held_out = f"; held out: learned {change['learned']:,}, forgot {change['forgotten']:,}" if change else ""
        text[f"train_{name}"] = f"{arm['samples']:,} samples, {arm['tokens_per_second']:,.0f} tokens/s{held_out}"
    return aligned([["stage", "time", ""], *([name, duration(seconds), text.get(name, "")] for name, seconds in record["stages"].items())])


def _sum(tokens: dict[str, int], *names: str) -> str:
    return f"{sum(tokens[f'{name}_tokens'] for name in names):,}"


def _scores(record: dict[str, Any]) -> str:
    first = record["evaluation"][0]
    header = [f"{first['benchmark']}, {first['metric']}", "score", "95% interval", "questions", "trained on"]
    rows = [
        [
            score["model"],
            f"{score['score']:.1f}",
            f"{score['ci95'][0]:.1f} to {score['ci95'][1]:.1f}",
            f"{score['n']:,}",
            f"{record['training'][score['model']]['samples']:,} samples" if score["model"] in record["training"] else "-",
        ]
        for score in record["evaluation"]
    ]
    return aligned([header, *rows])


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows as columns; figures (columns after the first whose cells begin with a digit) stand to the right."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if column and cell[:1].isdigit() and column == 1 else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
