"""The demo's inputs: unlabeled images and, from other seeds, a labeled benchmark and human labels.
MPA sees only the first.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from mpa_ray.demo import render
from mpa_ray.demo.questions import CHART_YES_NO, SIGN_YES_NO
from mpa_ray.errors import ConfigurationError
from mpa_ray.schema import IMAGE_STRUCT
from mpa_ray.storage.folder import Folder

# Images of a run's seed and of the benchmark are never the same: `tests/demo/test_demo_render.py`
# compares them by hash.
BENCHMARK_SEED = 777_000_000
LABELS_SEED = 555_000_000

KINDS = {
    "textvqa": "sign",
    "stvqa": "sign",
    "chartqa": "chart",
    "okvqa": "mixed",
    "pathvqa": "mixed",
}
# Of a task that is not among them.
_ANY = "mixed"
# What a task's labeled questions are of; where nothing is said, all but yes-or-no.
QUESTION_KINDS = {"pathvqa": (SIGN_YES_NO, CHART_YES_NO)}

# What is written, by its name in the folder.
IMAGES = "images"
BENCHMARK = "benchmark.parquet"
LABELS = "labels.parquet"

_BENCHMARK = pa.schema(
    [
        pa.field("question_id", pa.string()),
        pa.field("image", IMAGE_STRUCT),
        pa.field("question", pa.string()),
        pa.field("answers", pa.list_(pa.string())),
        pa.field("question_kind", pa.string()),
    ]
)


def write(folder: Folder, *, task: str, images: int, questions: int, seed: int) -> None:
    """Render unlabeled images and a benchmark into `folder`.

    Raises:
        ConfigurationError: `folder` is in an object store: the demo renders files, and its images
            are read back one by one.
    """
    if not folder.is_local:
        raise ConfigurationError(
            f"output={folder.uri!r}: the demo renders its images into the output, which must be a"
            " local folder"
        )
    render.write_images(
        Path(folder.path) / IMAGES, kind=KINDS.get(task, _ANY), count=images, seed=seed
    )
    _write_labeled(folder, BENCHMARK, task=task, count=questions, seed=BENCHMARK_SEED)


def write_labels(folder: Folder, *, task: str, count: int, seed: int) -> None:
    """Render labeled questions for the supervised comparisons, on images of their own."""
    _write_labeled(folder, LABELS, task=task, count=count, seed=LABELS_SEED + seed)


def _write_labeled(folder: Folder, name: str, *, task: str, count: int, seed: int) -> None:
    found = render.benchmark_rows(
        kind=KINDS.get(task, _ANY), count=count, seed=seed, question_kinds=QUESTION_KINDS.get(task)
    )
    # Ten equal answers a question, as the official files have them: the official scores then are
    # what one right answer deserves.
    rows = [row | {"answers": row["answers"] * 10} for row in found]
    folder.write_table(name, pa.Table.from_pylist(rows, schema=_BENCHMARK), row_group_size=128)
