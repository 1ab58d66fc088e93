import math

import numpy as np
import pytest

from mpa_ray.tasks.confidence import bootstrap_interval, further_hits, further_mean, paired_test


def test_interval_of_a_share_agrees_with_the_normal_approximation():
    scores = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap_interval(scores)
    error = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - error, abs=0.005)
    assert high == pytest.approx(0.3 + error, abs=0.005)


def test_interval_narrows_with_the_level_and_is_reproducible():
    scores = np.random.default_rng(1).random(200)
    wide, narrow = bootstrap_interval(scores), bootstrap_interval(scores, level=0.5)
    assert wide[0] < narrow[0] < scores.mean() < narrow[1] < wide[1]
    assert wide == bootstrap_interval(scores)
    assert wide != bootstrap_interval(scores, seed=1)


def test_constant_scores_have_no_width():
    assert bootstrap_interval([0.6] * 10) == pytest.approx((0.6, 0.6))
    assert bootstrap_interval([1.0]) == (1.0, 1.0)


def test_many_distinct_scores_are_drawn_in_blocks():
    scores = np.random.default_rng(0).random(3000)
    low, high = bootstrap_interval(scores, resamples=700)
    error = 1.96 * scores.std() / math.sqrt(3000)
    assert high - low == pytest.approx(2 * error, rel=0.15)


def test_paired_test_finds_a_difference():
    b = np.array([0.0, 1.0] * 100)
    a = b.copy()
    a[:40:2] = 1.0
    result = paired_test(a, b)
    assert result["difference"] == pytest.approx(0.1)
    assert result["ci95"][0] > 0.0
    assert result["p_value"] < 0.001
    mirrored = paired_test(b, a)
    assert mirrored["difference"] == pytest.approx(-0.1)
    assert mirrored["p_value"] == result["p_value"]


def test_paired_test_of_equal_models_says_nothing():
    result = paired_test([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert result == {"difference": 0.0, "ci95": (0.0, 0.0), "p_value": 1.0}


def test_p_value_matches_the_exact_permutation_test():
    # Five wins and no loss: two of 32 sign patterns are as extreme.
    result = paired_test([1.0] * 5, [0.0] * 5, resamples=20000)
    assert result["p_value"] == pytest.approx(2 / 32, abs=0.006)


def test_a_share_of_endless_further_trials_is_nearly_wilsons_interval():
    # 81 of 263: Newcombe 1998, table I, method 3, which is within 0.001 of Jeffreys' for so many
    # trials.
    low, high = further_hits(81, 263, 10**9)
    assert (low / 1e9, high / 1e9) == pytest.approx((0.2553, 0.3662), abs=1e-3)
    assert further_hits(0, 50, 100)[0] == 0.0 and further_hits(50, 50, 100)[1] == 100.0


def test_where_nearly_all_hit_all_may_hit():
    # P(no miss of 1,500 | 1 of 384) = B(384 - 1 + 1500 + 1/2, 1 + 1/2) / B(383.5, 1.5) = 0.092
    assert further_hits(383, 384, 1500, level=0.99)[1] == 1500
    assert further_hits(383, 384, 1500, level=0.80)[1] < 1500


@pytest.mark.parametrize("share", [0.002, 0.5, 0.998])
def test_lopsided_shares_fall_into_their_range_too(share):
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(300):
        low, high = further_hits(int(generator.binomial(400, share)), 400, 1500, level=0.99)
        inside += low <= generator.binomial(1500, share) <= high
    assert inside / 300 >= 0.97


def test_a_mean_of_endless_further_values_is_students_interval():
    # t(0.975, 3) = 3.182 and 3.182 * 1.2910 / 2 = 2.054
    assert further_mean([1.0, 2.0, 3.0, 4.0], 1e12) == pytest.approx((0.446, 4.554), abs=0.01)


def test_what_is_to_come_falls_into_its_range_as_often_as_promised():
    generator = np.random.default_rng(7)
    hits = means = 0
    for _ in range(800):
        low, high = further_hits(int(generator.binomial(300, 0.3)), 300, 1000)
        hits += low <= generator.binomial(1000, 0.3) <= high
        low, high = further_mean(generator.normal(5, 1, 6), 4)
        means += low <= generator.normal(5, 1, 4).mean() <= high
    assert hits / 800 == pytest.approx(0.95, abs=0.02)
    assert means / 800 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "scores has shape"),
        (lambda: bootstrap_interval([0.1, math.nan]), r"scores\[1\] is nan"),
        (lambda: bootstrap_interval([0.1], level=95), "level is 95"),
        (lambda: bootstrap_interval([0.1], resamples=0), "resamples is 0"),
        (lambda: paired_test([0.1], [0.1, 0.2]), "in the same order"),
        (lambda: paired_test([0.1], [math.inf]), r"scores_b\[0\]"),
        (lambda: further_hits(2, 1, 10), "2 hits of 1 trials"),
        (lambda: further_hits(0, 0, 10), "0 hits of 0 trials"),
        (lambda: further_mean([1.0, 2.0], 10), "2 values"),
    ],
)
def test_refused_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
