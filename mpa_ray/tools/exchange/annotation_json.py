"""Annotations from elsewhere, as JSON: the files of the paper's released code, and the obvious
variants. Read record by record.

What is recognised in a record:

    {"image_path", "predicted_question", "predicted_answer"}       the released code's PA.py
    {"image_path", "PA_question", "PA_answer"}                     the released code's PI.py
    {"image", "conversations": [{"from": "human", ...}, ...]}      its training files, LLaVA's
                                                                   layout, and our own export
    {"image" | "image_path" | "file_name" | ..., "question", "answer" | "pseudo_answer"}

Keys that hold labels (`ground_truth_question`, `GT_answer`, a list of human `answers`) are never
read.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from mpa_ray.errors import ConfigurationError
from mpa_ray.storage.folder import resolve

IMAGE_KEYS = (
    "image",
    "image_path",
    "img_path",
    "file_name",
    "file_path",
    "image_file",
    "image_name",
    "imgname",
    "image_id",
)
# In pairs, because a record of the released code has labels beside its pseudo-labels.
TEXT_KEYS = (
    ("predicted_question", "predicted_answer"),
    ("PA_question", "PA_answer"),
    ("generated_question", "generated_answer"),
    ("pseudo_question", "pseudo_answer"),
    ("question", "pseudo_answer"),
    ("question", "answer"),
)
CONVERSATIONS = "conversations"
_LIST_KEYS = ("data", "annotations", "records", "samples")

# The released PA.py matches questions up to the "?" and drops it; what it wrote was a question.
_WITHOUT_QUESTION_MARK = frozenset({"predicted_question", "PA_question", CONVERSATIONS})
_IMAGE_TOKEN = re.compile(r"\s*<image>\s*")

_CHUNK = 1 << 20
_LONGEST_RECORD = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Imported:
    """One annotation as found. `problem` says why it cannot be used; then the texts may be
    empty.
    """

    image: str
    question: str = ""
    answer: str = ""
    problem: str | None = None


def annotations_of(record: Any) -> list[Imported] | None:
    """The annotations of a record, at least one; None where its layout is not known."""
    if not isinstance(record, Mapping):
        return None
    image = next(
        (record[key] for key in IMAGE_KEYS if isinstance(record.get(key), str | int)), None
    )
    if image is None:
        return None
    if isinstance(record.get(CONVERSATIONS), list):
        return _turns(str(image), record[CONVERSATIONS])
    keys = next((pair for pair in TEXT_KEYS if all(key in record for key in pair)), None)
    return [_annotation(str(image), record, *keys)] if keys else None


def _annotation(
    image: str, record: Mapping[str, Any], question_key: str, answer_key: str
) -> Imported:
    for key in (question_key, answer_key):
        value = record[key]
        if (
            isinstance(value, bool)
            or not isinstance(value, str | int | float)
            or not str(value).strip()
        ):
            return Imported(
                image=_text(image), problem=f"{key} is {_shown(value)}; it must be a text"
            )
    return _imported(image, str(record[question_key]), str(record[answer_key]), question_key)


def _turns(image: str, turns: list[Any]) -> list[Imported]:
    """Each question of a conversation with the answer that follows it."""
    said = [
        (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else (None, None)
        for turn in turns
    ]
    texts = [text for _, text in said if isinstance(text, str)]
    if (
        not said
        or len(texts) < len(said)
        or [speaker for speaker, _ in said] != ["human", "gpt"] * (len(said) // 2)
    ):
        return [
            Imported(
                image=_text(image), problem="conversations must be texts from human and gpt in turn"
            )
        ]
    found = []
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        question = _IMAGE_TOKEN.sub(" ", question)
        if question.strip() and answer.strip():
            found.append(_imported(image, question, answer, CONVERSATIONS))
        else:
            found.append(Imported(image=_text(image), problem="a turn of conversations is empty"))
    return found


def _imported(image: str, question: str, answer: str, key: str) -> Imported:
    text = _text(question).strip()
    if key in _WITHOUT_QUESTION_MARK and text[-1].isalnum():
        text += "?"
    return Imported(image=_text(image), question=text, answer=_text(answer).strip())


def _text(value: str) -> str:
    """JSON can spell half of a surrogate pair, which no UTF-8 file can hold."""
    return value.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def records(uri: str) -> Iterator[Any]:
    """The records of a file: a JSON list, one JSON object a line, or an object that holds the list
    under `data`, `annotations`, ...

    A list and lines are read as a stream; an object is read whole.

    Raises:
        ConfigurationError: there is no such file, or it is no such JSON; the message says near
            which record.
    """
    filesystem, path = resolve(uri)
    if not filesystem.get_file_info(path).is_file:
        raise ConfigurationError(f"--annotations {uri}: is not a file; give a JSON file")
    with filesystem.open_input_stream(path) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8-sig")
        number = 0
        try:
            for record in _items(stream):
                yield record
                number += 1
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(
                f"--annotations {uri}: not JSON after {number:,} records ({error}); fix the file"
            ) from error


def _items(stream: TextIO) -> Iterator[Any]:
    start = stream.read(_CHUNK).lstrip()
    if start.startswith("["):
        yield from _list_items(stream, start[1:])
        return
    start += stream.readline()
    try:
        first = json.loads(start.partition("\n")[0])
    except json.JSONDecodeError:
        first = None
    if isinstance(first, Mapping) and _listed(first) is None:
        yield from _line_items(stream, start)
        return
    rows = _listed(json.loads(start + stream.read()))
    if rows is None:
        raise ValueError(
            f"no list, no object a line, and no object with a list under {', '.join(_LIST_KEYS)}"
        )
    yield from rows


def _listed(document: Any) -> list[Any] | None:
    found = (document.get(key) for key in _LIST_KEYS) if isinstance(document, Mapping) else ()
    return next((value for value in found if isinstance(value, list)), None)


def _list_items(stream: TextIO, buffer: str) -> Iterator[Any]:
    """The items of a JSON list whose bracket was read."""
    decoder = json.JSONDecoder()
    place = 0
    ended = False
    while True:
        while place < len(buffer) and buffer[place] in " \t\r\n,":
            place += 1
        if buffer[place : place + 1] == "]":
            return
        try:
            item, place = decoder.raw_decode(buffer, place)
        except json.JSONDecodeError:
            if ended or len(buffer) - place > _LONGEST_RECORD:
                raise
            more = stream.read(_CHUNK)
            ended = not more
            buffer, place = buffer[place:] + more, 0
            continue
        yield item


def _line_items(stream: TextIO, buffer: str) -> Iterator[Any]:
    while True:
        *lines, rest = buffer.split("\n")
        yield from (json.loads(line) for line in lines if line.strip())
        more = stream.read(_CHUNK)
        if not more:
            break
        if len(rest) > _LONGEST_RECORD:
            raise ValueError(f"a line is longer than {_LONGEST_RECORD:,} characters")
        buffer = rest + more
    if rest.strip():
        yield json.loads(rest)
