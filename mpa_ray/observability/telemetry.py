"""What Prometheus sees of a run: a few counters and gauges that Ray exports on every node, each
with the prefix `ray_`.

Counters grow by what is committed, once a part, in the driver: work that is done again is not in
them, and neither is what an earlier call on the same output has committed. `mpa_run_images` alone
speaks of the output as a whole. Nothing is done for a row but counting those that wait in an engine
actor, which a thread shows every second.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache
from threading import Thread
from typing import Any

from mpa_ray.schema import CALLS, TOKEN_KINDS, token_columns

# Name -> kind, what it says, and its tags beside `run`. Ray adds _total to a counter's name.
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "mpa_images": ("counter", "Images of parts that were committed.", ()),
    "mpa_verdicts": (
        "counter",
        "Annotations that were committed, by the Parity Identifier's verdict.",
        ("verdict",),
    ),
    "mpa_quarantined": (
        "counter",
        "Rows that were committed to quarantine/, by stage and reason.",
        ("stage", "reason"),
    ),
    "mpa_tokens": (
        "counter",
        "Tokens of committed annotations, by call; cached ones are among the prompt's.",
        ("stage", "kind"),
    ),
    "mpa_run_images": (
        "gauge",
        "Images of the whole run: listed, and done over all calls on the output.",
        ("state",),
    ),
    "mpa_rows": (
        "gauge",
        "Rows of the parts in an engine actor: waiting, and being asked about.",
        ("stage", "state"),
    ),
    "mpa_cost_usd": (
        "gauge",
        "US dollars that replies of paid models cost so far, over all calls, where prices are"
        " given.",
        ("step",),
    ),
    "mpa_training_samples": (
        "gauge",
        "Samples trained on, and how many there will be.",
        ("arm", "state"),
    ),
    "mpa_training_loss": ("gauge", "The training's newest loss per sample.", ("arm",)),
    "mpa_training_tokens_per_second": (
        "gauge",
        "Tokens the training takes a second, over all workers.",
        ("arm",),
    ),
}

# Well below Ray's own interval between reports, which is 10 seconds where it is not set otherwise.
_EVERY_S = 1.0
# The ledgers are files.
_COST_EVERY_S = 10.0

_shown: dict[tuple[str, frozenset[tuple[str, str]]], float | Callable[[], float]] = {}


@cache
def _metric(name: str) -> Any:
    """A Counter or a Gauge of Ray, as `METRICS` says."""
    from ray.util import metrics

    kind, description, tags = METRICS[name]
    return (metrics.Counter if kind == "counter" else metrics.Gauge)(
        name, description=description, tag_keys=("run", *tags)
    )


def count(name: str, by: float, **tags: str) -> None:
    """Add to a counter."""
    if by:
        _metric(name).inc(by, tags=tags)


def show(name: str, value: float | Callable[[], float], **tags: str) -> None:
    """Set a gauge, to a value or to what a function gives when it is looked at."""
    _shown[name, frozenset(tags.items())] = value
    _start_refreshing()


@cache
def _start_refreshing() -> None:
    Thread(target=_refresh, daemon=True, name="telemetry").start()


def _refresh() -> None:
    """Ray forgets a gauge that was not set again since its last report."""
    while True:
        for (name, tags), value in list(_shown.items()):
            _metric(name).set(value() if callable(value) else value, tags=dict(tags))
        time.sleep(_EVERY_S)


def count_commit(run: str, commit: Mapping[str, Any]) -> None:
    """Count what a part's commit says."""
    count("mpa_images", commit["images"], run=run)
    for verdict, rows in commit["verdicts"].items():
        count("mpa_verdicts", rows, run=run, verdict=verdict)
    for place, rows in commit["quarantined"].items():
        stage, _, reason = place.partition("/")
        count("mpa_quarantined", rows, run=run, stage=stage, reason=reason)
    for name, call in CALLS.items():
        for kind, column in zip(TOKEN_KINDS, token_columns(name), strict=True):
            count(
                "mpa_tokens", commit["tokens"].get(column, 0), run=run, stage=call.metric, kind=kind
            )


def show_training(run: str, arm: str, state: Mapping[str, Any]) -> None:
    """The state that training writes into progress.json."""
    show("mpa_training_samples", state["samples"], run=run, arm=arm, state="done")
    show("mpa_training_samples", state["of"], run=run, arm=arm, state="planned")
    show("mpa_training_loss", state["loss"], run=run, arm=arm)
    show("mpa_training_tokens_per_second", state["tokens_per_second"], run=run, arm=arm)


class Run:
    """What the driver shows of PA and PI as parts are committed.

    Args:
        run: `logs.run_id` of its output.
        listed: the images of the run.
        done: those that earlier calls committed.
        costs: gives what paid models cost so far, in US dollars, by step; empty where nothing has a
            price.
    """

    def __init__(
        self, run: str, *, listed: int, done: int, costs: Callable[[], Mapping[str, float]]
    ) -> None:
        self._run, self._costs = run, costs
        self._listed, self._cost_shown = listed, 0.0
        show("mpa_run_images", listed, run=self._run, state="listed")
        show("mpa_run_images", done, run=self._run, state="done")

    def committed(self, commit: Mapping[str, Any], *, done: int) -> None:
        """A part was committed; `done` are all images so far."""
        count_commit(self._run, commit)
        show("mpa_run_images", done, run=self._run, state="done")
        due = done >= self._listed or time.monotonic() - self._cost_shown > _COST_EVERY_S
        if due:
            self._cost_shown = time.monotonic()
            for step, dollars in self._costs().items():
                show("mpa_cost_usd", dollars, run=self._run, step=step)


class Rows:
    """The rows of an engine actor, as `mpa_rows`; to be entered while one is asked about. Ray tags
    what each actor shows with its WorkerId, so queries sum over them.
    """

    def __init__(self, run: str, stage: str) -> None:
        self._waiting = self._asked = 0
        show("mpa_rows", lambda: self._waiting, run=run, stage=stage, state="waiting")
        show("mpa_rows", lambda: self._asked, run=run, stage=stage, state="asked")

    def add_waiting(self, rows: int) -> None:
        """So many more (or fewer) wait to be asked about."""
        self._waiting += rows

    def __enter__(self) -> None:
        self._waiting -= 1
        self._asked += 1

    def __exit__(self, *_: object) -> None:
        self._asked -= 1
