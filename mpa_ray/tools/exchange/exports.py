"""The parity set for other trainers, part by part, so that it never has to fit into memory.

    datasets    data/train-*.parquet and README.md: `load_dataset(FOLDER)`, images decoded;
                columns as in parity/
    trl         the same, with TRL's columns: images, prompt, completion (messages)
    llava       train.json and images/: the conversation JSON of LLaVA, of the Qwen-VL trainers and
                of the paper's released code

`export.json` is written last: a folder without it is an export that was interrupted. Rows that the
run held out of its own training are in every export, because another trainer may hold out others.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images.decode import UnreadableImage
from mpa_ray.observability.progress import Progress
from mpa_ray.report.run_folder import new_folder, require
from mpa_ray.schema import IMAGE_STRUCT, PARITY
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts
from mpa_ray.tools.exchange import dataset_card
from mpa_ray.tools.exchange.image_files import named

RECORD = "export.json"

# What one Parquet file holds before it is written, and rows of a group: the sizes that the Hub's
# viewer likes.
_FILE_BYTES = 128 * 2**20
_GROUP_ROWS = 100
_WRITERS = 16

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TEXT_FEATURE = {"dtype": "string", "_type": "Value"}
_MESSAGES_FEATURE = [{"role": _TEXT_FEATURE, "content": _TEXT_FEATURE}]
TRL = pa.schema(
    [("images", pa.list_(IMAGE_STRUCT)), ("prompt", _MESSAGES), ("completion", _MESSAGES)],
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "images": [{"_type": "Image"}],
                        "prompt": _MESSAGES_FEATURE,
                        "completion": _MESSAGES_FEATURE,
                    }
                }
            }
        )
    },
)

# What a processor could take for a placeholder or control token: <image>, </s>, <|im_end|>,
# <row_1_col_1>.
_TOKEN_LIKE = re.compile(r"<(?=[|/]?[^\W\d][\w|]*>)")

Row = dict[str, Any]


def export(
    run: Folder, output: Folder, *, layout: str, instruction: bool = False
) -> dict[str, Any]:
    """Write the parity set of `run` into `output`.

    Args:
        run: a run's output folder.
        output: a new folder.
        layout: a key of `LAYOUTS`.
        instruction: put the answering prompt before each question, as the Parity Leveler does.
            Without it the question stands alone, as in the paper's released files. `datasets` has
            no prompt, so it has no use for this.

    Returns:
        What is in export.json: {"run", "format", "samples", "images" (files; llava only), "files"}.

    Raises:
        ConfigurationError: there is no such layout, no parity set, `instruction` where it has no
            use, or the output holds files.
        RunError: a sample has no image.
    """
    if layout not in LAYOUTS:
        raise ConfigurationError(
            f"--format {layout}: there is none of this name; give one of {', '.join(LAYOUTS)}"
        )
    if instruction and layout == "datasets":
        raise ConfigurationError(
            "--instruction and --format datasets exclude each other: that layout has questions and"
            " no prompts"
        )
    parity = require(run, "parity")
    with new_folder(output, by="jobs/export.py"):
        record = {"run": run.uri, "format": layout} | LAYOUTS[layout](parity, output, instruction)
        if layout != "llava":
            output.write_bytes("README.md", dataset_card.text(run, record).encode())
        output.write_json(RECORD, record)
    return record


def _parts(parity: Folder) -> Iterator[pa.Table]:
    """The parts of parity/, each sample's image with the file name it gets."""
    names = parity.names(".parquet")
    progress = Progress("export", len(names), unit="parts")
    for name in names:
        table = parity.read_table(name).select(PARITY.names)
        source = f"{parity.uri}/{name}"
        images = [
            _named_image(row, source) for row in table.select(["image_id", "image"]).to_pylist()
        ]
        yield table.set_column(
            PARITY.get_field_index("image"), PARITY.field("image"), pa.array(images, IMAGE_STRUCT)
        ).cast(PARITY)
        progress.add(1)


def _named_image(row: Row, source: str) -> Row:
    data = (row["image"] or {}).get("bytes") or b""
    try:
        return {"bytes": data, "path": named(row["image_id"], data)}
    except UnreadableImage as error:
        raise RunError(
            f"{source}, image {row['image_id']}: {error}; remove the row and export again"
        ) from None


def _export_parquet(
    parity: Folder,
    output: Folder,
    instruction: bool,
    *,
    convert: Callable[[pa.Table, bool], pa.Table],
) -> Row:
    waiting: list[pa.Table] = []
    samples = files = 0

    def write() -> None:
        nonlocal files
        output.write_table(
            f"data/train-{files:05d}.parquet", pa.concat_tables(waiting), row_group_size=_GROUP_ROWS
        )
        files += 1
        waiting.clear()

    for part in _parts(parity):
        samples += part.num_rows
        waiting.append(convert(part, instruction))
        if sum(table.nbytes for table in waiting) > _FILE_BYTES:
            write()
    if waiting:
        write()
    return {"samples": samples, "files": files}


def _as_stored(part: pa.Table, _: bool) -> pa.Table:
    return part


def as_trl(part: pa.Table, instruction: bool) -> pa.Table:
    """PARITY rows as TRL's conversational prompt-completion rows
    (https://huggingface.co/docs/trl/dataset_formats).

    TRL's trainers put the image before the text of the first user message.
    """
    rows = part.to_pylist()
    columns = {
        "images": [[row["image"]] for row in rows],
        "prompt": [
            [{"role": "user", "content": asked(row["question"], instruction)}] for row in rows
        ],
        "completion": [[{"role": "assistant", "content": plain(row["answer"])}] for row in rows],
    }
    return pa.table(columns, schema=TRL)


def _export_llava(parity: Folder, output: Folder, instruction: bool) -> Row:
    samples = images = 0
    if output.is_local:
        output.filesystem.create_dir(output.path, recursive=True)
    with (
        output.filesystem.open_output_stream(f"{output.path}/train.json") as stream,
        ThreadPoolExecutor(_WRITERS) as pool,
    ):
        stream.write(b"[")
        for part in _parts(parity):
            rows = part.to_pylist()
            # Several questions on an image share a part, and then its file.
            files = {image_path(row): row["image"]["bytes"] for row in rows}
            list(pool.map(output.write_bytes, files.keys(), files.values()))
            images += len(files)
            for row in rows:
                stream.write(
                    (",\n" if samples else "\n").encode()
                    + json.dumps(as_llava(row, instruction), ensure_ascii=False).encode()
                )
                samples += 1
        stream.write(b"\n]\n")
    return {"samples": samples, "images": images, "files": 1}


def image_path(row: Row) -> str:
    """Where the image of a PARITY row goes. Folders by the name's first two characters keep each of
    them small.
    """
    name = row["image"]["path"]
    return f"images/{name[:2]}/{name}"


def as_llava(row: Row, instruction: bool) -> Row:
    """A PARITY row as a record of LLaVA's conversation JSON."""
    return {
        "id": row["sample_id"] or row["image_id"],
        "image": image_path(row),
        "conversations": [
            {"from": "human", "value": f"<image>\n{asked(row['question'], instruction)}"},
            {"from": "gpt", "value": plain(row["answer"])},
        ],
    }


def asked(question: str, instruction: bool) -> str:
    """The text of the user's turn."""
    return prompts.ANSWERING.format(question=plain(question)) if instruction else plain(question)


def plain(text: str) -> str:
    """A text in which no processor finds a placeholder or control token.

    A second <image> would end a training run, and <|im_end|> would cut a turn.
    """
    return _TOKEN_LIKE.sub("< ", text)


LAYOUTS: dict[str, Callable[[Folder, Folder, bool], Row]] = {
    "datasets": partial(_export_parquet, convert=_as_stored),
    "trl": partial(_export_parquet, convert=as_trl),
    "llava": _export_llava,
}
