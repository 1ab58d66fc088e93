"""The demo's inputs: unlabeled images and, from another seed, a labeled benchmark. PA, PI and PL see only the first."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from mpa_ray.demo import render
from mpa_ray.schema import IMAGE_STRUCT
from mpa_ray.storage import Folder

# Images of a run's seed and of the benchmark are never the same: `tests/test_demo_render.py` compares them by hash.
BENCHMARK_SEED = 777_000_000

KINDS = {"textvqa": "sign", "stvqa": "sign", "chartqa": "chart", "okvqa": "mixed", "pathvqa": "mixed"}

_BENCHMARK = pa.schema(
    [
        pa.field("question_id", pa.string()),
        pa.field("image", IMAGE_STRUCT),
        pa.field("question", pa.string()),
        pa.field("answers", pa.list_(pa.string())),
        pa.field("question_kind", pa.string()),
    ]
)


def write(folder: Folder, *, task: str, images: int, questions: int, seed: int) -> dict[str, Any]:
    """Renders into `folder`; gives back where the images and the benchmark are."""
    kind = KINDS[task]
    local = Path(folder.path) if folder.is_local else Path(".")
    render.write_images(local / "images", kind=kind, count=images, seed=seed)
    rows = list(render.benchmark_rows(kind=kind, count=questions, seed=BENCHMARK_SEED))
    # Ten equal answers a question, as the official files have them: the official scores then are what one right answer deserves.
    rows = [row | {"answers": row["answers"] * 10} for row in rows]
    folder.write_table("benchmark.parquet", pa.Table.from_pylist(rows, schema=_BENCHMARK), row_group_size=128)
    return {"images": f"{folder.uri}/images", "benchmark": f"{folder.uri}/benchmark.parquet"}
