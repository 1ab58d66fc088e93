"""Does MPA make the small model better, and by more than unfiltered labels do? The demo over
several seeds.

    python benchmarks/claim.py --seeds 0 1 2 --output runs/table-demo

A seed changes the unlabeled images, the sampling of annotations, what is drawn for the comparisons,
and the order of training. The benchmark stays. The runs are cells of `jobs/table.py --table 6
--preset demo`: given one folder, neither does again what the other did.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import result_file
from mpa_ray import pipeline
from mpa_ray.observability.text_table import aligned
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.tables.grid import cell_folder
from mpa_ray.tools.tables.grid_data import demo_config
from mpa_ray.tools.tables.paper import demo_cell

ROOT = Path(__file__).parents[1]
_COMPARED = ("no_pi_same_size", "no_pi_all")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["textvqa", "chartqa"], default="textvqa")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "table-demo")
    arguments = parser.parse_args()
    records = [_run(arguments.task, seed, Folder.at(arguments.output)) for seed in arguments.seeds]
    text = describe(arguments.seeds, records)
    print(text)
    print(
        result_file.write(
            f"claim-{arguments.task}", text, {"seeds": arguments.seeds, "runs": records}
        )
    )


def _run(task: str, seed: int, grid: Folder) -> dict[str, Any]:
    """One demo run, as `jobs/mpa_<task>.py --preset demo` makes it."""
    started = time.time()
    cell = demo_cell(task, _COMPARED)
    record = pipeline.run(demo_config(cell, output=cell_folder(grid, cell, seed).uri, seed=seed))
    kept = ("images", "annotations", "quarantined", "verdicts", "training", "evaluation", "stages")
    return {key: record[key] for key in kept} | {"seconds_of_this_call": time.time() - started}


def describe(seeds: list[int], records: list[dict[str, Any]]) -> str:
    """The scores of every seed, their mean and spread, and what of the claim holds."""
    metric = records[0]["evaluation"][0]["metric"]
    # A cell that a table trained more models in shows only what every seed has.
    models = [score["model"] for score in records[0]["evaluation"] if score["metric"] == metric]
    models = [
        model
        for model in models
        if all(any(score["model"] == model for score in record["evaluation"]) for record in records)
    ]
    scores = {
        model: [
            next(
                s["score"]
                for s in record["evaluation"]
                if s["model"] == model and s["metric"] == metric
            )
            for record in records
        ]
        for model in models
    }
    rows = [
        [f"{metric}, percent", *(f"seed {seed}" for seed in seeds), "mean", "standard deviation"]
    ]
    for model, values in scores.items():
        spread = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "-"
        rows.append(
            [model, *(f"{value:.1f}" for value in values), f"{statistics.mean(values):.1f}", spread]
        )
    shares = [record["verdicts"]["parity"] / record["annotations"] for record in records]
    rows.append(
        [
            "parity, % of annotations",
            *(f"{100 * share:.1f}" for share in shares),
            f"{100 * statistics.mean(shares):.1f}",
            "",
        ]
    )
    gains = [mpa - before for mpa, before in zip(scores["mpa"], scores["zero_shot"], strict=True)]
    margins = [
        mpa - other for mpa, other in zip(scores["mpa"], scores["no_pi_same_size"], strict=True)
    ]
    claims = [
        (
            "the S-VLM gains at least 10 points in every seed",
            min(gains) >= 10,
            ", ".join(f"{gain:+.1f}" for gain in gains),
        ),
        (
            "MPA is at least as good as as many unfiltered labels, in every seed",
            min(margins) >= 0,
            ", ".join(f"{m:+.1f}" for m in margins),
        ),
        (
            "the parity set is smaller than half of the annotations, in every seed",
            max(shares) < 0.5,
            ", ".join(f"{s:.3f}" for s in shares),
        ),
    ]
    verdicts = [
        f"- {'holds' if holds else 'DOES NOT HOLD'}: {claim} ({figures})"
        for claim, holds, figures in claims
    ]
    return "\n".join(["```", aligned(rows), "```", "", *verdicts, ""])


if __name__ == "__main__":
    main()
