"""Labeled benchmarks, read from their official annotation files as published.

Every reader is `(annotations_path, images_folder) -> Iterator[LabeledQuestion]`, lazy, in the
file's order. Whatever is wrong with a row is a ValueError that names the file, the question's id
and the field: a benchmark with rows left out is another benchmark.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mpa_ray.tasks.benchmark_rows import (
    Row,
    annotation_files,
    image_of,
    json_rows,
    open_annotations,
    parquet_rows,
)

_OKVQA = re.compile(r"(v2_)?mscoco_(\w+)_annotations\.json")
WORD_RECOGNITION_PROMPT = "What word is shown in the image?"
"""The question asked about every ICDAR 2015 word image; the benchmark has none of its own."""
CAPTION_PROMPT = "Describe the image in one sentence that mentions the text in it."
"""The question asked about every TextCaps image; the benchmark has none of its own."""


@dataclass(frozen=True, kw_only=True)
class LabeledQuestion:
    """One question about one image, with what people answered. The image is a path or encoded
    bytes, never both.
    """

    question_id: str
    image_path: str | None
    image_bytes: bytes | None
    question: str
    answers: tuple[str, ...]
    """At least one, as annotated. The reference captions for TextCaps."""
    question_kind: str | None
    """The benchmark's own grouping, to score its parts apart: "human" or "augmented" for ChartQA,
    the category for OK-VQA.
    """


Reader = Callable[[str | Path, str | Path | None], Iterator[LabeledQuestion]]


def read_textvqa(
    annotations_path: str | Path, images_folder: str | Path | None
) -> Iterator[LabeledQuestion]:
    """TextVQA 0.5.1: `TextVQA_0.5.1_val.json`; `images_folder` is `train_images`, which holds the
    validation images too.
    """
    for row in json_rows(annotations_path, "data", id_field="question_id"):
        image = row.image_in(images_folder, f"{row.text('image_id')}.jpg", "image_id")
        yield _labeled(
            row, image=image, question=row.text("question"), answers=row.texts("answers")
        )


def read_stvqa(
    annotations_path: str | Path, images_folder: str | Path | None
) -> Iterator[LabeledQuestion]:
    """ST-VQA task 1: `train_task_1.json`; `images_folder` holds `coco-text/`, `icdar/`, ... as
    `file_path` names them.
    """
    for row in json_rows(annotations_path, "data", id_field="question_id"):
        image = row.image_in(images_folder, row.text("file_path"), "file_path")
        yield _labeled(
            row, image=image, question=row.text("question"), answers=row.texts("answers")
        )


def read_chartqa(
    annotations_path: str | Path, images_folder: str | Path | None
) -> Iterator[LabeledQuestion]:
    """ChartQA: `test_human.json` or `test_augmented.json` (or `train_...`), or the folder of both;
    `images_folder` is `png`.

    A row's id is its place.
    """
    for path in annotation_files(annotations_path, "*_*.json"):
        kind = path.stem.rsplit("_", 1)[-1]
        for row in json_rows(path, None, id_field=None):
            image = row.image_in(images_folder, row.text("imgname"), "imgname")
            yield _labeled(
                row,
                image=image,
                question=row.text("query"),
                answers=(row.text("label"),),
                kind=kind,
            )


def read_okvqa(
    annotations_path: str | Path, images_folder: str | Path | None
) -> Iterator[LabeledQuestion]:
    """OK-VQA (and VQA v2): `mscoco_val2014_annotations.json` with its questions file beside it;
    `images_folder` is `val2014`.

    `OpenEnded_mscoco_val2014_questions.json` is found by its name. The answers are the lemmatised
    ones the official score uses.
    """
    path = Path(annotations_path)
    named = _OKVQA.fullmatch(path.name)
    if named is None:
        raise ValueError(
            f"annotations_path is {str(path)!r}; give the official file, such as"
            " mscoco_val2014_annotations.json"
        )
    questions_path = _okvqa_questions(path)
    questions = {
        row.question_id: row.text("question")
        for row in json_rows(questions_path, "questions", id_field="question_id")
    }
    for row in json_rows(path, "annotations", id_field="question_id"):
        image_id = row.value("image_id")
        if not isinstance(image_id, int):
            raise row.error("image_id", f"is {image_id!r}; it must be an integer")
        if row.question_id not in questions:
            raise row.error(
                "question_id",
                f"is not among the questions of {str(questions_path)!r}; use the two files of one"
                " split",
            )
        answers = row.value("answers")
        if not isinstance(answers, list) or not all(
            isinstance(answer, dict) and "answer" in answer for answer in answers
        ):
            raise row.error(
                "answers", f'is {answers!r}; it must be a list of objects with an "answer"'
            )
        image = row.image_in(images_folder, f"COCO_{named[2]}_{image_id:012d}.jpg", "image_id")
        texts = Row(
            path, row.question_id, {"answers": [answer["answer"] for answer in answers]}
        ).texts("answers")
        yield _labeled(
            row,
            image=image,
            question=questions[row.question_id],
            answers=texts,
            kind=row.fields.get("question_type"),
        )


def _okvqa_questions(annotations: Path) -> Path:
    return annotations.with_name(
        _OKVQA.sub(r"\1OpenEnded_mscoco_\2_questions.json", annotations.name)
    )


def read_pathvqa(
    annotations_path: str | Path, images_folder: str | Path | None = None
) -> Iterator[LabeledQuestion]:
    """PathVQA's yes/no questions, as the paper evaluates (Table 7): Parquet of the Hugging Face
    layout, a file or a folder of them.

    The images are inside, `images_folder` is not used. The id is the row's place among all rows,
    open-ended ones included.
    """
    for row in parquet_rows(annotations_path, ("image", "question", "answer"), id_field=None):
        answer = row.text("answer").strip()
        if answer.lower() in {"yes", "no"}:
            yield _labeled(
                row,
                image=image_of(row, images_folder),
                question=row.text("question"),
                answers=(answer,),
            )


def read_icdar2015(
    annotations_path: str | Path, images_folder: str | Path | None
) -> Iterator[LabeledQuestion]:
    r"""ICDAR 2015 word recognition (task 4.3): lines of `word_1.png, "Genaxis Theatre"`, with \"
    and \\ escaped, UTF-8 with a BOM.

    The file is `gt.txt` or `Challenge4_Test_Task3_GT.txt`; `images_folder` holds the word images.
    The id is the image's name.
    """
    path = Path(annotations_path)
    with open_annotations(path) as stream:
        try:
            lines = stream.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: is not UTF-8 ({error}); use the annotation file as published"
            ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = re.fullmatch(r'\s*([^,]+?)\s*,\s*"(.*)"\s*', line)
        if parts is None:
            raise ValueError(
                f'{path}: line {number} is {line!r}; it must be: word_1.png, "transcription"'
            )
        row = Row(
            path,
            parts[1],
            {"image": parts[1], "transcription": re.sub(r'\\(["\\])', r"\1", parts[2])},
        )
        image = row.image_in(images_folder, parts[1], "image")
        yield _labeled(
            row, image=image, question=WORD_RECOGNITION_PROMPT, answers=(row.text("transcription"),)
        )


def read_textcaps(
    annotations_path: str | Path, images_folder: str | Path | None
) -> Iterator[LabeledQuestion]:
    """TextCaps 0.1: `TextCaps_0.1_val.json`; `images_folder` is `train_images`, which holds the
    validation images too.

    The file has a row a caption, each with all `reference_strs` of its image; an image is yielded
    once, its id as the question's.
    """
    seen: set[str] = set()
    for row in json_rows(annotations_path, "data", id_field="image_id"):
        if row.question_id not in seen:
            seen.add(row.question_id)
            image = row.image_in(images_folder, f"{row.question_id}.jpg", "image_id")
            yield _labeled(
                row, image=image, question=CAPTION_PROMPT, answers=row.texts("reference_strs")
            )


def read_parquet(
    annotations_path: str | Path, images_folder: str | Path | None = None
) -> Iterator[LabeledQuestion]:
    """Our own layout, for a labeled set of yours: question_id, image {bytes, path}, question,
    answers list[str], question_kind if any.

    A file or a folder of them. An image without bytes is looked up by its path in `images_folder`.
    """
    for row in parquet_rows(
        annotations_path, ("question_id", "image", "question", "answers"), id_field="question_id"
    ):
        image, kind = image_of(row, images_folder), row.fields.get("question_kind")
        yield _labeled(
            row, image=image, question=row.text("question"), answers=row.texts("answers"), kind=kind
        )


def _labeled(
    row: Row,
    *,
    image: str | bytes,
    question: str,
    answers: tuple[str, ...],
    kind: str | None = None,
) -> LabeledQuestion:
    return LabeledQuestion(
        question_id=row.question_id,
        image_path=image if isinstance(image, str) else None,
        image_bytes=image if isinstance(image, bytes) else None,
        question=question,
        answers=answers,
        question_kind=kind,
    )


def files_of(form: str, annotations_path: str | Path) -> list[Path]:
    """The files that a benchmark in the format `form` is read from, images apart; those that are
    not there among them.
    """
    path = Path(annotations_path)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in (".json", ".parquet"))
    return [path, _okvqa_questions(path)] if form == "okvqa" else [path]
