"""A picture of some parity samples, for a README or a slide."""

import io
import textwrap
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

from mpa_ray.storage.folder import Folder

_COLUMNS, _ROWS = 4, 2
_THUMBNAIL, _TEXT, _GAP = 192, 84, 12


def parity_picture(output: Folder, name: str = "report/parity_samples.png") -> None:
    """A picture of some parity samples: image, question, the annotation's answer and what the S-VLM
    said.
    """
    samples = _samples(output, _COLUMNS * _ROWS)
    sheet = Image.new(
        "RGB",
        (_COLUMNS * (_THUMBNAIL + _GAP) + _GAP, _ROWS * (_THUMBNAIL + _TEXT + _GAP) + _GAP),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (data, question, answer, svlm_answer) in enumerate(samples):
        left = _GAP + index % _COLUMNS * (_THUMBNAIL + _GAP)
        top = _GAP + index // _COLUMNS * (_THUMBNAIL + _TEXT + _GAP)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image.thumbnail((_THUMBNAIL, _THUMBNAIL)) if image.width > _THUMBNAIL else None
        scale = _THUMBNAIL / max(image.size)
        image = image.resize(
            (max(1, int(image.width * scale)), max(1, int(image.height * scale))),
            Image.Resampling.LANCZOS,
        )
        sheet.paste(image, (left, top))
        lines = [*textwrap.wrap(question, 28)[:2], f"answer: {answer[:22]}"]
        draw.multiline_text(
            (left, top + _THUMBNAIL + 4), "\n".join(lines), font=font, fill=(20, 20, 20)
        )
        draw.text(
            (left, top + _THUMBNAIL + 4 + 18 * len(lines)),
            f"S-VLM: {svlm_answer[:22]}",
            font=font,
            fill=(190, 30, 30),
        )
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    output.write_bytes(name, buffer.getvalue())


def _samples(output: Folder, count: int) -> list[tuple[bytes, str, str, str]]:
    """One sample of each of the first parts: image bytes, question, answer, S-VLM's answer."""
    parity, judgements = output.child("parity"), output.child("judgements")
    found = []
    for number in range(1 + count // max(1, len(parity.names(".parquet")))):
        for name in islice(parity.names(".parquet"), count):
            rows = parity.read_table(name)
            if number < rows.num_rows:
                row = rows.slice(number, 1).to_pylist()[0]
                judged = judgements.read_table(name, ["sample_id", "svlm_answer"]).to_pylist()
                said = next(
                    item["svlm_answer"] for item in judged if item["sample_id"] == row["sample_id"]
                )
                found.append((row["image"]["bytes"], row["question"], row["answer"], said or ""))
    return found[:count]
