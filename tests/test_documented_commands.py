"""Every command in README.md and the guide is run, or parsed by what it starts
(`tests/documented.py` has the marks).
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import mpa_ray
from mpa_ray.config import Config, ModelSection, parse
from mpa_ray.models import checkpoint, families
from mpa_ray.storage import s3
from mpa_ray.storage.folder import Folder
from s3 import environment, settings
from tests import documented
from tests.documented import PAGES, ROOT, Block, blocks
from tests.documented_parse import check, commands, flag_is_known
from tests.report_runs import write_finished
from tests.run_folders import rows_of
from tests.tools.test_ratings import line, written

BLOCKS = [block for path in PAGES for block in blocks(path)]


def of(sort: str, *languages: str) -> Any:
    found = [block for block in BLOCKS if block.sort == sort and block.language in languages]
    return pytest.mark.parametrize("block", found, ids=[block.place for block in found])


def pages_with(sort: str) -> list[str]:
    return sorted(
        {
            block.page
            for block in BLOCKS
            if block.sort == sort and block.language in ("sh", "python")
        }
    )


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= {*documented.LANGUAGES, ""}
    for block in BLOCKS:
        words = {text.split()[0] for text in block.text.split("\n") if text.strip()}
        assert block.language or not words & {"python", "make", "ray", "pip", "from", "import"}, (
            f"{block.place}: say what language it is"
        )


@pytest.mark.parametrize(
    "command",
    [
        "python jobs/mpa_textvqa.py --images a --output b --pl.wokers 2",
        "python jobs/no_such_job.py --run a",
        "python jobs/rejudge.py --runn a --matcher anls --output b",
        "RAY_ADDRESS=a ray job submit --working-dir . -- python jobs/mpa_textvqa.py --image a"
        " --output b",
        "ray job submitt -- python jobs/status.py --output a",
        "ray job submit --workingdir . -- python jobs/status.py --output a",
        "make no-such-target",
        "python -m no_such_module",
        "kubectl get pods",
    ],
)
def test_what_is_wrong_is_found(command: str) -> None:
    [words] = commands(command)
    with pytest.raises((Exception, SystemExit)):
        check(words)


def test_a_flag_that_no_job_has_is_found() -> None:
    assert (
        flag_is_known("--pl.workers")
        and flag_is_known("--drop_below")
        and flag_is_known("--serve.model")
    )
    assert not flag_is_known("--pl.wokers")


@of("parse", "sh")
def test_commands_are_understood(
    block: Block, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    # Whether a model is there is not what is looked at.
    for module in (checkpoint, families):
        monkeypatch.setattr(module, "check", lambda *_, **__: None)
    for words in commands(block.text):
        check(words)


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_the_examples_of_a_jobs_help_are_understood(
    job: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for module in (checkpoint, families):
        monkeypatch.setattr(module, "check", lambda *_, **__: None)
    text = ast.get_docstring(ast.parse(job.read_text())) or ""
    examples = list(commands(textwrap.dedent(text.partition("Examples:\n")[2]).strip()))
    assert examples
    for words in examples:
        assert words.count("python") == 1, "an example a line; a longer one ends in a backslash"
        check(words)


@of("parse", "python")
def test_python_is_right_up_to_the_run(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(mpa_ray, "run", given.append)
    exec(compile(block.text, block.place, "exec"), {})
    assert [type(config) for config in given] == [Config]


@of("outside", "sh")
def test_syntax_of_what_is_not_ours(block: Block) -> None:
    ended = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@of("run", "yaml")
def test_settings_are_settings(block: Block) -> None:
    job = Config(output="x", lvlm=ModelSection(model="a/b"), svlm=ModelSection(model="a/c"))
    parse.validate(parse.merge(job.model_dump(exclude_unset=True), yaml.safe_load(block.text)))


@of("run", "json")
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_jobs_and_flags_in_the_text_exist(path: Path) -> None:
    for span in documented.spans(path):
        words = span.split()
        script = next(
            (word for word in words if word.startswith("jobs/") and word.endswith(".py")), None
        )
        assert script is None or (ROOT / script).is_file(), f"`{span}`"
        if script or words[0].startswith("--"):
            for word in words:
                assert (
                    not word.startswith("--")
                    or word == "--"
                    or flag_is_known(word.partition("=")[0])
                ), f"`{span}`: {word}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, s3_port: int) -> Iterator[Path]:
    """What the commands find: a finished run under the names that the pages use, ratings of it,
    images; the same in a bucket.
    """
    folder = tmp_path_factory.mktemp("documented")
    run = write_finished(folder / "runs/demo")
    (folder / "photos").mkdir()
    for number in range(8):
        Image.new("RGB", (40, 40), (20 * number, 90, 90)).save(folder / f"photos/{number}.png")
    for rater in ("ann", "ben"):
        said = [
            line(row["sample_id"], rater, samples=100) for row in rows_of(run.child("judgements"))
        ]
        written(folder / f"{rater}.jsonl", *said)
    for block in BLOCKS:
        if block.title:
            (folder / block.title).write_text(block.text)
    shutil.copy(ROOT / "jobs/data.example.yaml", folder / "data.yaml")
    with environment(s3_port):
        try:
            s3.client().create_bucket(Bucket="bucket")
        except s3.client().exceptions.BucketAlreadyOwnedByYou:
            pass
        for name in ("images", "photos"):
            Folder.at(f"s3://bucket/{name}").upload(folder / "photos")
        Folder.at("s3://bucket/run1").upload(folder / "runs/demo")
        Folder.at("s3://bucket/run2").upload(folder / "runs/demo")
        yield folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A checkout in which anything may be written, with what the commands find."""
    for name in ("jobs", "mpa_ray", "benchmarks", "Makefile", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name in ("1", "a", "b"):
        shutil.copytree(made / "runs/demo", tmp_path / "runs" / name)
    return tmp_path


def run_blocks(page: str, sort: str, place: Path, s3_port: int, **more: str) -> None:
    """Runs the page's blocks of a sort, one after the other, in one folder."""
    (place / "bin").mkdir(exist_ok=True)
    # No link: a virtual environment's Python is known by where it lies.
    (place / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (place / "bin/python").chmod(0o755)
    paths = {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{place}",
    }
    variables = os.environ | settings(s3_port) | paths | {"HF_HUB_OFFLINE": "1"} | more
    for block in BLOCKS:
        if (block.page, block.sort) == (page, sort) and block.language in ("sh", "python"):
            command = (
                ["bash", "-euo", "pipefail", "-c"]
                if block.language == "sh"
                else [sys.executable, "-c"]
            )
            ended = subprocess.run(
                [*command, block.text],
                cwd=place,
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ended.returncode == 0, (
                f"{block.place}\n{block.text}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
            )


@pytest.mark.parametrize("page", pages_with("run"))
def test_commands_run(page: str, place: Path, s3_port: int) -> None:
    run_blocks(page, "run", place, s3_port)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's run, as the README makes it but with fewer images and no comparisons."""
    folder = tmp_path_factory.mktemp("trained")
    small = [
        "--demo.images",
        "160",
        "--demo.questions",
        "24",
        "--images_per_part",
        "32",
        "--ablations",
        "[]",
    ]
    demo = [
        sys.executable,
        str(ROOT / "jobs/mpa_textvqa.py"),
        "--preset",
        "demo",
        "--output",
        "runs/demo",
        *small,
    ]
    subprocess.run(demo, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return folder / "runs"


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("slow"))
def test_commands_that_load_models_run(page: str, place: Path, trained: Path, s3_port: int) -> None:
    """On a real run; what quick commands of the page would have left is there too."""
    shutil.rmtree(place / "runs")
    shutil.copytree(trained, place / "runs")
    Folder.at(place / "runs/demo-fixed/parity").copy_from(Folder.at(place / "runs/demo/parity"))
    run_blocks(page, "slow", place, s3_port)
