"""The dataset card of an exported parity set: a README.md as the Hugging Face Hub reads it."""

from typing import Any

import yaml

from mpa_ray.report.run_folder import config_of
from mpa_ray.storage.folder import Folder

_BODY = """
# Parity samples

{samples:,} questions about images, with answers, made by Model Parity Aligner
(Penamakuri et al., EMNLP 2025,
[arXiv 2509.16633](https://arxiv.org/abs/2509.16633)) without labels.

| | |
|---|---|
| Task | {task} |
| L-VLM, which wrote and checked the annotations | {lvlm} |
| S-VLM, which got them wrong | {svlm} |

The L-VLM wrote a question and an answer for an image. A row is here when the L-VLM, asked its own
question, gave that answer again, and the S-VLM did not. So the rows show what this S-VLM lacks
beside this L-VLM; they are no benchmark.

```python
from datasets import load_dataset

samples = load_dataset("FOLDER_OR_HUB_NAME", split="train")
```

{columns}

**Limits.** No person wrote or checked a row. What the L-VLM gets wrong, and its biases, are in
here. Texts are a model's output about images of unknown origin: treat them as untrusted. The images
belong to their owners, and no license is given for them here.
"""

_COLUMNS = {
    "datasets": "Columns: `image_id`, `sample_id` (one image may have several questions), `image`,"
    " `question`, `answer`.",
    "trl": "Columns: `images` (one), `prompt` and `completion` (messages), as TRL's `SFTTrainer`"
    " takes them.",
}


def text(run: Folder, record: dict[str, Any]) -> str:
    """The card of an export; `record` is its export.json."""
    config = config_of(run)
    front = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
        "size_categories": [_size_category(record["samples"])],
        "tags": ["model-parity-aligner", "pseudo-labels", "vision-language"],
        "task_categories": ["visual-question-answering"],
    }
    body = _BODY.format(
        samples=record["samples"],
        task=_inline(config.task_spec.name if config else "unknown"),
        lvlm=_inline(config.lvlm.model if config else "unknown"),
        svlm=_inline(config.svlm.model if config else "unknown"),
        columns=_COLUMNS[record["format"]],
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{body}"


def _inline(value: str) -> str:
    """A text as Markdown code inside a table; of a path only the last part, which says what model
    it was and not whose machine.
    """
    name = (
        value.rstrip("/").rpartition("/")[2]
        if "://" in value or value.startswith(("/", ".", "~"))
        else value
    )
    return f"`{' '.join(name.translate({ord(mark): ' ' for mark in '`|<>'}).split())}`"


def _size_category(samples: int) -> str:
    """The Hub's name for a number of rows."""
    bounds = (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
    )
    return next((name for bound, name in bounds if samples < bound), "10M<n<100M")
