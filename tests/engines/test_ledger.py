"""The account of a paid model: never too low, whatever becomes of a request."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import ModelSection
from mpa_ray.engines import ledger
from mpa_ray.engines.ledger import BudgetSpent, Ledger, Tokens
from mpa_ray.storage.folder import Folder

PRICES = {"usd_per_million_input_tokens": 1000.0, "usd_per_million_output_tokens": 1000.0}
MOST = Tokens(prompt=100, output=10)
# What MOST costs at those prices.
EACH = 0.11


def priced(**changes: Any) -> ModelSection:
    return ModelSection(model="m", engine="openai", **PRICES | changes)


def opened(model: ModelSection, folder: Path | None) -> Ledger:
    return Ledger(model, stage="pseudo_annotator", output=folder and Folder.at(folder))


def written(folder: Path, model: ModelSection) -> dict[str, Any]:
    return ledger.totals(Folder.at(folder), model)["annotate_and_identify"]


def test_a_request_waits_for_others_rather_than_fail() -> None:
    async def work() -> None:
        account = opened(priced(max_cost_usd=1.5 * EACH), None)

        async def second() -> None:
            async with account.request(lambda: MOST) as booking:
                went.set()
                booking.used = MOST

        went = asyncio.Event()
        async with account.request(lambda: MOST) as booking:
            waiting = asyncio.create_task(second())
            await asyncio.sleep(0.01)
            assert not went.is_set()
            booking.used = Tokens(prompt=40, output=4)
        await waiting
        assert account.at_most_usd == pytest.approx(1.4 * EACH)
        with pytest.raises(BudgetSpent):
            async with account.request(lambda: MOST):
                pass

    asyncio.run(work())


@pytest.mark.parametrize("kind", [RecursionError, KeyError, asyncio.CancelledError])
def test_a_request_that_ends_in_an_error_is_over_and_may_have_been_billed(
    kind: type[BaseException], tmp_path: Path
) -> None:
    model = priced(max_cost_usd=2.5 * EACH)

    async def work() -> None:
        account = opened(model, tmp_path)
        with pytest.raises(kind):
            async with account.request(lambda: MOST):
                raise kind("odd")
        async with account.request(lambda: MOST) as booking:
            booking.used = MOST
        assert account.at_most_usd == pytest.approx(2 * EACH)
        # It does not wait for the first one, which is over.
        with pytest.raises(BudgetSpent):
            async with account.request(lambda: MOST):
                pass

    asyncio.run(work())
    assert (
        written(tmp_path, model)["unsure_prompt_tokens"],
        written(tmp_path, model)["prompt_tokens"],
    ) == (100, 100)


def test_a_request_that_is_cancelled_lets_the_next_one_go(tmp_path: Path) -> None:
    model = priced(max_cost_usd=2.5 * EACH)

    async def work() -> None:
        account = opened(model, tmp_path)

        async def one(until: asyncio.Event) -> None:
            async with account.request(lambda: MOST) as booking:
                await until.wait()
                booking.is_free = True

        never, at_once = asyncio.Event(), asyncio.Event()
        at_once.set()
        held = [asyncio.create_task(one(never)) for _ in range(2)]
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(one(at_once))
        await asyncio.sleep(0.05)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        with pytest.raises(BudgetSpent):
            await asyncio.wait_for(waiting, 10)

    asyncio.run(work())
    assert written(tmp_path, model)["unsure_prompt_tokens"] == 200


def test_a_file_is_never_too_low_where_a_reply_cost_more_than_was_set_aside(tmp_path: Path) -> None:
    """Over the budget too, where nothing is allowed for ahead."""
    model = priced(max_cost_usd=5.0)

    async def work() -> None:
        account = opened(model, tmp_path)
        async with account.request(lambda: MOST):
            async with account.request(lambda: MOST) as booking:
                booking.used = Tokens(prompt=90_000, output=10)
            found = written(tmp_path, model)
            assert found["prompt_tokens"] == 90_000 and found["unsure_prompt_tokens"] == 100
            assert found["at_most_usd"] == pytest.approx(account.at_most_usd)

    asyncio.run(work())


def test_what_a_request_may_cost_is_asked_again_after_it_waited() -> None:
    """What came back meanwhile may tell more."""

    async def work() -> None:
        account = opened(priced(max_cost_usd=10.5 * EACH), None)
        bound = MOST

        async def second() -> None:
            async with account.request(lambda: bound):
                pytest.fail("it could cost more than there is left")

        async with account.request(lambda: MOST.times(10)) as booking:
            waiting = asyncio.create_task(second())
            await asyncio.sleep(0.01)
            bound = MOST.times(10)
            booking.used = MOST
        with pytest.raises(BudgetSpent):
            await waiting

    asyncio.run(work())


def test_what_was_not_taken_is_free(tmp_path: Path) -> None:
    model = priced()

    async def work() -> None:
        account = opened(model, tmp_path)
        async with account.request(lambda: MOST) as booking:
            booking.is_free = True
        assert account.at_most_usd == 0

    asyncio.run(work())
    assert written(tmp_path, model)["at_most_usd"] == 0 == written(tmp_path, model)["requests"]
