"""What a run's folder says of the run, finished or not: its record where there is one, its books
otherwise.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mpa_ray.config import Config, ModelSection, nested
from mpa_ray.engines import ledger
from mpa_ray.errors import ConfigurationError
from mpa_ray.images import manifest
from mpa_ray.report import run_folder
from mpa_ray.report.run_record import RunRecord, Score, Training, evaluation_of, training_of
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY
from mpa_ray.stages import commits
from mpa_ray.stages import step_times as stages
from mpa_ray.storage.folder import Folder

_NOTHING: dict[str, Any] = {
    "images": 0,
    "annotations": 0,
    "quarantined": {},
    "verdicts": {},
    "tokens": {},
    "svlm_asked": 0,
    "seconds": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run as its report shows it.

    Attributes:
        uri: of the run's folder.
        digest: of the configuration; ratings are kept under it.
        finished: run.json is there, or is about to be.
        config: the tree of settings, as run.json has it; empty where the folder does not say.
        settings: the same, typed; None where it is of another version.
        listed: how many images the run has to do; None where that is not known.
        root: what the references of images below its source begin with; None where that is not
            known.
        data: images, annotations, quarantined, verdicts, tokens, svlm_asked (see
            `commits.totals`), and the seconds of these.
        training: arm -> its record. evaluation: scores. ledger: step -> account. versions: package
            -> version.
        stages: step -> seconds, in the order in which they ran; wall_seconds: of all, those at the
            same time counted once.
        gaps: studies/gaps.json. curves: arm -> (step, loss a sample). rounds: a point a round, for
            a run of several.
        in_training: arm -> how far its training is, while it is trained.
    """

    uri: str
    digest: str
    finished: bool
    config: dict[str, Any]
    settings: Config | None
    listed: int | None
    root: str | None
    data: dict[str, Any]
    training: dict[str, Training]
    evaluation: list[Score]
    ledger: dict[str, dict[str, Any]]
    stages: dict[str, float]
    wall_seconds: float
    versions: dict[str, str]
    gaps: dict[str, Any] | None
    curves: dict[str, list[tuple[float, float]]]
    rounds: list[dict[str, Any]]
    in_training: dict[str, dict[str, Any]]

    @property
    def title(self) -> str:
        """The task and the models, by their own names; the folder's name where the folder does not
        say.
        """
        if not self.config:
            return _last(self.uri)
        source = (
            "a parity set" if self.config.get("parity") else _last(self.config["lvlm"]["model"])
        )
        return f"{self.task}: {_last(self.config['svlm']['model'])} learns from {source}"

    @property
    def task(self) -> str:
        """Its name; a task of one's own has it among its settings."""
        task = self.config.get("task", "")
        return task if isinstance(task, str) else task["name"]

    @property
    def cost_usd(self) -> float | None:
        """What an API's replies cost; None where nothing was paid or there are no prices."""
        costs = [account["cost_usd"] for account in self.ledger.values() if "cost_usd" in account]
        return sum(costs) if costs else None


def _last(path: str | None) -> str:
    """The last name of a path, a URI or a model's id."""
    return (path or "?").rstrip("/").rpartition("/")[2] or "?"


def read(run: Folder, record: RunRecord | None = None) -> Facts:
    """The facts of a run.

    Args:
        run: its output folder.
        record: what is about to be written as run.json; None reads it, or the books where it is not
            there yet.

    Raises:
        ConfigurationError: the folder holds no run.
    """
    if record is None and run.exists("run.json"):
        record = run.read_json("run.json")
    flat = run.read_json("config.json") if run.exists("config.json") else None
    if record is None and flat is None and not run.child("judgements").names(".parquet"):
        raise ConfigurationError(f"{run.uri}: holds no run; give the output folder of one")
    settings = _settings(run)
    finished = record is not None
    record = record or _from_books(run, flat or {}, settings)
    listed = manifest.load(run.child("manifest"))
    return Facts(
        uri=run.uri,
        digest=hashlib.sha256(
            json.dumps(flat or run.uri, sort_keys=True).encode("utf-8", "replace")
        ).hexdigest()[:12],
        finished=finished,
        config=record["config"],
        settings=settings,
        listed=listed.images if listed else None,
        root=listed.root if listed else None,
        data={name: record.get(name, empty) for name, empty in _NOTHING.items()},
        training=record["training"],
        evaluation=record["evaluation"],
        ledger=record.get("ledger", {}),
        stages=record["stages"],
        wall_seconds=record.get("wall_seconds", sum(record["stages"].values())),
        versions=record.get("versions", {}),
        gaps=run.read_json("studies/gaps.json") if run.exists("studies/gaps.json") else None,
        curves=dict(_curves(run, record["training"])),
        rounds=record.get("rounds", []),
        in_training={} if finished else dict(_in_training(run, record)),
    )


def _settings(run: Folder) -> Config | None:
    try:
        return run_folder.config_of(run)
    except ConfigurationError:
        return None


def _from_books(run: Folder, flat: dict[str, Any], settings: Config | None) -> RunRecord:
    """What run.json would say now."""
    places = run_folder.folders(run)
    finished = stages.records(run)
    took = {name: step["seconds"] for name, step in finished.items()}
    wall = stages.wall_seconds(finished.values())
    for place in run_folder.round_folders(run):
        in_round = stages.wall_seconds(stages.records(place).values())
        took |= {f"round_{place.uri.rpartition('/')[2]}": in_round} if in_round else {}
        wall += in_round
    return {
        "config": nested(flat),
        **commits.add_up(commit for place in places for commit in commits.commits(place)),
        "seconds": sum(stages.seconds(place, ANNOTATE_AND_IDENTIFY) for place in places),
        "training": training_of(finished),
        "evaluation": evaluation_of(finished),
        "ledger": _paid(places, settings.lvlm) if settings else {},
        "stages": took,
        "wall_seconds": wall,
    }


def _paid(places: list[Folder], model: ModelSection) -> dict[str, dict[str, Any]]:
    """The accounts by step, of all rounds together."""
    sums: dict[str, dict[str, Any]] = {}
    for place in places:
        for step, account in ledger.totals(place, model).items():
            earlier = sums.get(step, {})
            sums[step] = {name: earlier.get(name, 0) + value for name, value in account.items()}
    return sums


def _in_training(run: Folder, record: RunRecord) -> Iterable[tuple[str, dict[str, Any]]]:
    for place in run_folder.folders(run):
        for arm in ("mpa", *record["config"].get("ablations", ())):
            if arm not in record["training"] and place.exists(f"checkpoints/{arm}/progress.json"):
                yield arm, place.read_json(f"checkpoints/{arm}/progress.json")


def _curves(run: Folder, arms: Iterable[str]) -> Iterable[tuple[str, list[tuple[float, float]]]]:
    for arm in arms:
        folder = run.child("model" if arm == "mpa" else f"models/{arm}")
        if folder.exists("training_log.json"):
            log = folder.read_json("training_log.json")
            if log.get("rows"):
                step, loss = (log["columns"].index(name) for name in ("step", "loss_per_sample"))
                yield arm, [(float(row[step]), float(row[loss])) for row in log["rows"]]
