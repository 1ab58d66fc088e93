"""The official scores of the benchmarks, one pure function each, in 0..1 (a caption's CIDEr apart).

    benchmark                 score
    TextVQA                   textvqa_accuracy
    ST-VQA                    anls
    ChartQA                   relaxed_accuracy
    OK-VQA (and VQA v2)       vqa_accuracy
    ICDAR 2015 words          word_recognition_rate
    TextCaps                  caption_scores

`mpa_compat_accuracy` is the rule of the MPA authors' released code, offered beside the official
ones to compare with their tables. It is more lenient than any of them: never mix the two in one
table.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from mpa_ray.tasks.answer_normalization import (
    process_textvqa_answer,
    process_vqa_answer,
    trim_vqa_answer,
)
from mpa_ray.tasks.captions import caption_scores

__all__ = [
    "anls",
    "caption_scores",
    "mpa_compat_accuracy",
    "normalized_edit_distance",
    "relaxed_accuracy",
    "textvqa_accuracy",
    "vqa_accuracy",
    "word_recognition_rate",
]

_ANNOTATORS = 10
_MATCHES_FOR_FULL_SCORE = 3

_ANLS_THRESHOLD = 0.5

_RELAXED_TOLERANCE = 0.05


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA v2 and OK-VQA accuracy of one prediction against its human answers (`vqaEval.py`,
    github.com/GT-Vision-Lab/VQA).

    The mean over the ten leave-one-out subsets of min(1, matches / 3). Prediction and answers are
    normalised only if the answers differ; if all agree, they are compared as written, case
    included, as the evaluator does. OK-VQA compares with its lemmatised answers.

    The official rule knows ten answers. Fewer stand for ten in the same proportions, as OK-VQA
    repeats each of its five answers twice: one answer is then all or nothing. More than ten are
    left out one by one as they are.

    Raises:
        ValueError: `answers` is empty, or one string instead of a sequence of strings.
    """
    _require_answers(answers)
    truths = [trim_vqa_answer(answer) for answer in answers]
    if len(set(truths)) == 1:
        return _leave_one_out_accuracy(trim_vqa_answer(prediction), truths)
    return _leave_one_out_accuracy(
        process_vqa_answer(prediction), [process_vqa_answer(truth) for truth in truths]
    )


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """TextVQA accuracy of one prediction (`TextVQAAccuracyEvaluator` in `m4c_evaluators.py`,
    github.com/facebookresearch/mmf).

    The leave-one-out rule of `vqa_accuracy`, but always normalised, and by EvalAI's answer
    processor: lower case first, "," and "?" dropped, "'s" split off. The official evaluator refuses
    any number of answers but ten; see `vqa_accuracy` for fewer.

    Raises:
        ValueError: `answers` is empty, or one string instead of a sequence of strings.
    """
    _require_answers(answers)
    return _leave_one_out_accuracy(
        process_textvqa_answer(prediction), [process_textvqa_answer(answer) for answer in answers]
    )


def _leave_one_out_accuracy(prediction: str, truths: Sequence[str]) -> float:
    """In closed form: leaving out a match leaves one match fewer, leaving out any other answer
    leaves them all.
    """
    matches = sum(truth == prediction for truth in truths)
    if matches == 0:
        return 0.0
    total = max(len(truths), _ANNOTATORS)
    matching = matches * total / len(truths)
    full_score = _MATCHES_FOR_FULL_SCORE
    return (
        matching * min(1.0, (matching - 1) / full_score)
        + (total - matching) * min(1.0, matching / full_score)
    ) / total


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one prediction: ST-VQA (Biten et al., ICCV 2019,
    Eq. 1) and DocVQA.

    The best over the answers of 1 - NL where NL < 0.5, else 0; case-insensitive, surrounding space
    dropped, inner space counted. At NL = 0.5 exactly the paper's equation gives 0, and so do we;
    some evaluators give 0.5 there.

    Raises:
        ValueError: `answers` is empty, or one string instead of a sequence of strings.
    """
    _require_answers(answers)
    predicted = prediction.strip().lower()
    distance = min(
        normalized_edit_distance(predicted, answer.strip().lower()) for answer in answers
    )
    return 1.0 - distance if distance < _ANLS_THRESHOLD else 0.0


def normalized_edit_distance(first: str, second: str) -> float:
    """Levenshtein distance in characters over the longer length, in 0..1; 0 for two empty
    strings.
    """
    longer = max(len(first), len(second))
    return _edit_distance(first, second) / longer if longer else 0.0


def _edit_distance(first: str, second: str) -> int:
    # Most answers that are compared are equal.
    if first == second:
        return 0
    previous = list(range(len(second) + 1))
    for row, character in enumerate(first, start=1):
        current = [row]
        for column, other in enumerate(second):
            current.append(
                min(
                    previous[column + 1] + 1,
                    current[column] + 1,
                    previous[column] + (character != other),
                )
            )
        previous = current
    return previous[-1]


def relaxed_accuracy(prediction: str, target: str) -> float:
    """ChartQA's relaxed accuracy, 0 or 1 (Masry et al., ACL Findings 2022, section 5.1;
    `relaxed_correctness` in pix2struct's metrics.py).

    A number within 5% of a numeric target is correct; "%" divides by 100. Anything else, a target
    of 0 included, needs equality but for case and surrounding space. A year is a number like any
    other here: "2012" is right for "2011". Digit groups ("1,000") are no numbers to the evaluator
    and compare as text.
    """
    predicted_number, target_number = _to_number(prediction), _to_number(target)
    if predicted_number is not None and target_number:
        return float(
            abs(predicted_number - target_number) / abs(target_number) <= _RELAXED_TOLERANCE
        )
    return float(prediction.strip().lower() == target.strip().lower())


def _to_number(text: str) -> float | None:
    stripped = text.strip()
    try:
        number = float(stripped.rstrip("%")) / 100.0 if stripped.endswith("%") else float(stripped)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def word_recognition_rate(
    predictions: Sequence[str], targets: Sequence[str], *, case_sensitive: bool = False
) -> float:
    """The share of words read exactly: ICDAR 2015 Robust Reading, task 4.3 (Karatzas et al., ICDAR
    2015).

    The competition ranks with and without regard to case; without is what papers on word
    recognition report, and the default. Surrounding space is dropped; punctuation and inner space
    count, as in the competition.

    Raises:
        ValueError: the lengths differ, or there is no word.
    """
    if len(predictions) != len(targets):
        raise ValueError(
            f"predictions has {len(predictions)} words and targets {len(targets)}; give one"
            " prediction per target"
        )
    if not targets:
        raise ValueError("targets is empty; give at least one word")
    pairs = (
        (prediction.strip(), target.strip())
        for prediction, target in zip(predictions, targets, strict=True)
    )
    if not case_sensitive:
        pairs = ((prediction.lower(), target.lower()) for prediction, target in pairs)
    return sum(prediction == target for prediction, target in pairs) / len(targets)


def mpa_compat_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The rule of the MPA authors' released evaluation, 0 or 1 (`scripts/utils/utils.py` and
    `dataLoader.py`, github.com/vl2g/MPA).

    Lower-case and drop every non-word character of both; the commonest answer (the first of equals)
    must then be a substring of the prediction. So "no" is found in "not sure", and "1.5" in "215".
    An empty reference or prediction never matches here, where the released code finds the empty
    reference in everything.

    Raises:
        ValueError: `answers` is empty, or one string instead of a sequence of strings.
    """
    _require_answers(answers)
    return float(contains_reference(prediction, Counter(answers).most_common(1)[0][0]))


def contains_reference(prediction: str, reference: str) -> bool:
    """The comparison of `mpa_compat_accuracy`, also the authors' Eq. 1."""
    wanted = _word_characters(reference)
    return bool(wanted) and wanted in _word_characters(prediction)


def _word_characters(text: str) -> str:
    return re.sub(r"\W+", "", text.lower())


def _require_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str):
        raise ValueError(
            f"answers is the string {answers!r}; give a sequence of strings, such as [{answers!r}]"
        )
    if not answers:
        raise ValueError("answers is empty; give at least one answer")
