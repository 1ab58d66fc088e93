"""Model FLOPs utilization."""

import pytest

from mpa_ray.training.mfu import mfu


def test_a_known_card() -> None:
    # 2.2e9 parameters, 3 cards of 362e12: 6 x 2.2e9 x 20,000 / 1.086e15.
    found = mfu(tokens_per_second=20_000, parameters=2_200_000_000, workers=3, card="NVIDIA L40S")
    assert found == pytest.approx(0.2431, abs=1e-4)


def test_cards_whose_names_begin_alike_are_told_apart() -> None:
    shares = {card: mfu(tokens_per_second=1e4, parameters=10**9, workers=1, card=card) for card in ("NVIDIA L4", "NVIDIA L40S")}
    assert shares["NVIDIA L4"] == pytest.approx(shares["NVIDIA L40S"] * 362 / 121)


@pytest.mark.parametrize("card", ["", "Some other card"])
def test_what_is_not_known_has_none(card: str) -> None:
    assert mfu(tokens_per_second=1.0, parameters=1, workers=1, card=card) is None
