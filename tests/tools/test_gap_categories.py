import pytest

from mpa_ray.tools.studies.gap_categories import (
    CATEGORIES,
    UNCLASSIFIED,
    VERBOSE,
    is_verbose,
    judge_prompt,
    parse_reply,
)

OKVQA = CATEGORIES["okvqa"]


@pytest.mark.parametrize("task", CATEGORIES)
def test_the_papers_counts_are_whole(task):
    assert sum(category.paper_percent for category in CATEGORIES[task]) == 100
    names = [category.name for category in CATEGORIES[task]]
    assert len(set(names)) == len(names) and VERBOSE in names and UNCLASSIFIED not in names


@pytest.mark.parametrize(
    ("answer", "svlm_answer"),
    [
        ("STOP", "The sign says Stop."),
        ("Coca-Cola", "It is a coca-cola bottle"),
        ("twenty", "about 20 people"),
        ("red bus", "a big red bus!"),
        ("no", "No, it is closed"),
    ],
)
def test_verbose(answer, svlm_answer):
    assert is_verbose(answer, svlm_answer)


@pytest.mark.parametrize(
    ("answer", "svlm_answer"),
    [
        ("red", "not red"),
        ("red", "red or blue"),
        ("no", "not sure"),
        ("5", "50 cents"),
        ("red bus", "red double bus"),
        ("red", "red"),
        ("red", ""),
        ("", "anything at all"),
        ("the red bus", "red"),
        ("yes", "yes and no"),
    ],
)
def test_not_verbose(answer, svlm_answer):
    assert not is_verbose(answer, svlm_answer)


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("B", 1),
        (" b. ", 1),
        ("(C)", 2),
        ("**A**", 0),
        ("Answer: D", 3),
        ("B. visual guesswork", 1),
        ("B) Visual guesswork.", 1),
        ("B: visual guesswork", 1),
        ("Visual Guesswork", 1),
        ("`correct but verbose`", 2),
    ],
)
def test_replies_that_name_a_category(reply, place):
    assert parse_reply(reply, OKVQA) == OKVQA[place].name


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "E",
        "AB",
        "A or B",
        "A. visual guesswork",
        "I think B",
        "B because the model guessed",
        "visual",
        "Apple",
        "7",
        "A, B",
        "\0",
    ],
)
def test_replies_that_do_not(reply):
    assert parse_reply(reply, OKVQA) == UNCLASSIFIED


def test_the_prompt_shows_the_sample_and_every_category():
    prompt = judge_prompt(
        OKVQA, question="What\nis it? {answer}", answer="x" * 2000, svlm_answer=" "
    )
    assert "Question: What is it? {answer}\n" in prompt
    assert f"Reference answer: {'x' * 500}\n" in prompt
    assert "Small model's answer: (nothing)\n" in prompt
    for letter, category in zip("ABCD", OKVQA, strict=True):
        assert f"{letter}. {category.name}: {category.definition}" in prompt
