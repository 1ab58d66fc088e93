"""The names rows are made of: columns, Arrow schemas, verdicts and quarantine reasons. Stages add
columns and never rename them.
"""

import json
import os
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa


class Verdict(StrEnum):
    """What the Parity Identifier says of a row (Eq. 2 of the paper)."""

    PARITY = "parity"
    """The L-VLM agrees with its own annotation and the S-VLM does not: the row teaches
    something.
    """
    SVLM_CORRECT = "svlm_correct"
    """Both agree with the annotation: nothing to learn."""
    LVLM_INCONSISTENT = "lvlm_inconsistent"
    """The L-VLM, asked its own question, or a juror (`mpa_ray.stages.jury`) answers otherwise: the
    annotation is not trusted.
    """


# Steps of a run, by the names of their records in stages/. An arm or a model follows a prefix.
ANNOTATE_AND_IDENTIFY = "annotate_and_identify"
TRAIN_STEP = "train_"
EVALUATE_STEP = "evaluate_"
HOLDOUT_STEP = "holdout_"


class Stage(StrEnum):
    """Where a row can be quarantined."""

    IMAGES = "images"
    PSEUDO_ANNOTATOR = "pseudo_annotator"
    JURY = "jury"
    PARITY_IDENTIFIER = "parity_identifier"
    EVALUATE = "evaluate"
    GAP_STUDY = "gap_study"


class Reason(StrEnum):
    """Why a row was quarantined. The list is fixed, so that counts can be compared between runs."""

    MISSING = "missing"
    """The file, member or row could not be found or opened."""
    OUTSIDE_ROOT = "outside_root"
    """A URI column names a local file outside the folder of its Parquet file and outside `images`;
    it was not opened.
    """
    DUPLICATE_REFERENCE = "duplicate_reference"
    """A URI column names what was named before; the image itself is asked about once, under the
    first reference.
    """
    EMPTY = "empty"
    """Zero bytes."""
    NOT_AN_IMAGE = "not_an_image"
    """No format on the allow list fits the bytes, whatever the name says."""
    TRUNCATED = "truncated"
    """The data ends before the image does."""
    CORRUPT = "corrupt"
    """The format was recognised, but its data is damaged."""
    TOO_MANY_PIXELS = "too_many_pixels"
    """Over `max_image_pixels`: a decompression bomb, or an image that needs tiling first."""
    TOO_MANY_BYTES = "too_many_bytes"
    """The encoded file is over `max_image_bytes`."""
    TOO_SMALL = "too_small"
    """A side is shorter than the models can take."""
    ANIMATED = "animated"
    """More than one frame: which one the question is about cannot be known."""
    TIMEOUT = "decode_timeout"
    """Decoding took longer than `max_decode_seconds`."""
    DECODER_MEMORY = "decode_memory"
    """Decoding wanted more memory than an image of `max_image_pixels` can need."""
    DECODER_CRASH = "decode_crash"
    """The process that decoded it died over it."""
    UNPARSABLE_ANNOTATION = "unparsable_annotation"
    """The L-VLM's text holds no question and answer; the detail is the raw text."""
    REPEATED_QUESTION = "repeated_question"
    """Of several questions about an image, one that it has already; the detail is the raw text."""
    ENGINE_REJECTED = "engine_rejected"
    """The engine refused this one request, for its length for example; the engine itself is
    well.
    """
    UNSTORABLE_REPLY = "unstorable_reply"
    """The engine's reply cannot be stored: text that is no Unicode, a token count beyond any."""
    ENGINE_CRASH = "engine_crash"
    """The engine died twice while it served this row, the second time with no other row beside
    it.
    """


IMAGE_ID = pa.field("image_id", pa.string(), nullable=False)
IMAGE_URI = pa.field("image_uri", pa.string(), nullable=False)

MANIFEST = pa.schema([IMAGE_ID, IMAGE_URI])

# While a row travels. `part` is the unit of work and of commitment; `reason` is null as long as the
# row is well.
_STATUS = [
    pa.field("stage", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
]
SOURCE_ROW = pa.schema(
    [
        pa.field("part", pa.int64(), nullable=False),
        IMAGE_ID,
        IMAGE_URI,
        # What is drawn for the image goes by it (`mpa_ray.images.decode.draw_key_of`); null where
        # nothing is drawn any more.
        pa.field("draw_key", pa.string()),
        pa.field("image", pa.large_binary()),
        *_STATUS,
    ]
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A question that a model is asked about each row.

    Attributes:
        model: which, for people.
        label: what it is asked for, for people.
        metric: what the metric `mpa_tokens` calls it.
    """

    model: str
    label: str
    metric: str


# Each call has three columns of tokens, `<call>_<kind>_tokens`. Telemetry, summary, report, plan
# and commits go through this table: a further call is a line here and its columns below.
CALLS = {
    "annotation": Call(
        model="L-VLM", label="L-VLM writes a question and answer", metric="pseudo_annotator"
    ),
    "lvlm_answer": Call(model="L-VLM", label="L-VLM answers it", metric="own_answer"),
    "jury": Call(model="jury", label="jury answers it", metric="jury"),
    "svlm_answer": Call(model="S-VLM", label="S-VLM answers it", metric="parity_identifier"),
}
TOKEN_KINDS = ("prompt", "cached", "output")
"""Of the prompt, those of it that the prefix cache served, and of the reply."""


def token_columns(call: str) -> tuple[str, ...]:
    """The columns of a call's tokens, in the order of `TOKEN_KINDS`."""
    return tuple(f"{call}_{kind}_tokens" for kind in TOKEN_KINDS)


def _token_fields(call: str) -> list[pa.Field]:
    return [pa.field(name, pa.int32()) for name in token_columns(call)]


_ANNOTATION_COLUMNS = [
    pa.field("sample_id", pa.string()),
    pa.field("question", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("annotation_text", pa.string()),
    pa.field("lvlm_answer", pa.string()),
    *_token_fields("annotation"),
    *_token_fields("lvlm_answer"),
]
# Null where no jury was asked.
_JURY_COLUMNS = [pa.field("jury_answers", pa.list_(pa.string())), *_token_fields("jury")]
_JUDGEMENT_COLUMNS = [
    *_JURY_COLUMNS,
    pa.field("svlm_answer", pa.string()),
    *_token_fields("svlm_answer"),
    pa.field("verdict", pa.string()),
]
ANNOTATED_ROW = pa.schema([*SOURCE_ROW, *_ANNOTATION_COLUMNS])
JURY_ROW = pa.schema([*ANNOTATED_ROW, *_JURY_COLUMNS])
JUDGED_ROW = pa.schema([*ANNOTATED_ROW, *_JUDGEMENT_COLUMNS])

CHANGES = ("learned", "forgotten", "kept", "still_wrong", "unanswered")
"""What became of a held-out row: wrong before and right after training, right and wrong, right and
right, wrong and wrong; or the trained S-VLM's engine refused it, and nobody knows.
"""

# What is written.
ANNOTATIONS = pa.schema([IMAGE_ID, IMAGE_URI, *_ANNOTATION_COLUMNS])
JUDGEMENTS = pa.schema([*ANNOTATIONS, *_JUDGEMENT_COLUMNS])
# Null in quarantine/ where the image itself is at fault, and no question was asked about it.
SAMPLE_ID = pa.field("sample_id", pa.string())
QUARANTINE = pa.schema([IMAGE_ID, IMAGE_URI, SAMPLE_ID, *_STATUS])
IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TEXT_FEATURE = {"dtype": "string", "_type": "Value"}
PARITY = pa.schema(
    [
        IMAGE_ID,
        pa.field("sample_id", pa.string()),
        pa.field("image", IMAGE_STRUCT),
        pa.field("question", pa.string()),
        pa.field("answer", pa.string()),
    ],
    # `datasets.load_dataset("parquet", ...)` reads this and decodes the column as images.
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "image_id": _TEXT_FEATURE,
                        "sample_id": _TEXT_FEATURE,
                        "image": {"_type": "Image"},
                        "question": _TEXT_FEATURE,
                        "answer": _TEXT_FEATURE,
                    }
                }
            }
        )
    },
)


CONSISTENT = frozenset({Verdict.PARITY, Verdict.SVLM_CORRECT})


def absolute(place: str) -> str:
    """A local path made absolute, without `.`, `..`, `~`, `file://` and a slash at its end; a URI
    without a slash at its end.
    """
    scheme, separator, rest = place.partition("://")
    if separator and scheme != "file":
        return f"{scheme}://{rest.rstrip('/')}"
    # POSIX lets two slashes at the start stand for something else; Linux does not.
    return "/" + os.path.abspath(os.path.expanduser(place.removeprefix("file://"))).lstrip("/")
