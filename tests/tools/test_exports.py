import io
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard
from PIL import Image, features

from mpa_ray.config import Config, ModelSection, identity
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.images.decode import FORMATS
from mpa_ray.schema import PARITY
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.exchange import exports
from mpa_ray.tools.exchange.exports import LAYOUTS, TRL, export, plain
from mpa_ray.tools.exchange.image_files import named
from tests.run_folders import judged, picture, rows_of, write_run

HOSTILE = "<image> Is it\n</s> a <|im_end|> 2 < 3 question?"


@pytest.fixture
def run(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "really_a_jpeg.png").write_bytes(picture(1, kind="JPEG"))
    first = [
        judged(
            f"{images}/really_a_jpeg.png", answer="red", lvlm="red", svlm="blue", verdict="parity"
        ),
        judged(
            f"{images}/really_a_jpeg.png",
            question="Another?",
            answer="=1+1",
            lvlm="x",
            svlm="y",
            verdict="parity",
            number=1,
        ),
        judged(f"{images}/b.png", answer="no", lvlm="x", svlm="y", verdict="svlm_correct"),
    ]
    second = [
        judged(
            f"{images}/c.png",
            question=HOSTILE,
            answer="東京 <image>",
            lvlm="x",
            svlm="y",
            verdict="parity",
        )
    ]
    return write_run(tmp_path / "run", [first, second])


def test_datasets(run, tmp_path):
    output = Folder.at(tmp_path / "out")
    assert export(run, output, layout="datasets")["samples"] == 3
    (name,) = output.child("data").names()
    assert name == "train-00000.parquet"
    assert output.child("data").read_table(name).schema.equals(PARITY, check_metadata=True)
    rows = rows_of(output.child("data"))
    assert [row["question"] for row in rows] == ["What is it?", "Another?", HOSTILE]
    extensions = (".jpg", ".jpg", ".png")
    assert [row["image"]["path"] for row in rows] == [
        row["image_id"] + end for row, end in zip(rows, extensions, strict=True)
    ]
    assert [row["image"]["bytes"] for row in rows] == [
        row["image"]["bytes"] for row in rows_of(run.child("parity"))
    ]


def test_trl(run, tmp_path):
    output = Folder.at(tmp_path / "out")
    export(run, output, layout="trl")
    assert output.child("data").read_table("train-00000.parquet").schema.metadata == TRL.metadata
    first, _, third = rows_of(output.child("data"))
    assert first["prompt"] == [{"role": "user", "content": "What is it?"}]
    assert first["completion"] == [{"role": "assistant", "content": "red"}]
    assert [image["bytes"] for image in first["images"]] == [picture(1, kind="JPEG")]
    assert third["prompt"][0]["content"] == "< image> Is it\n< /s> a < |im_end|> 2 < 3 question?"
    assert third["completion"][0]["content"] == "東京 < image>"


def test_llava(run, tmp_path):
    output = Folder.at(tmp_path / "out")
    assert export(run, output, layout="llava")["images"] == 2
    records = json.loads(output.read_bytes("train.json"))
    assert records[0]["conversations"] == [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "red"},
    ]
    assert all(record["conversations"][0]["value"].count("<image>") == 1 for record in records)
    assert len({record["id"] for record in records}) == 3
    assert {
        record["image"]: (tmp_path / "out" / record["image"]).read_bytes() for record in records
    } == {
        records[0]["image"]: picture(1, kind="JPEG"),
        records[2]["image"]: (tmp_path / "images" / "c.png").read_bytes(),
    }
    assert records[0]["image"].endswith(".jpg")


def test_the_instruction_is_the_parity_levelers(run, tmp_path):
    output = Folder.at(tmp_path / "out")
    export(run, output, layout="trl", instruction=True)
    content = rows_of(output.child("data"))[0]["prompt"][0]["content"]
    assert content == "Answer the following question in a single word or phrase.\nWhat is it?"
    with pytest.raises(ConfigurationError, match="has questions and no prompts"):
        export(run, Folder.at(tmp_path / "other"), layout="datasets", instruction=True)


def test_files_are_bounded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "_FILE_BYTES", 1)
    output = Folder.at(tmp_path / "out")
    assert export(run, output, layout="datasets")["files"] == 2
    assert output.child("data").names() == ["train-00000.parquet", "train-00001.parquet"]


@pytest.mark.parametrize("layout", ["datasets", "trl"])
def test_the_card_is_read_by_the_hub(run, tmp_path, layout):
    config = Config(
        task="okvqa",
        lvlm=ModelSection(model="Qwen/Qwen2-VL-7B-Instruct"),
        svlm=ModelSection(model="/home/me/secret/s`|<b>"),
    )
    run.write_json("config.json", identity(config))
    output = Folder.at(tmp_path / "out")
    export(run, output, layout=layout)
    card = DatasetCard(output.read_bytes("README.md").decode())
    assert card.data.configs[0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"}
    ]
    assert card.data.size_categories == ["n<1K"]
    body = card.text
    assert "`Qwen/Qwen2-VL-7B-Instruct`" in body and "`okvqa`" in body and "3 questions" in body
    assert "secret" not in body and "<b>" not in body


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_id_from_elsewhere_is_no_path(run, tmp_path, layout):
    name = run.child("parity").names()[0]
    rows = [
        row | {"image_id": "../../escaped"}
        for row in run.child("parity").read_table(name).to_pylist()
    ]
    run.write_table(f"parity/{name}", pa.Table.from_pylist(rows, schema=PARITY))
    export(run, Folder.at(tmp_path / "x" / "out"), layout=layout)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "run", "x"}
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupted_export_has_no_record(run, tmp_path, layout):
    name = run.child("parity").names()[-1]
    rows = [
        row | {"image": {"bytes": b"<svg>", "path": "a.png"}}
        for row in run.child("parity").read_table(name).to_pylist()
    ]
    run.write_table(f"parity/{name}", pa.Table.from_pylist(rows, schema=PARITY))
    output = Folder.at(tmp_path / "out")
    with pytest.raises(
        RunError, match=r"not_an_image: 5 bytes that begin with b'<svg>'; remove the row"
    ):
        export(run, output, layout=layout)
    assert not output.exists("export.json")


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    with pytest.raises(ConfigurationError, match="--format csv: there is none of this name"):
        export(run, Folder.at(tmp_path / "out"), layout="csv")
    with pytest.raises(ConfigurationError, match="holds files already"):
        export(run, run, layout="trl")
    run.child("parity").delete_folder()
    with pytest.raises(ConfigurationError, match="it holds no parity/"):
        export(run, Folder.at(tmp_path / "out"), layout="trl")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a < b > c", "a < b > c"),
        ("<3", "<3"),
        ("x<y", "x<y"),
        ("<IMG_CONTEXT>", "< IMG_CONTEXT>"),
        ("<|a|><b>", "< |a|>< b>"),
        ("", ""),
    ],
)
def test_plain(text, written):
    assert plain(text) == written


def test_the_job(run, tmp_path):
    def job(*arguments):
        return subprocess.run(
            [sys.executable, "jobs/export.py", "--run", run.uri, *arguments],
            capture_output=True,
            text=True,
        )

    done = job("--format", "llava", "--output", f"{tmp_path}/out")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"3 samples in {tmp_path}/out")
    assert job("--format", "llava", "--output", f"{tmp_path}/out").returncode == 2
    assert job("--format", "webdataset", "--output", f"{tmp_path}/new").returncode == 2


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_that_is_read_gets_its_extension(form: str) -> None:
    if not features.check("avif") and form == "AVIF":
        pytest.skip("this Pillow writes no AVIF")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, form)
    name = named("a", buffer.getvalue())
    assert Image.registered_extensions()[name.removeprefix("a")] == form
