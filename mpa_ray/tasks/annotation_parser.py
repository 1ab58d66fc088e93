"""A question and its answer, out of what an L-VLM really wrote.

The prompts ask for "Question: Q, Answer: A" (the paper's format). Models also write two lines,
Markdown, lists, JSON, several pairs, labels in other languages, and explanations after the answer.
Read in this order: JSON objects; labelled text; a line that ends in a question mark with a short
line after it. What is not clearly one question and one concise answer is refused with a reason,
because a wrong pair costs more than a lost image. Unlike the authors' released code, which needs
and drops it, the question mark is kept as written.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from mpa_ray.tasks.reply_markers import KINDS, find_labels

MAX_REPLY_CHARS = 20_000
"""A reply is a few hundred tokens; what follows is a model repeating itself and is not read."""
MAX_QUESTION_CHARS = 600
MAX_ANSWER_CHARS = 160
MAX_ANSWER_WORDS = 20

_MAX_UNLABELLED_ANSWER_WORDS = 6
_MAX_JSON_VALUES = 64
_MAX_JSON_DEPTH = 3
_MAX_WRAPPERS = 8
_JSON_OPENING = re.compile(r"[{\[]")
_QUESTION_MARKS = ("?", "？", "؟")
# A blank line, a rule, a code fence, or a heading.
_BREAK = re.compile(r"\s*(?:$|[-=*_~`]{3}|#{1,6}\s)")
_BULLET = re.compile(r"(?:[-*+•·>]\s+)")
_NUMBERING = re.compile(r"\(?\d{1,2}[.):]\s+")
_WRAPPERS = (
    ("**", "**"), ("__", "__"), ("_", "_"), ('"', '"'), ("'", "'"),
    ("“", "”"), ("‘", "’"), ("«", "»"), ("「", "」"), ("『", "』"),
    ("<", ">"), ("[", "]"), ("{", "}"),
)  # fmt: skip
_OPENINGS = tuple(opening for opening, _ in _WRAPPERS)

_PARENTHESIS = re.compile(
    r"\s?[(（](?:because|since|as (?:shown|seen|indicated)|explanation|reason|note|based on|this"
    r" is|it is)\b[^()（）]*[)）]?\.?$",
    re.IGNORECASE,
)
_BECAUSE = re.compile(r"(?<=\S)\s?[,;.–—-]\s?because\b.*$", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|image)>")
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_REFUSAL = re.compile(
    r"(?:(?:i['’]m|i am)\s(?:(?:very |so )?sorry[,. ]|unable|not"
    r" able)|sorry,?\s(?:but\s)?(?:i|there|the image|this image)\b"
    r"|i\s(?:cannot|can\snot|can['’]t|could\snot|couldn['’]t|won['’]t)\b|as an"
    r" ai\b|unfortunately,?\s(?:i|the image)\b"
    r"|es tut mir leid|lo siento|je suis désolé|désolé|mi dispiace|desculpe|извините|к"
    r" сожалению|抱歉|很抱歉|对不起|我无法|申し訳|죄송)",
    re.IGNORECASE,
)
_PLACEHOLDERS = {
    "question": frozenset(
        {
            "q",
            "question",
            "the question",
            "your question",
            "your question here",
            "question here",
            "...",
            "…",
        }
    ),
    "answer": frozenset(
        {"answer", "the answer", "your answer", "your answer here", "answer here", "...", "…"}
    ),
}


@dataclass(frozen=True)
class Annotation:
    """One question about an image and its concise answer."""

    question: str
    answer: str


class UnparsableAnnotation(ValueError):
    """The reply holds no usable question and answer; the message is the reason, from a short list,
    so that it can be counted.
    """


@dataclass
class _Pair:
    question: str
    answers: list[str] = field(default_factory=list)


def parse_annotations(text: str, *, limit: int = 1) -> list[Annotation]:
    """The first `limit` usable question-answer pairs of a reply, at least one; a question asked
    twice counts once.

    An answer over several lines is refused. Text after a blank line, a trailing "Explanation: ..."
    and "(because ...)" are dropped, as are Markdown, wrapping quotes, and a single full stop at the
    answer's end.

    Raises:
        UnparsableAnnotation: no pair is usable. The reason is that of the first pair, if there is
            any.
        ValueError: `limit` < 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit!r}; give at least 1")
    reply = _unquote(text[:MAX_REPLY_CHARS].replace("\r\n", "\n").replace("\r", "\n").strip())
    if not reply:
        raise UnparsableAnnotation("empty reply")
    found: dict[str, Annotation] = {}
    problem: UnparsableAnnotation | None = None
    for pair in _pairs(reply):
        try:
            annotation = _checked(pair)
        except UnparsableAnnotation as error:
            problem = problem or error
            continue
        found.setdefault(annotation.question.casefold(), annotation)
        if len(found) == limit:
            break
    if not found:
        raise problem or UnparsableAnnotation(
            "refusal" if _REFUSAL.match(reply) else "no question and answer found"
        )
    return list(found.values())


def _pairs(reply: str) -> list[_Pair]:
    from_json = [pair for value in _json_values(reply) for pair in _json_pairs(value)]
    return from_json or _labelled_pairs(reply) or _unlabelled_pairs(reply)


def _json_values(reply: str) -> Iterator[object]:
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, strict=False)
    position = 0
    for _ in range(_MAX_JSON_VALUES):
        opening = _JSON_OPENING.search(reply, position)
        if opening is None:
            return
        try:
            value, position = decoder.raw_decode(reply, opening.start())
        except (json.JSONDecodeError, RecursionError):
            position = opening.end()
        else:
            yield value


def _json_pairs(value: object, depth: int = 0) -> Iterator[_Pair]:
    if depth > _MAX_JSON_DEPTH or not isinstance(value, dict | list):
        return
    if isinstance(value, dict):
        fields = {KINDS.get(key.strip().casefold()): item for key, item in value.items()}
        if "question" in fields and "answer" in fields:
            yield _Pair(_json_text(fields["question"]), [_json_text(fields["answer"])])
            return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _json_pairs(item, depth + 1)


def _json_text(value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return value if isinstance(value, str) else ""


def _labelled_pairs(reply: str) -> list[_Pair]:
    labels = find_labels(reply)
    pairs: list[_Pair] = []
    for index, label in enumerate(labels):
        end = labels[index + 1].start if index + 1 < len(labels) else len(reply)
        content = reply[label.end : end]
        if label.kind == "question":
            pairs.append(_Pair(content))
        elif label.kind == "answer":
            if not pairs:
                pairs.append(_Pair(_question_at_end(reply[: label.start])))
            pairs[-1].answers.append(content)
    return [
        pair if pair.answers else next(iter(_unlabelled_pairs(pair.question)), pair)
        for pair in pairs
    ]


def _unlabelled_pairs(text: str) -> list[_Pair]:
    lines = [_without_markup(line) for line in text.strip().split("\n")]
    asks = [line.endswith(_QUESTION_MARKS) for line in lines]
    pairs = []
    for index, line in enumerate(lines):
        below = index + 1 if lines[index + 1 : index + 2] != [""] else index + 2
        if not asks[index] or below >= len(lines) or asks[below] or not lines[below]:
            continue
        stands_alone = below + 1 == len(lines) or not lines[below + 1] or asks[below + 1]
        if stands_alone and len(lines[below].split()) <= _MAX_UNLABELLED_ANSWER_WORDS:
            pairs.append(_Pair(line, [lines[below]]))
    return pairs


def _question_at_end(text: str) -> str:
    last_line = _without_markup(text.strip().rsplit("\n", 1)[-1].rstrip(" ,;|"))
    return last_line if last_line.endswith(_QUESTION_MARKS) else ""


def _checked(pair: _Pair) -> Annotation:
    if len(pair.answers) != 1:
        raise UnparsableAnnotation(
            "several answers to one question" if pair.answers else "no answer"
        )
    if not _is_plain(pair.question + pair.answers[0]):
        raise UnparsableAnnotation("control characters")
    if _SPECIAL_TOKEN.search(pair.question + pair.answers[0]):
        raise UnparsableAnnotation("special tokens")
    question = _unwrap(" ".join(_first_paragraph(pair.question)).rstrip(" -–—/"))
    lines = _first_paragraph(pair.answers[0])
    answer = _concise(lines[0]) if lines else ""
    for text, name in ((question, "question"), (answer, "answer")):
        if not text:
            raise UnparsableAnnotation(f"empty {name}")
        if text.casefold().strip(" <>[]{}()") in _PLACEHOLDERS[name]:
            raise UnparsableAnnotation(f"placeholder {name}")
        if _REFUSAL.match(text):
            raise UnparsableAnnotation("refusal")
    if any(not line.startswith(("(", "（")) for line in lines[1:]):
        raise UnparsableAnnotation("answer over several lines")
    if len(question) > MAX_QUESTION_CHARS:
        raise UnparsableAnnotation("question too long")
    if len(answer) > MAX_ANSWER_CHARS or len(answer.split()) > MAX_ANSWER_WORDS:
        raise UnparsableAnnotation("answer too long")
    if question.casefold().strip("?？؟.。!") == answer.casefold().strip("?？؟.。!"):
        raise UnparsableAnnotation("question equals answer")
    return Annotation(question=question, answer=answer)


def _is_plain(text: str) -> bool:
    """Whether no character is a replacement for damaged bytes, a half of a surrogate pair or a
    control, but tabs and line ends.
    """
    if "\ufffd" in text:
        return False
    # None of those is printable, and nearly every text is.
    return text.isprintable() or not any(
        unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\t"
        for character in text
    )


def _first_paragraph(text: str) -> list[str]:
    lines: list[str] = []
    for line in text.strip().split("\n"):
        if _BREAK.match(line):
            if lines:
                break
        else:
            lines.append(" ".join(_BULLET.sub("", line.strip()).split()))
    return lines


def _concise(line: str) -> str:
    answer = _unwrap(line)
    answer = _unwrap(_BECAUSE.sub("", _PARENTHESIS.sub("", answer)))
    ends_in_its_only_stop = answer.endswith((".", "。")) and answer[-1] not in _DECIMAL_POINT.sub(
        "", answer[:-1]
    )
    return answer[:-1].rstrip() if ends_in_its_only_stop else answer


def _unwrap(text: str) -> str:
    for _ in range(_MAX_WRAPPERS):
        bare = text.strip().rstrip(",;|").strip("*` ")
        if bare.endswith(("}", "]", ")")) and not {"{", "[", "("} & set(bare):
            bare = bare[:-1]
        for opening, closing in _WRAPPERS if bare.startswith(_OPENINGS) else ():
            inner = bare[len(opening) : -len(closing)]
            if (
                bare.startswith(opening)
                and bare.endswith(closing)
                and inner
                and opening not in inner
                and closing not in inner
            ):
                bare = inner
        if bare == text:
            break
        text = bare
    return text


def _without_markup(line: str) -> str:
    return _unwrap(_NUMBERING.sub("", _BULLET.sub("", line.strip())))


def _unquote(text: str) -> str:
    return (
        text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    )
