"""What a run will take, before it is paid for: hours, GPUs, money, tokens and the size of the
parity set, from the rates of a smaller run of the same kind (`mpa_ray.tools.planning.rates`).

Each range holds 99% of the time if the images to come are like those of the smaller run: there are
a dozen, and all of them should hold. They know nothing of an autoscaler that waits for GPUs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpa_ray.config import LABELED_ARMS, Config, LocalModelSection
from mpa_ray.engines import ledger
from mpa_ray.errors import ConfigurationError
from mpa_ray.observability.progress import duration
from mpa_ray.observability.text_table import aligned, dollars
from mpa_ray.schema import CALLS, CHANGES
from mpa_ray.tasks.confidence import further_hits, further_mean
from mpa_ray.tools.planning.rates import Rates

_LEVEL = 0.99
_LVLM = "L-VLM"
_KINDS = {"prompt": "in", "cached": "in, cached", "output": "out"}


@dataclass(frozen=True)
class Range:
    """A figure of the future and where it will lie."""

    expected: float
    low: float
    high: float

    @classmethod
    def at(cls, value: float) -> "Range":
        return cls(value, value, value)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __add__(self, other: "Range") -> "Range":
        return Range(self.expected + other.expected, self.low + other.low, self.high + other.high)

    def times(self, factor: "float | Range") -> "Range":
        by = factor if isinstance(factor, Range) else Range.at(factor)
        return Range(self.expected * by.expected, self.low * by.low, self.high * by.high)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the run will have, and its price.

    Attributes:
        gpus: of PA and PI together; None: as many as the smaller run had.
        workers: of PL; None: as many as the smaller run had.
        gpus_per_node: nodes are rented whole.
        usd_per_gpu_hour: 0: no money is planned for GPUs.
    """

    gpus: float | None = None
    workers: int | None = None
    gpus_per_node: int = 1
    usd_per_gpu_hour: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage to come, on `gpus` (or cores, where the smaller run had no GPU)."""

    name: str
    gpus: float
    seconds: Range

    def nodes(self, hardware: Hardware) -> int:
        return math.ceil(self.gpus / hardware.gpus_per_node)

    def usd(self, hardware: Hardware) -> Range:
        return self.seconds.times(
            self.nodes(hardware) * hardware.gpus_per_node * hardware.usd_per_gpu_hour / 3600
        )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What `images` will take and give. `tokens` are by their names in the commits; `api_usd` is
    None where no model has a price.
    """

    images: int
    parity: Range
    quarantined: Range
    tokens: dict[str, Range]
    stages: list[Stage]
    api_usd: Range | None


def forecast(rates: Rates, config: Config, *, images: int, hardware: Hardware) -> Forecast:
    """What `images` will take.

    Args:
        rates: of the smaller run.
        config: the smaller run's, with the prices to plan with.
        images: how many there will be.
        hardware: what they will run on; rates grow with GPUs and with workers.
    """
    trials, further = (
        count * config.annotate.questions_per_image for count in (rates.images, images)
    )
    annotations = _hits(rates.annotations, trials, further)
    parts = len(next(iter(rates.tokens.values())))
    per_annotation = {
        name: _mean(values, images * parts / rates.images) for name, values in rates.tokens.items()
    }
    tokens = {name: mean.times(annotations) for name, mean in per_annotation.items()}
    return Forecast(
        images=images,
        parity=_hits(rates.parity, trials, further),
        quarantined=_hits(rates.quarantined, rates.images, images),
        tokens=tokens,
        stages=[
            _inference(rates, config, images, hardware),
            *_later(rates, config, images, hardware),
        ],
        api_usd=_api_usd(rates, config, tokens, images),
    )


def _hits(hits: int, trials: int, further: int) -> Range:
    # Several questions of an image can each be quarantined or dropped, so there may be more of them
    # than trials.
    return Range(
        further * hits / trials, *further_hits(min(hits, trials), trials, further, level=_LEVEL)
    )


def _mean(values: Sequence[float], further: float) -> Range:
    low, high = further_mean(values, max(1.0, further), level=_LEVEL)
    # Nothing measured here can be below zero.
    return Range(float(np.mean(values)), max(0.0, low), high)


def gpus_of(model: LocalModelSection) -> float:
    """The GPUs of a model's replicas, or its cores where it has no GPU; an API has none."""
    return (
        0.0
        if model.kind.is_api
        else (model.most_replicas or model.min_replicas) * (model.gpus or model.cpus)
    )


def all_gpus(config: Config) -> float:
    """The GPUs of PA and PI together, when every model has its `max_replicas`; where the cluster
    alone bounds them, `min_replicas`.
    """
    return sum(gpus_of(model) for model in (config.lvlm, *config.jury, config.svlm))


def _inference(rates: Rates, config: Config, images: int, hardware: Hardware) -> Stage:
    had = all_gpus(config)
    gpus = hardware.gpus or had
    # What an API allows does not grow with our GPUs.
    faster = 1.0 if any(model.kind.is_api for model in (config.lvlm, *config.jury)) else gpus / had
    per_stretch = sum(images for _, images in rates.stretches) / len(rates.stretches)
    scatter = _mean([seconds / images for seconds, images in rates.stretches], images / per_stretch)
    per_image = Range(rates.seconds_per_image, scatter.low, scatter.high)
    seconds = Range.at(rates.startup_s) + per_image.times(images / faster)
    return Stage(name="annotate_and_identify", gpus=gpus, seconds=seconds)


def _later(rates: Rates, config: Config, images: int, hardware: Hardware) -> list[Stage]:
    """PL and the evaluations. A labeled benchmark, and training on labels, are as large as they
    were.
    """
    svlm = gpus_of(config.svlm)
    asked = max(svlm, gpus_of(config.lvlm)) if config.evaluate.lvlm else svlm
    grown = images / rates.images
    found = []
    for name, step in rates.stages.items():
        arm = name.removeprefix("train_")
        if arm != name:
            had = config.pl.workers or 1
            workers = hardware.workers or had
            whole = step["loop_seconds"] * step["samples"] / timed_samples(step)
            seconds = whole * (1.0 if arm in LABELED_ARMS else grown) * had / workers
            startup = max(0.0, step["seconds"] - step["loop_seconds"])
            gpus = workers * (config.pl.gpus_per_worker or config.pl.cpus)
            found.append(Stage(name=name, gpus=gpus, seconds=Range.at(startup + seconds)))
        elif name.startswith("evaluate_"):
            found.append(Stage(name=name, gpus=asked, seconds=Range.at(step["seconds"])))
        elif name.startswith("holdout_"):
            # Its rate was not measured apart; it is at least that of PA and PI, which ask the same
            # S-VLM beside the L-VLM.
            rows = sum(step.get(key, 0) for key in CHANGES)
            growing = min(step["seconds"], rows * rates.seconds_per_image)
            found.append(
                Stage(
                    name=name,
                    gpus=svlm,
                    seconds=Range.at(step["seconds"] - growing + growing * grown),
                )
            )
    return found


def timed_samples(training: dict[str, Any]) -> int:
    """How many of its samples the seconds of a training's loop were taken over.

    Earlier versions took those of the last group of workers alone, and say with which step it
    began.
    """
    if "timed_samples" in training:
        return training["timed_samples"]
    first_step = training["workers"][-1][0] if training.get("workers") else 1
    return training["samples"] - (first_step - 1) * training.get("batch_size", 0)


def with_prices(
    config: Config,
    *,
    input_tokens: float | None,
    cached_tokens: float | None,
    output_tokens: float | None,
) -> Config:
    """`config` with an API's prices for the L-VLM's tokens, in US dollars for a million; without
    any, as it is.

    Raises:
        ConfigurationError: one of input and output is missing.
    """
    if input_tokens is output_tokens is cached_tokens is None:
        return config
    if input_tokens is None or output_tokens is None:
        raise ConfigurationError(
            "a cost needs the prices of input and of output; give --usd-per-million-input-tokens"
            " and --usd-per-million-output-tokens"
        )
    prices = {"input": input_tokens, "cached": cached_tokens, "output": output_tokens}
    return config.model_copy(
        update={
            "lvlm": config.lvlm.model_copy(
                update={f"usd_per_million_{name}_tokens": price for name, price in prices.items()}
            )
        }
    )


def _api_usd(rates: Rates, config: Config, tokens: dict[str, Range], images: int) -> Range | None:
    """What APIs will ask for: the L-VLM's tokens at its prices, the jurors' bills as they grow."""
    bills = [
        Range.at(account["cost_usd"] * images / rates.images)
        for step, account in rates.paid.items()
        if step.startswith("jury_") and "cost_usd" in account
    ]
    if config.lvlm.usd_per_million_input_tokens is not None:
        of_lvlm = {kind: tokens_of(_LVLM, tokens, kind) for kind in ("prompt", "cached", "output")}
        # The ledger has what the commits do not: replies that were quarantined, and what was asked
        # twice.
        billed = rates.paid.get("annotate_and_identify")
        asked = sum(
            np.mean(rates.tokens[f"{call}_{kind}_tokens"])
            for call in CALLS
            if CALLS[call].model == _LVLM
            for kind in ("prompt", "output")
        )
        factor = (
            (billed["prompt_tokens"] + billed["output_tokens"]) / (asked * rates.annotations)
            if billed and asked
            else 1.0
        )
        usd = [
            ledger.usd(
                ledger.Tokens(
                    *(round(getattr(of_lvlm[kind], end)) for kind in ("prompt", "cached", "output"))
                ),
                config.lvlm,
            )
            for end in ("expected", "low", "high")
        ]
        bills.append(Range(*usd).times(max(1.0, factor)))
    return sum(bills, Range.at(0.0)) if bills else None


def tokens_of(model: str, tokens: dict[str, Range], kind: str) -> Range:
    """A model's tokens of a kind (prompt, cached, output), over all its calls."""
    names = [name for name, call in CALLS.items() if call.model == model]
    return sum((tokens[f"{name}_{kind}_tokens"] for name in names), Range.at(0.0))


def table(found: Forecast, rates: Rates, config: Config, hardware: Hardware) -> str:
    """The forecast for a terminal."""
    unit = "GPUs" if config.lvlm.gpus or config.svlm.gpus else "cores"
    data = [
        [f"{found.images:,} images", "expected", "range"],
        _row("parity set", found.parity),
        _row("quarantined", found.quarantined),
    ]
    data += [_row(name, counts) for name, counts in _token_rows(found.tokens) if counts.high]
    priced = hardware.usd_per_gpu_hour > 0
    stages = [
        [
            "stage",
            unit,
            "nodes",
            "time",
            "range",
            f"{unit.removesuffix('s')} hours",
            *(["money"] if priced else []),
        ]
    ]
    for stage in found.stages:
        seconds = stage.seconds
        low, high = duration(seconds.low), duration(seconds.high)
        row = [
            stage.name,
            f"{stage.gpus:g}",
            f"{stage.nodes(hardware):,}",
            duration(seconds.expected),
        ]
        row += [
            f"{low} to {high}" if low != high else "",
            f"{stage.gpus * seconds.expected / 3600:,.1f}",
        ]
        stages.append(row + ([dollars(stage.usd(hardware).expected)] if priced else []))
    rate = (
        f"{1 / rates.seconds_per_image:,.2f} images/s on {all_gpus(config):g} {unit} after"
        f" {duration(rates.startup_s)} of loading"
    )
    lines = [
        f"PA and PI were measured at {rate}, over {rates.images:,} images",
        "",
        aligned(data),
        "",
        aligned(stages),
        "",
        *_sums(found, hardware),
    ]
    return "\n".join(lines)


def _row(name: str, counts: Range) -> list[str]:
    return [name, f"{counts.expected:,.0f}", f"{counts.low:,.0f} to {counts.high:,.0f}"]


def _token_rows(tokens: dict[str, Range]) -> list[tuple[str, Range]]:
    rows = []
    for model in dict.fromkeys(call.model for call in CALLS.values()):
        rows += [
            (f"{model} tokens {words}", tokens_of(model, tokens, kind))
            for kind, words in _KINDS.items()
        ]
    return rows


def _sums(found: Forecast, hardware: Hardware) -> list[str]:
    total = sum((stage.seconds for stage in found.stages), Range.at(0.0))
    lines = [
        f"time, one stage after another: {duration(total.expected)} ({duration(total.low)} to"
        f" {duration(total.high)})"
    ]
    money = {}
    if hardware.usd_per_gpu_hour:
        money["GPUs, each paid while its stage runs"] = sum(
            (stage.usd(hardware) for stage in found.stages), Range.at(0.0)
        )
    if found.api_usd:
        money["APIs"] = found.api_usd
    return lines + [
        f"{what}: {dollars(usd.expected)} ({dollars(usd.low)} to {dollars(usd.high)})"
        for what, usd in money.items()
    ]
