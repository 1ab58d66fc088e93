"""Where "Question:" and "Answer:" stand in a reply, in the languages and decorations L-VLMs use.

A label is certain at a line's start (bullets, numbers, headings, bold and quotes aside) or after
punctuation, and only possible after a plain space and with a capital: "What is the vitamin A: ..."
and "is the answer: yes" hold none, "What time is it Answer: 7:30" may. Of each kind only the surest
labels of a reply count: words before letters ("A: red or B: blue?, Answer: B"), letters before
possible ones. An aside ("Note:") within a line needs both, punctuation and a capital.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Kind = Literal["question", "answer", "aside"]

_QUESTION = (
    "q|question|the question|question is|the question is"
    "|frage|pregunta|pergunta|questão|domanda|vraag|pytanie|otázka|вопрос|в|питання|soru|câu"
    " hỏi|pertanyaan|soalan"
    "|问|问题|問|問題|質問|질문|문제|سؤال|السؤال|پرسش|प्रश्न|सवाल|คำถาม|שאלה|ερώτηση|fråga|spørgsmål|kysymys|întrebare|kérdés"
)
_ANSWER = (
    "a|answer|the answer|answer is|the answer is|correct answer|the correct answer|short"
    " answer|final answer"
    "|antwort|respuesta|resposta|réponse|reponse|risposta"
    "|antwoord|odpowiedź|odpověď|ответ|о|відповідь|cevap|yanıt|câu trả lời|trả lời|đáp"
    " án|jawaban|jawapan"
    "|答|答案|回答|答え|답|답변|정답|대답|إجابة|الإجابة|جواب|الجواب|پاسخ|उत्तर|जवाब|คำตอบ|תשובה|απάντηση|svar|vastaus|răspuns|válasz"
)
# What else models write beside the pair; it ends the text before it and is dropped.
_ASIDE = (
    "explanation|reason|reasoning|rationale|justification|note|notes|evidence|type|question"
    " type|kind|category|task|erklärung|begründung"
    "|explicación|explicação|justificación|explication|spiegazione|объяснение|пояснение|解释|解釋|说明|説明|解説|理由|설명|이유|الشرح|التفسير"
)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(_QUESTION.split("|"), "question"),
    **dict.fromkeys(_ANSWER.split("|"), "answer"),
    **dict.fromkeys(_ASIDE.split("|"), "aside"),
}

_WORD = r"[^\s:：*_`\"'“”‘’(),;|.\d#<>\[\]{}?？!！/\\-]{1,20}"
# Up to three words, "1" or "#1" or "(direct look-up)", closing decoration, and a colon or the
# line's end. Every repetition is bounded.
_CANDIDATE = re.compile(
    rf"(?<!\w)(?P<words>{_WORD}(?:\ {_WORD}){{0,2}}+)"
    r"\ ?(?:\#?\d{1,3})?\ ?(?:\([^()\n]{0,40}\))?[*_`\"'”’\])>]{0,4}"
    r"\ ?(?:(?P<colon>[:：])[*_`]{0,4}|(?=\ {0,4}(?:\n|\Z)))"
)
_DECORATION = re.compile(r"[\s>#*_`\"'“‘\-+•·\d.)(\[\]{},]{0,24}")
_OPENERS = "*_`\"'“‘(["
_AFTER_PUNCTUATION = re.compile(r"[?？؟;,|.。，、；!！)\]}*/–—][\"'”’*_`]{0,4}\s{0,4}$")


@dataclass(frozen=True)
class Label:
    """`start` to `end` in the reply, decoration and colon included."""

    kind: Kind
    start: int
    end: int


class _Surety(IntEnum):
    POSSIBLE = 0
    LETTER = 1
    WORD = 2


def find_labels(reply: str) -> list[Label]:
    """The labels of a reply, in order."""
    candidates = list(_candidates(reply))
    surest: dict[Kind, _Surety] = {}
    for label, surety in candidates:
        surest[label.kind] = max(surety, surest.get(label.kind, surety))
    return [label for label, surety in candidates if surety == surest[label.kind]]


def _candidates(reply: str) -> Iterator[tuple[Label, _Surety]]:
    for match in _CANDIDATE.finditer(reply):
        words = match["words"].split(" ")
        for skipped in range(len(words)):
            kind = KINDS.get(" ".join(words[skipped:]).casefold())
            if kind is not None:
                start = match.start("words") + sum(len(word) + 1 for word in words[:skipped])
                yield from _place(
                    reply, kind, start, match.end(), has_colon=match["colon"] is not None
                )
                break


def _place(
    reply: str, kind: Kind, start: int, end: int, *, has_colon: bool
) -> Iterator[tuple[Label, _Surety]]:
    line_start = reply.rfind("\n", 0, start) + 1
    is_one_letter = not reply[start + 1 : start + 2].isalpha()
    certain = _Surety.LETTER if is_one_letter else _Surety.WORD
    if _DECORATION.fullmatch(reply, line_start, start):
        # Without a colon it is a heading; a lone "A" is an answer.
        if has_colon or not is_one_letter:
            yield Label(kind, line_start, end), certain
        return
    if not has_colon:
        return
    before = reply[max(line_start, start - 16) : start]
    text_before = before.rstrip(_OPENERS)
    opened_at = start - len(before) + len(text_before)
    is_small = reply[start].islower()
    if _AFTER_PUNCTUATION.search(text_before) and not (
        is_small and (is_one_letter or kind == "aside")
    ):
        yield Label(kind, opened_at, end), certain
    elif not is_small and not is_one_letter and kind != "aside":
        yield Label(kind, opened_at, end), _Surety.POSSIBLE
