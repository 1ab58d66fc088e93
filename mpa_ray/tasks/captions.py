"""BLEU-1, ROUGE-L and CIDEr as pycocoevalcap defines them, in Python alone (pycocoevalcap needs
Java for its tokeniser).

The scores are those of `bleu_scorer.py`, `rouge.py` and `cider_scorer.py` of
github.com/salaniz/pycocoevalcap, to rounding. The tokeniser follows Stanford's PTBTokenizer 3.4.1
with `-preserveLines -lowerCase`, minus the punctuation tokens that pycocoevalcap drops. It agrees
on captions as people write them; it may differ on web addresses, e-mail addresses, emoticons,
abbreviations outside the short list below, and on which side a lone single quote belongs to.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

Ngram = tuple[str, ...]

_MAX_N = 4
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2

# The evaluator lists "-LRB-" and its like in capitals, but its tokeniser has lower-cased by then:
# brackets do count as tokens.
_DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})

_RENAMED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "£": "#",
    "€": "$",
    "¢": "cents",
}

_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|sr|jr|st|ave|blvd|rd|mt|ft|gen|sen|rep|gov|capt|col|lt|sgt|rev|hon|messrs|inc|corp|co|ltd|bros|vs|etc|dept|univ"
    "|assn|est|jan|feb|mar|apr|aug|sept|sep|oct|nov|dec|fig|vol|approx|ph\\.d"
)

_TOKEN = re.compile(
    rf"""
      \.\.\.+ | --+ | [!?]+ | ''                                       # runs of marks stay whole
    | https?://\S+ | [\w.+-]{{1,64}}@[\w-]+(?:\.[\w-]+)+
    | (?:[a-z]\.)+(?![a-z0-9])                                         # u.s.  p.m.  j.
    | (?:{_ABBREVIATIONS})\.(?!\w) | no\.(?=\s*\d)
    | n't(?![a-z0-9]) | '(?:s|m|d|ll|re|ve)(?![a-z0-9])
    | '\d0s(?![a-z0-9]) | 'n(?:'|(?![a-z0-9]))                         # '90s  rock 'n' roll
    | [-+]?\d+(?:[.,:]\d+)+ | [-+]\d+ | \.\d+(?:\.\d+)*  # 1,000  7:30  -5  and v2.0 is v2 .0
    | (?:can(?=not(?![a-z]))|gon(?=na(?![a-z]))|wan(?=na(?![a-z]))
      |got(?=ta(?![a-z]))|gim(?=me(?![a-z]))|lem(?=me(?![a-z])))
    | o'clock | (?:o|d|l)'(?=[^\W\d_])[^\W\d_]+
    | [^\W\d_]+?(?=n't(?![a-z0-9]))                                    # do|n't
    | [@\#][^\W\d]\w*                                                 # @home  #best
    | [^\W_]+(?:\.[^\W\d_][^\W_]*)*(?:\+\+)?  # words, names with inner periods, c++
      (?:[-/&][^\W_]+(?:\.[^\W\d_][^\W_]*)*)*                         # ice-cream  3/4  at&t
    | \S
    """,
    re.VERBOSE,
)

_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "`", "’": "'", "–": "--", "—": "--", "…": "..."})


def caption_tokens(caption: str) -> list[str]:
    """Lower-cased Penn Treebank tokens of one caption, without the punctuation tokens that
    pycocoevalcap drops.
    """
    text = caption.translate(_QUOTES).replace('"', " '' ").lower()
    tokens = (_RENAMED.get(token, token) for token in _TOKEN.findall(text))
    return [token for token in tokens if token not in _DROPPED]


def caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Corpus scores of one caption per image against its reference captions.

    Args:
        predictions: one caption per image.
        references: the reference captions of each image, in the same order.

    Returns:
        "bleu_1" and "rouge_l" in 0..1 and "cider" in 0..10. Print each times 100: a CIDEr of 1.0 is
        a published 100. CIDEr weighs n-grams by the images whose references hold them, so it
        belongs to the set evaluated and is 0 for a single image.

    Raises:
        ValueError: the lengths differ, there is no image, or an image has no reference.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions has {len(predictions)} captions and references {len(references)} images;"
            " give one caption per image"
        )
    if not predictions:
        raise ValueError("predictions is empty; give at least one caption")
    for index, captions in enumerate(references):
        if isinstance(captions, str) or not captions:
            raise ValueError(
                f"references[{index}] is {captions!r}; give a list of at least one reference"
                " caption"
            )
    predicted = [caption_tokens(caption) for caption in predictions]
    referenced = [[caption_tokens(caption) for caption in captions] for captions in references]
    return {
        "bleu_1": bleu_1(predicted, referenced),
        "rouge_l": rouge_l(predicted, referenced),
        "cider": cider(predicted, referenced),
    }


def bleu_1(
    predicted: Sequence[Sequence[str]], referenced: Sequence[Sequence[Sequence[str]]]
) -> float:
    """Clipped unigram precision over the corpus, times the brevity penalty with each image's
    closest reference length.
    """
    correct = predicted_length = reference_length = 0
    for tokens, references in zip(predicted, referenced, strict=True):
        most = Counter[str]()
        for reference in references:
            most |= Counter(reference)
        correct += (Counter(tokens) & most).total()
        predicted_length += len(tokens)
        reference_length += min(
            (abs(len(reference) - len(tokens)), len(reference)) for reference in references
        )[1]
    # The evaluator's own guards against division by zero; without them the last digits differ.
    tiny, small = 1e-15, 1e-9
    precision = (correct + tiny) / (predicted_length + small)
    ratio = (predicted_length + tiny) / (reference_length + small)
    return precision * math.exp(1.0 - 1.0 / ratio) if ratio < 1.0 else precision


def rouge_l(
    predicted: Sequence[Sequence[str]], referenced: Sequence[Sequence[Sequence[str]]]
) -> float:
    """Mean over images of the F score (beta 1.2) of the best precision and the best recall, each
    over all references of the image.
    """
    return sum(
        _rouge_l_of_image(tokens, references)
        for tokens, references in zip(predicted, referenced, strict=True)
    ) / len(predicted)


def _rouge_l_of_image(tokens: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    # `"".split(" ")` is one empty token in the evaluator, so an empty caption has length 1.
    candidate = tokens or [""]
    common = [
        (_common_subsequence_length(candidate, reference or [""]), len(reference) or 1)
        for reference in references
    ]
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / of for length, of in common)
    if precision == 0.0 or recall == 0.0:
        return 0.0
    weight = _ROUGE_BETA**2
    return (1.0 + weight) * precision * recall / (recall + weight * precision)


def _common_subsequence_length(first: Sequence[str], second: Sequence[str]) -> int:
    previous = [0] * (len(second) + 1)
    for token in first:
        current = [0]
        for column, other in enumerate(second):
            current.append(
                previous[column] + 1
                if token == other
                else max(previous[column + 1], current[column])
            )
        previous = current
    return previous[-1]


def cider(
    predicted: Sequence[Sequence[str]], referenced: Sequence[Sequence[Sequence[str]]]
) -> float:
    """CIDEr as `cider_scorer.py` computes it: clipped tf-idf cosine with a Gaussian length penalty
    (the paper's CIDEr-D), times 10.
    """
    references = [[_ngram_counts(reference) for reference in captions] for captions in referenced]
    document_frequency = Counter[Ngram]()
    for captions in references:
        document_frequency.update(set().union(*captions))
    log_images = math.log(len(references))
    total = 0.0
    for tokens, captions in zip(predicted, references, strict=True):
        prediction = _TfIdf(_ngram_counts(tokens), document_frequency, log_images)
        similar = sum(
            prediction.similarity(_TfIdf(caption, document_frequency, log_images))
            for caption in captions
        )
        total += 10.0 * similar / len(captions)
    return total / len(references)


def _ngram_counts(tokens: Sequence[str]) -> Counter[Ngram]:
    return Counter(
        tuple(tokens[start : start + n])
        for n in range(1, _MAX_N + 1)
        for start in range(len(tokens) - n + 1)
    )


class _TfIdf:
    """The tf-idf weights of one caption, a norm for each n, and its length, which the evaluator
    counts in bigrams.
    """

    def __init__(
        self, counts: Counter[Ngram], document_frequency: Counter[Ngram], log_images: float
    ) -> None:
        self.weights = {
            ngram: count * (log_images - math.log(max(1, document_frequency[ngram])))
            for ngram, count in counts.items()
        }
        squares = [0.0] * _MAX_N
        for ngram, weight in self.weights.items():
            squares[len(ngram) - 1] += weight * weight
        self.norms = [math.sqrt(square) for square in squares]
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 2)

    def similarity(self, reference: "_TfIdf") -> float:
        dots = [0.0] * _MAX_N
        for ngram, weight in self.weights.items():
            reference_weight = reference.weights.get(ngram, 0.0)
            dots[len(ngram) - 1] += min(weight, reference_weight) * reference_weight
        norms = [own * other for own, other in zip(self.norms, reference.norms, strict=True)]
        cosines = [dot / norm if norm else dot for dot, norm in zip(dots, norms, strict=True)]
        return (
            sum(cosines)
            / _MAX_N
            * math.exp(-((self.length - reference.length) ** 2) / (2.0 * _CIDER_SIGMA**2))
        )
