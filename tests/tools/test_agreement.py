import pytest

from mpa_ray.tools.studies.agreement import fleiss_kappa, krippendorff_alpha

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): section A (two observers,
# binary data) and section C (four observers, nominal data with missing values).
BINARY = ("0100000010", "1110010000")
FOUR_OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")

# The worked example of Fleiss (1971) as reference works print it: 10 items, 14 raters, 5
# categories; kappa is 0.210.
FLEISS = """
0 0 0 0 14
0 2 6 4 2
0 0 3 5 6
0 3 9 2 0
2 2 8 1 1
7 7 0 0 0
3 2 6 3 0
2 5 3 2 2
6 5 2 1 0
0 2 2 3 7
"""


def by_item(observers):
    return [[value for value in item if value != "."] for item in zip(*observers, strict=True)]


def test_alpha_of_the_textbook():
    assert krippendorff_alpha(by_item(BINARY)) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha(by_item(FOUR_OBSERVERS)) == pytest.approx(0.743, abs=5e-4)


def test_kappa_of_the_textbook():
    rows = [[int(count) for count in line.split()] for line in FLEISS.split("\n") if line]
    items = [[category for category, count in enumerate(row) for _ in range(count)] for row in rows]
    assert fleiss_kappa(items) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("coefficient", [krippendorff_alpha, fleiss_kappa])
def test_ends_of_the_scale(coefficient):
    assert coefficient([[1, 1, 1], [0, 0, 0]]) == 1.0
    assert coefficient([[1, 0], [0, 1], [1, 0], [0, 1]]) < 0


@pytest.mark.parametrize("coefficient", [krippendorff_alpha, fleiss_kappa])
@pytest.mark.parametrize(
    "items", [[], [[1], [0]], [[1, 1], [1, 1]]], ids=["none", "one rater", "no variation"]
)
def test_undefined(coefficient, items):
    assert coefficient(items) is None


def test_alpha_skips_items_with_one_rating_and_kappa_refuses_them():
    complete = [[1, 1], [0, 0], [1, 0]]
    assert krippendorff_alpha([*complete, [1], []]) == krippendorff_alpha(complete)
    with pytest.raises(ValueError, match="have 1, 2 ratings"):
        fleiss_kappa([*complete, [1]])
