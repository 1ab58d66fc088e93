"""Models in an object store, against a real S3 server: copied once, whole, by one process at a
time.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from mpa_ray import demo
from mpa_ray.config import ModelSection
from mpa_ray.errors import ConfigurationError, StorageError
from mpa_ray.models import checkpoint, node_cache
from mpa_ray.models.size import size_of
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder
from s3 import Failing, environment, put


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPA_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def prefix(bucket: str) -> str:
    """The demo's S-VLM in a bucket."""
    put(
        bucket,
        {
            f"models/small/{path.name}": path.read_bytes()
            for path in demo.SVLM.iterdir()
            if path.is_file()
        },
    )
    return f"s3://{bucket}/models/small"


def same(copy: Path) -> bool:
    return all(
        (copy / path.name).read_bytes() == path.read_bytes()
        for path in demo.SVLM.iterdir()
        if path.is_file()
    )


def test_a_prefix_is_copied_once(
    prefix: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = node_cache.copy_of(prefix)
    assert same(copy) and copy.is_relative_to(cache)
    assert capsys.readouterr().out.count("copying") == 1
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert node_cache.copy_of(prefix + "/").name == copy.name and node_cache.copy_of(prefix) == copy
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    assert not [path for path in cache.rglob("*.part")]


def test_a_prefix_that_changed_is_copied_anew(prefix: str, cache: Path, bucket: str) -> None:
    first = node_cache.copy_of(prefix)
    changed = first.joinpath("config.json").read_bytes().replace(b"  ", b" \t", 1)
    put(bucket, {"models/small/config.json": changed})
    second = node_cache.copy_of(prefix)
    assert (second / "config.json").read_bytes() == changed != (first / "config.json").read_bytes()
    assert len(changed) == (first / "config.json").stat().st_size, (
        "the sizes are the same; the ETag is not"
    )


def test_a_file_cut_off_on_the_node_is_found(prefix: str, cache: Path) -> None:
    copy = node_cache.copy_of(prefix)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    assert same(node_cache.copy_of(prefix))
    (copy / "config.json").unlink()
    assert same(node_cache.copy_of(prefix))


def test_a_model_cut_off_in_the_store_is_refused(bucket: str, prefix: str, cache: Path) -> None:
    whole = (demo.SVLM / "model.safetensors").read_bytes()
    put(bucket, {"models/small/model.safetensors": whole[: len(whole) // 2]})
    with pytest.raises(
        ConfigurationError,
        match=rf"model\.safetensors is cut off or damaged: {len(whole) // 2:,} bytes, .*not fully"
        " covered; copy the model again",
    ):
        node_cache.copy_of(prefix)
    assert not node_cache.has_copy(prefix) and not list(cache.rglob("*.safetensors")), (
        "nothing half is left"
    )


def test_shards_that_the_index_names_must_be_there(
    tmp_path: Path, bucket: str, cache: Path
) -> None:
    import numpy as np

    save_file({"a": np.zeros(4)}, tmp_path / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    files["model-00001-of-00002.safetensors"] = (
        tmp_path / "model-00001-of-00002.safetensors"
    ).read_bytes()
    put(bucket, {f"m/{name}": data for name, data in files.items()})
    with pytest.raises(
        ConfigurationError,
        match=r"index\.json names model-00002-of-00002\.safetensors, which is not there",
    ):
        node_cache.copy_of(f"s3://{bucket}/m")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigurationError, match="which is not there"):
        checkpoint.local(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"12", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0nope!"])
def test_a_broken_safetensors_file_in_a_folder_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is .*; copy the model again"):
        checkpoint.local(str(tmp_path))


def test_weights_in_other_formats_are_left_where_they_are(
    prefix: str, bucket: str, cache: Path
) -> None:
    put(
        bucket,
        {
            "models/small/pytorch_model.bin": b"x",
            "models/small/deep/er/tokens.txt": b"y",
            "models/smaller/z": b"z",
        },
    )
    copy = node_cache.copy_of(prefix)
    assert (
        not (copy / "pytorch_model.bin").exists()
        and (copy / "deep" / "er" / "tokens.txt").read_bytes() == b"y"
    )
    assert not (copy / "z").exists()


def test_a_prefix_of_pickled_weights_is_refused_before_it_is_copied(
    bucket: str, cache: Path
) -> None:
    put(bucket, {"models/old/config.json": b"{}", "models/old/pytorch_model.bin": b"x"})
    with pytest.raises(
        ConfigurationError, match=r"models/old: pytorch_model\.bin holds .* as safetensors"
    ):
        node_cache.copy_of(f"s3://{bucket}/models/old")
    assert not list(cache.rglob("*.bin"))


def test_a_name_that_leads_out_of_the_folder_is_refused(
    prefix: str, bucket: str, cache: Path
) -> None:
    put(bucket, {"models/small/../../escaped": b"x"})
    with pytest.raises(ConfigurationError, match="leads out of its folder"):
        node_cache.copy_of(prefix)
    assert not list(cache.rglob("escaped"))


def test_no_model_under_the_prefix(bucket: str, cache: Path) -> None:
    for uri in (f"s3://{bucket}/nothing", "s3://no-such-bucket-at-all/m"):
        with pytest.raises(ConfigurationError, match=r"holds no config\.json"):
            node_cache.copy_of(uri)


def test_without_the_store_the_copy_serves(
    prefix: str, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = node_cache.copy_of(prefix)
    monkeypatch.setattr("mpa_ray.storage.s3._ATTEMPTS", 1)

    def refuse(request: Any) -> None:
        request.send_response(403)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with Failing(refuse) as away, environment(away.port):
        assert node_cache.copy_of(prefix) == copy
        assert "cannot be reached; the copy on this node is taken" in capsys.readouterr().out
        assert away.requests
        with pytest.raises(StorageError):
            node_cache.copy_of(prefix + "-another")


def test_a_full_disk_is_said_before_anything_is_copied(
    prefix: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match="set MPA_RAY_CACHE to a folder on a larger disk"):
        node_cache.copy_of(prefix)


def test_two_processes_at_once_copy_once(prefix: str, cache: Path) -> None:
    script = Path(__file__).parents[1].joinpath("copy_a_model.py")
    both = [
        subprocess.Popen(
            [sys.executable, str(script), prefix], env=os.environ, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).count("copying") == 1, said
    places = {lines.strip().splitlines()[-1] for lines in said}
    assert len(places) == 1 and same(Path(places.pop()))


def test_what_a_killed_process_left_is_not_taken_for_a_model(prefix: str, cache: Path) -> None:
    copy = node_cache.copy_of(prefix)
    left = copy.parent / ".0123.part"
    copy.rename(left)
    (left / "model.safetensors").write_bytes(b"half")
    assert not node_cache.has_copy(prefix)
    assert same(node_cache.copy_of(prefix)) and not left.exists()


def test_the_size_of_a_model_is_known_without_copying_it(prefix: str, cache: Path) -> None:
    there, here = size_of(ModelSection(model=prefix)), size_of(ModelSection(model=str(demo.SVLM)))
    assert (there.weight_bytes, there.kv_bytes, there.heads) == (
        here.weight_bytes,
        here.kv_bytes,
        here.heads,
    )
    assert not cache.exists()


def test_a_prefix_is_checked_before_anything_loads(prefix: str, bucket: str) -> None:
    checkpoint.check("svlm.model", prefix)
    with pytest.raises(ConfigurationError, match=r"svlm\.model='s3://.*holds no config\.json"):
        checkpoint.check("svlm.model", f"s3://{bucket}/models/none")


def test_the_transformers_engine_loads_from_a_prefix(prefix: str, cache: Path) -> None:
    import asyncio

    from PIL import Image

    from mpa_ray import engines
    from mpa_ray.engines import Sampling

    def answer(place: str) -> str:
        engine = engines.load(
            ModelSection(model=place, engine="transformers", gpus_per_replica=0, max_model_len=512)
        )
        asked = engine.ask(
            Image.new("RGB", (64, 64), "red"),
            "What is it?",
            image_id="1",
            sampling=Sampling(max_tokens=8),
        )
        text = asyncio.run(_one(asked)).text
        engine.close()
        return text

    async def _one(asked: Any) -> Any:
        return await asked

    assert answer(prefix) == answer(str(demo.SVLM))
    assert any(cache.rglob("model.safetensors"))


def test_what_is_trained_is_loaded_from_a_prefix(prefix: str, cache: Path) -> None:
    from mpa_ray.training.set_up import load_svlm

    model, *_ = load_svlm(ModelSection(model=prefix), "float32")
    assert (
        sum(parameter.numel() for parameter in model.parameters()) > 10_000
        and len(list(cache.rglob("config.json"))) == 1
    )


def test_etags_come_with_the_keys(bucket: str) -> None:
    put(bucket, {"a/1": b"x", "a/2": b"yy"})
    found = list(s3.objects(bucket, "a/"))
    assert (
        [(key, size) for key, size, _ in found]
        == [("a/1", 1), ("a/2", 2)]
        == list(s3.keys(bucket, "a/"))
    )
    assert len({etag for *_, etag in found}) == 2 and Folder.at(f"s3://{bucket}/a").exists("1")


OFFLINE = """
from mpa_ray.config import ModelSection
from mpa_ray.models.chat_template import load_processor
from mpa_ray.models.size import size_of
from mpa_ray.training.set_up import load_svlm

section = ModelSection(model="an/example", gpus_per_replica=0)
model, processor, _ = load_svlm(section, "float32")
print(size_of(section).source, sum(parameter.numel() for parameter in model.parameters()))
"""


def test_a_hub_name_in_a_filled_cache_needs_no_hub(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--an--example" / "snapshots" / ("0" * 40)
    shutil.copytree(demo.SVLM, snapshot)
    (tmp_path / "hub" / "models--an--example" / "refs").mkdir()
    (tmp_path / "hub" / "models--an--example" / "refs" / "main").write_text("0" * 40)
    settings = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env=settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    parameters = size_of(ModelSection(model=str(demo.SVLM))).parameters
    assert result.stdout.strip().startswith("its files"), result.stdout
    assert int(result.stdout.split()[-1]) >= parameters
