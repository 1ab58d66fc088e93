"""Rounds (the paper's future work): the S-VLM just trained judges fresh images, and is trained
further on what it still lacks.

The images' parts are dealt out in turn, part p to round 1 + p mod N, so that every round sees
images no round before it has seen, and its parity yield (parity samples per annotation) says how
much the model of the round before still lacks. Round k is a whole run in `rounds/<k>/`, whose S-VLM
is the model of round k - 1.

    another round   while a round learned more than it forgot on its held-out rows, and its parity
                    yield is below that of the one before
    model/          of the last round that learned more than it forgot; of the first, where none did
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mpa_ray.config import Config, DemoSection
from mpa_ray.config.hyperparameters import with_hyperparameters
from mpa_ray.errors import ConfigurationError, NothingToTeach, RunError
from mpa_ray.images import manifest
from mpa_ray.images.manifest import Manifest
from mpa_ray.images.sources import listed_images
from mpa_ray.observability.progress import say
from mpa_ray.observability.text_table import aligned
from mpa_ray.report.run_record import RunRecord, Score, Training
from mpa_ray.schema import MANIFEST, Verdict
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

Record = dict[str, Any]


def split(config: Config, output: Folder) -> list[Manifest]:
    """The images of each round, listed once; a round's manifest is where its run looks for one.

    Raises:
        ConfigurationError: there are fewer parts than rounds.
    """
    whole = listed_images(config, output)
    if whole.parts < config.rounds:
        raise ConfigurationError(
            f"rounds={config.rounds} and the {whole.images:,} images are {whole.parts} parts of up"
            f" to {config.images_per_part} and {config.bytes_per_part:,} bytes: a round needs one"
            " at least; lower rounds or images_per_part"
        )
    return [
        _share(whole, config, number, _round(output, number).child("manifest"))
        for number in range(1, config.rounds + 1)
    ]


def _share(whole: Manifest, config: Config, number: int, folder: Folder) -> Manifest:
    """The parts of round `number`, counted from 1."""
    if listed := manifest.load(folder, source=config.images):
        return listed
    parts = (
        whole.part(part).select(["image_uri"])
        for part in range(number - 1, whole.parts, config.rounds)
    )
    return manifest.write(parts, folder, source=config.images, root=whole.root, schema=MANIFEST)


def run_rounds(
    config: Config,
    output: Folder,
    *,
    shares: list[Manifest],
    run: Callable[[Config], RunRecord],
    held: Lease,
) -> RunRecord:
    """Makes the rounds, by `run`, until one stops helping, and copies the model that is kept to
    `model/`, and the rounds' predictions.

    Returns:
        What run.json says beside configuration and versions: the sums over all rounds, and
        `rounds`, one entry a round (see `figures`).

    Raises:
        NothingToTeach: by the first round; a later one that finds nothing to train on is the last,
            and counts.
        RunError: a round could not continue.
    """
    curve: list[Record] = []
    records: list[RunRecord] = []
    why = f"all {config.rounds} rounds are done"
    for number, share in enumerate(shares, 1):
        held.check()
        say(
            f"round {number} of at most {config.rounds}: {share.images:,} images, in"
            f" {_round(output, number).uri}"
        )
        try:
            record = run(round_config(config, output, number, spent=sum(map(spent_usd, records))))
            ended = None
        except NothingToTeach as error:
            if not records or error.record is None:
                raise
            record, ended = error.record, f"round {number} had nothing to train on ({error})"
        records.append(record)
        curve.append(figures(number, record))
        if found := ended or stop_reason(curve):
            why = found
            break
    keep = kept(curve)
    say(f"rounds end: {why}. The model is that of round {keep}")
    held.check()
    # Of a run to which comparisons were added: without its model it is not finished.
    output.delete("run.json")
    output.child("model").delete_folder()
    output.child("model").copy_from(_round(output, keep).child("model"))
    _copy_predictions(output, scored(records, keep))
    return totals(records) | {
        "training": training(records, keep),
        "evaluation": evaluation(records, keep),
        "rounds": curve,
        "kept_round": keep,
        "stopped": why,
    }


def round_config(config: Config, output: Folder, number: int, *, spent: float) -> Config:
    """Round `number`'s configuration: its own output, the model of the round before, and what is
    left of the budget.

    The comparisons and the L-VLM's score belong to the first round. The learning rate stays that of
    the S-VLM the user named.

    Raises:
        RunError: the budget is spent.
    """
    pl = with_hyperparameters(config.pl, config.svlm.model)
    changes: Record = {
        "output": _round(output, number).uri,
        "rounds": 1,
        "demo": DemoSection(),
        "pl": pl,
    }
    if number > 1:
        before = _round(output, number - 1).child("model").uri
        changes |= {"svlm": config.svlm.model_copy(update={"model": before, "revision": None})}
        changes |= {"ablations": (), "evaluate": config.evaluate.model_copy(update={"lvlm": False})}
    budget = config.lvlm.max_cost_usd
    if budget is not None:
        if spent >= budget:
            raise RunError(
                f"lvlm.max_cost_usd={budget} is spent by the rounds before round {number}. Raise"
                " --lvlm.max_cost_usd to continue"
            )
        changes |= {"lvlm": config.lvlm.model_copy(update={"max_cost_usd": budget - spent})}
    return config.model_copy(update=changes)


def spent_usd(record: RunRecord) -> float:
    """The most a round's L-VLM may have cost."""
    return sum(
        account.get("at_most_usd", 0.0)
        for name, account in record.get("ledger", {}).items()
        if not name.startswith("jury_")
    )


def figures(number: int, record: RunRecord) -> Record:
    """A point of the curve: round, images, annotations, parity, parity_yield, learned, forgotten,
    improved, score and metric.

    Learned, forgotten, score and metric are None where nothing was trained, the last two also
    without a benchmark.
    """
    change: dict[str, Any] = (
        record["training"]["mpa"]["holdout"]
        if record["training"]
        else {"learned": None, "forgotten": None}
    )
    official = next((score for score in record["evaluation"] if score["model"] == "mpa"), None)
    parity = record["verdicts"][Verdict.PARITY]
    return {
        "round": number,
        "images": record["images"],
        "annotations": record["annotations"],
        "parity": parity,
        "parity_yield": parity / max(1, record["annotations"]),
        "learned": change["learned"],
        "forgotten": change["forgotten"],
        "improved": bool(record["training"]) and change["learned"] > change["forgotten"],
        "score": official and official["score"],
        "metric": official and official["metric"],
    }


def stop_reason(curve: list[Record]) -> str | None:
    """Why there is no further round after the last of `curve`; None where there may be one."""
    last = curve[-1]
    if not last["improved"]:
        return (
            f"round {last['round']} forgot as much as it learned ({last['forgotten']:,} against"
            f" {last['learned']:,} held-out rows)"
        )
    if len(curve) > 1 and last["parity_yield"] >= curve[-2]["parity_yield"]:
        yields = (
            f"{100 * last['parity_yield']:.1f}% after {100 * curve[-2]['parity_yield']:.1f}%"
            " of annotations"
        )
        return f"round {last['round']} had as much to learn as the round before it ({yields})"
    return None


def kept(curve: list[Record]) -> int:
    """The last round that learned more than it forgot, or the first."""
    return max((point["round"] for point in curve if point["improved"]), default=1)


def totals(records: list[RunRecord]) -> RunRecord:
    """Counts of data, tokens, money and seconds over all rounds; by round, what ran where, what was
    paid, and how long it took.
    """
    paid = [_sums(record["ledger"].values()) for record in records]
    quarantined = _sums(record["quarantined"] for record in records)
    # Those of earlier versions have no more than the seconds of each stage.
    seconds = [record.get("wall_seconds", sum(record["stages"].values())) for record in records]
    return {
        "images": sum(record["images"] for record in records),
        "annotations": sum(record["annotations"] for record in records),
        "quarantined_images": sum(record.get("quarantined_images", 0) for record in records),
        "quarantined": dict(sorted(quarantined.items(), key=lambda item: -item[1])),
        "verdicts": {
            str(verdict): sum(record["verdicts"][verdict] for record in records)
            for verdict in Verdict
        },
        "tokens": _sums(record["tokens"] for record in records),
        "svlm_asked": sum(record.get("svlm_asked", 0) for record in records),
        "seconds": sum(record["seconds"] for record in records),
        "placement": {
            f"round_{number}": record["placement"] for number, record in enumerate(records, 1)
        },
        "ledger": {f"round_{number}": account for number, account in enumerate(paid, 1) if account},
        "cost_usd": {
            f"round_{number}": sum(record["cost_usd"].values())
            for number, record in enumerate(records, 1)
            if record["cost_usd"]
        },
        "stages": {f"round_{number}": took for number, took in enumerate(seconds, 1)},
        "wall_seconds": sum(seconds),
    }


def _sums(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count in counts:
        found |= {name: found.get(name, 0) + value for name, value in count.items()}
    return found


def training(records: list[RunRecord], keep: int) -> dict[str, Training]:
    """How the model that is kept was trained, over its rounds; and the comparisons of the first
    round.
    """
    chain = [record["training"]["mpa"] for record in records[:keep]]
    seconds = sum(arm["seconds"] for arm in chain)
    summed = Training(samples=sum(arm["samples"] for arm in chain), seconds=seconds)
    return {**records[0]["training"], "mpa": chain[-1] | summed}


def scored(records: list[RunRecord], keep: int) -> dict[str, tuple[int, str]]:
    """The models that were scored: the first round's before training and of its comparisons, each
    round's as `round_<k>`, and the kept one's as `mpa`; with the round, and the model's name in it.
    """
    names = [[score["model"] for score in record["evaluation"]] for record in records]
    found = {name: (1, name) for name in names[0] if name != "mpa"}
    found |= {
        f"round_{number}": (number, "mpa")
        for number, models in enumerate(names, 1)
        if "mpa" in models
    }
    return found | ({"mpa": (keep, "mpa")} if "mpa" in names[keep - 1] else {})


def evaluation(records: list[RunRecord], keep: int) -> list[Score]:
    """The scores of all models under the names of `scored`."""
    return [
        score | {"model": name}
        for name, (number, model) in scored(records, keep).items()
        for score in records[number - 1]["evaluation"]
        if score["model"] == model
    ]


def _copy_predictions(output: Folder, models: Mapping[str, tuple[int, str]]) -> None:
    for name, (number, model) in models.items():
        predictions = _round(output, number).child("evaluation/predictions")
        if predictions.exists(f"{model}.parquet"):
            output.write_bytes(
                f"evaluation/predictions/{name}.parquet", predictions.read_bytes(f"{model}.parquet")
            )


def table(curve: list[Record]) -> str:
    """The curve for a terminal."""
    rows = [
        [
            "round",
            "images",
            "annotations",
            "parity",
            "% of annotations",
            "learned",
            "forgot",
            "score",
        ]
    ]
    for point in curve:
        counts = [f"{point[name]:,}" for name in ("round", "images", "annotations", "parity")]
        changes = [
            "-" if point[name] is None else f"{point[name]:,}" for name in ("learned", "forgotten")
        ]
        score = "-" if point["score"] is None else f"{point['score']:.1f}"
        rows.append([*counts, f"{100 * point['parity_yield']:.1f}", *changes, score])
    return aligned(rows)


def _round(output: Folder, number: int) -> Folder:
    return output.child(f"rounds/{number}")
