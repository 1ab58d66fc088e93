"""What a paid model was asked, in tokens: `ledger/` in the output, one small JSON file for each
actor that asked.

The commits cannot tell it: they know nothing of replies that could not be parsed, of parts that a
killed run left half done, or of requests that were cut off and may have been billed. The ledger
counts tokens; money is those times the prices of the configuration that reads it.

What is guaranteed:

- A file is never too low. It holds what the replies said, and beside it, as `unsure`, the most that
  requests without a reply may have cost. A request goes out only when the file already allows for
  it, so this holds for a killed process too: what it had in flight, and a few requests more that
  the file allowed for, then count as `unsure` for good. So does a request that ends in any other
  way than a reply or a refusal: an error of ours, or a cancelled task.
- A file is exact whenever no request is in flight, so at the end of every stage.
- A request goes out only if everything before it, everything in flight, and its own bound are
  within `max_cost_usd`. Who asks gives that bound, from the tokens that the server counted before
  (`mpa_ray.engines.openai`). The budget can be passed only by requests for which the server counts
  more than that bound, and only by those that were in flight when it first did.
- What a reply says of its tokens is believed. A server that bills more than it says cannot be found
  out from here.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mpa_ray.config import Config, ModelSection
from mpa_ray.errors import RunError
from mpa_ray.observability.text_table import dollars
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY, EVALUATE_STEP, Stage
from mpa_ray.storage.folder import Folder

_FOLDER = "ledger"
# So many requests more than are in flight does a file allow for; else every request would wait for
# a write of its own.
_AHEAD = 16
# A ledger says which actor asked; run.json says which step of the run that was. The L-VLM and
# jurors can be paid models, each with an account of its own.
_STEPS = {
    Stage.PSEUDO_ANNOTATOR: ANNOTATE_AND_IDENTIFY,
    Stage.JURY: ANNOTATE_AND_IDENTIFY,
    Stage.EVALUATE: f"{EVALUATE_STEP}lvlm",
}


class BudgetSpent(RunError):
    """One more request could pass `max_cost_usd`."""


@dataclass(frozen=True)
class Tokens:
    """Of one or many requests. `cached` are among `prompt`."""

    prompt: int = 0
    cached: int = 0
    output: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.prompt + other.prompt, self.cached + other.cached, self.output + other.output
        )

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.prompt - other.prompt, self.cached - other.cached, self.output - other.output
        )

    def times(self, count: int) -> "Tokens":
        return Tokens(self.prompt * count, self.cached * count, self.output * count)


def usd(tokens: Tokens, model: ModelSection) -> float:
    """What `tokens` cost at the prices of `model`; 0 without prices. Cached tokens without a price
    of their own cost as the others.
    """
    price_in, price_out = (
        model.usd_per_million_input_tokens or 0.0,
        model.usd_per_million_output_tokens or 0.0,
    )
    price_cached = (
        price_in
        if model.usd_per_million_cached_tokens is None
        else model.usd_per_million_cached_tokens
    )
    return (
        (tokens.prompt - tokens.cached) * price_in
        + tokens.cached * price_cached
        + tokens.output * price_out
    ) / 1e6


@dataclass
class Booking:
    """What became of one request: it may have been billed at its bound, until one of these is set.

    Attributes:
        used: what its reply said it cost.
        is_free: it was not sent, or the server did not take it.
    """

    used: Tokens | None = None
    is_free: bool = False


class Ledger:
    """One actor's account.

    Args:
        model: its prices and `max_cost_usd`.
        stage: what asks.
        output: the run's folder, or None to keep the account in memory only.
    """

    def __init__(self, model: ModelSection, *, stage: str, output: Folder | None) -> None:
        self._model = model
        self._stage = stage
        self._folder = output and output.child(_FOLDER)
        self._name = f"{stage}-{uuid.uuid4().hex}.json"
        before = _entries(output, model) if output else []
        self._earlier_usd = sum(usd(_answered(entry) + _unsure(entry), model) for entry in before)
        self._requests = 0
        self._in_flight = 0
        self._answered = self._unsure = self._noted = Tokens()
        self._ended = asyncio.Event()
        self._writing = asyncio.Lock()
        self.is_first = not any(entry["requests"] for entry in before)

    @property
    def at_most_usd(self) -> float:
        """Of the whole run so far, earlier calls and requests in flight included."""
        return self._earlier_usd + usd(self._answered + self._unsure, self._model)

    @asynccontextmanager
    async def request(self, bound: Callable[[], Tokens]) -> AsyncIterator[Booking]:
        """Book one request, which goes out inside of it.

        Args:
            bound: the most it can cost, which is set aside for it. Where only what is set aside
                for others is in the way, it waits for them to end, and asks again: by then more
                may be known.

        Raises:
            BudgetSpent: the request does not fit although no other is in flight.
        """
        while self._is_over(most := bound()):
            if not self._in_flight:
                next_one = f", and the next request could cost {dollars(usd(most, self._model))}"
                raise BudgetSpent(_spent(self._model, self.at_most_usd, next_one))
            await self._ended.wait()
        self._unsure += most
        self._in_flight += 1
        booking = Booking()
        try:
            await self._note(most)
            yield booking
        finally:
            # Nothing is awaited before the books are right: this may be a cancelled task.
            self._in_flight -= 1
            if booking.used is not None:
                self._requests += 1
                self._answered += booking.used
            if booking.used is not None or booking.is_free:
                self._unsure -= most
            self._ended.set()
            self._ended.clear()
            await self._note(most)

    def _is_over(self, most: Tokens) -> bool:
        bound = self._model.max_cost_usd
        return bound is not None and self.at_most_usd + usd(most, self._model) > bound

    async def _note(self, most: Tokens) -> None:
        """Bring the file up to date: exact while nothing is in flight, else if it is too low."""
        async with self._writing:
            now = self._answered + self._unsure
            if not self._in_flight:
                await self._write(Tokens())
            elif now.prompt > self._noted.prompt or now.output > self._noted.output:
                await self._write(most.times(self._ahead(most)))

    def _ahead(self, most: Tokens) -> int:
        if self._model.max_cost_usd is None:
            return _AHEAD
        # Not over the budget: a killed run would else count as one that had passed it.
        left = max(0.0, self._model.max_cost_usd - self.at_most_usd)
        return min(_AHEAD, int(left / max(usd(most, self._model), 1e-12)))

    async def _write(self, ahead: Tokens) -> None:
        unsure = self._unsure + ahead
        self._noted = self._answered + unsure
        entry = {
            "stage": self._stage,
            "model": self._model.model,
            "requests": self._requests,
            "prompt_tokens": self._answered.prompt,
            "cached_tokens": self._answered.cached,
            "output_tokens": self._answered.output,
            "unsure_prompt_tokens": unsure.prompt,
            "unsure_output_tokens": unsure.output,
        }
        if self._folder:
            await asyncio.to_thread(self._folder.write_json, self._name, entry)


def totals(output: Folder, model: ModelSection) -> dict[str, dict[str, Any]]:
    """Step -> its requests, tokens and, with prices, `cost_usd` (what the replies said) and
    `at_most_usd` (with the unsure ones).
    """
    sums: dict[str, dict[str, Any]] = {}
    for entry in _entries(output, model):
        step = sums.setdefault(_STEPS.get(entry["stage"], entry["stage"]), {})
        for name, value in entry.items():
            if isinstance(value, int):
                step[name] = step.get(name, 0) + value
    for step in sums.values() if _has_prices(model) else ():
        step["cost_usd"] = usd(_answered(step), model)
        step["at_most_usd"] = usd(_answered(step) + _unsure(step), model)
    return sums


def accounts(config: Config, output: Folder) -> dict[str, dict[str, Any]]:
    """The L-VLM's account by steps, and beside it each juror's."""
    paid = totals(output, config.lvlm)
    for number, juror in enumerate(config.jury):
        paid |= {f"jury_{number}": account for account in totals(output, juror).values()}
    return paid


def costs(config: Config, output: Folder) -> dict[str, float]:
    """What paid models cost so far, in US dollars, by step; nothing is read where no model has
    prices.
    """
    if not any(_has_prices(model) for model in (config.lvlm, *config.jury)):
        return {}
    return {
        step: account["cost_usd"]
        for step, account in accounts(config, output).items()
        if "cost_usd" in account
    }


def require_budget(output: Folder, model: ModelSection) -> None:
    """Spare a run whose budget is spent from loading anything.

    Raises:
        BudgetSpent: all of it; what the next request would need is the actor's to know.
    """
    spent = (
        sum(step["at_most_usd"] for step in totals(output, model).values())
        if _has_prices(model)
        else 0.0
    )
    if model.max_cost_usd is not None and spent >= model.max_cost_usd:
        raise BudgetSpent(_spent(model, spent))


def _spent(model: ModelSection, amount: float, more: str = "") -> str:
    return (
        f"the budget is spent: {dollars(amount)} of max_cost_usd={model.max_cost_usd} for"
        f" {model.model}{more}."
        " Raise it (--lvlm.max_cost_usd for the L-VLM) to continue"
    )


def _has_prices(model: ModelSection) -> bool:
    return model.usd_per_million_input_tokens is not None


def _entries(output: Folder, model: ModelSection) -> list[dict[str, Any]]:
    folder = output.child(_FOLDER)
    return [
        entry
        for name in folder.names(".json")
        if (entry := folder.read_json(name))["model"] == model.model
    ]


def _answered(entry: dict[str, Any]) -> Tokens:
    return Tokens(entry["prompt_tokens"], entry["cached_tokens"], entry["output_tokens"])


def _unsure(entry: dict[str, Any]) -> Tokens:
    return Tokens(entry["unsure_prompt_tokens"], 0, entry["unsure_output_tokens"])
