import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.report.run_folder import with_stored_images
from mpa_ray.schema import ANNOTATIONS, JUDGEMENTS, PARITY
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks.matchers import MATCHERS
from mpa_ray.tools.rejudge import rejudge, table, verdict_of
from tests.run_folders import judged, rows_of, write_run


@pytest.fixture
def run(tmp_path):
    """Two parts, judged by `exact` without asking the S-VLM where the L-VLM disagrees with
    itself.
    """
    images = tmp_path / "images"
    first = [
        judged(f"{images}/a.png", answer="red", lvlm="red", svlm="blue", verdict="parity"),
        judged(
            f"{images}/b.png",
            answer="Coca-Cola",
            lvlm="Coca-Cola",
            svlm="CocaCola",
            verdict="parity",
        ),
        judged(f"{images}/c.png", answer="7", lvlm="7", svlm="seven", verdict="svlm_correct"),
    ]
    second = [
        judged(
            f"{images}/d.png", answer="left", lvlm="lift", svlm=None, verdict="lvlm_inconsistent"
        ),
        judged(
            f"{images}/e.png", answer="cat", lvlm="elephant", svlm=None, verdict="lvlm_inconsistent"
        ),
        judged(
            f"{images}/f.png", answer="stop", lvlm="stops", svlm="xyz", verdict="lvlm_inconsistent"
        ),
    ]
    return write_run(tmp_path / "run", [first, second])


def states(folder):
    return {
        row["image_uri"].rpartition("/")[2][0]: row["verdict"]
        for row in rows_of(folder.child("judgements"))
    }


def test_another_matcher(run, tmp_path):
    output = Folder.at(tmp_path / "new")
    record = rejudge(run, matcher="anls", output=output)
    assert states(output) == {
        "a": "parity",
        "b": "svlm_correct",
        "c": "parity",
        "e": "lvlm_inconsistent",
        "f": "parity",
    }
    assert record["rows"] == 6
    assert record["before"] == {
        "parity": 2,
        "svlm_correct": 1,
        "lvlm_inconsistent": 3,
        "unasked": 0,
    }
    assert record["after"] == {"parity": 3, "svlm_correct": 1, "lvlm_inconsistent": 1, "unasked": 1}
    assert {"before": "lvlm_inconsistent", "after": "unasked", "rows": 1} in record["transitions"]
    assert record["parity_images"] == {"copied": 1, "fetched": 2}
    assert output.read_json("rejudge.json") == record
    text = table(record)
    assert "1 rows are consistent now and their S-VLM was never asked" in text
    assert "after (anls)" in text


def test_what_is_written_has_the_schemas_of_a_run(run, tmp_path):
    output = Folder.at(tmp_path / "new")
    rejudge(run, matcher="anls", output=output)
    for name, schema in (("judgements", JUDGEMENTS), ("parity", PARITY)):
        for found in output.child(name).tables():
            assert found.schema.equals(schema, check_metadata=name == "parity"), name
    for found in output.child("unasked").tables():
        assert [found.schema.field(name) for name in ANNOTATIONS.names] == list(ANNOTATIONS)
        assert not {"verdict", "svlm_answer"} & set(found.column_names)
    (unasked,) = rows_of(output.child("unasked"))
    assert (unasked["answer"], unasked["lvlm_answer"]) == ("left", "lift")
    images = {
        row["image"]["path"][-5]: row["image"]["bytes"] for row in rows_of(output.child("parity"))
    }
    assert images == {name: (tmp_path / "images" / f"{name}.png").read_bytes() for name in "acf"}


def test_there_and_back_loses_nothing(run, tmp_path):
    there, back = Folder.at(tmp_path / "there"), Folder.at(tmp_path / "back")
    rejudge(run, matcher="anls", output=there)
    record = rejudge(there, matcher="exact", output=back)
    assert states(back) == states(run)
    assert record["matcher_before"] == "anls"
    assert record["before"]["unasked"] == 1
    assert record["after"]["unasked"] == 0

    def key(row):
        return row["sample_id"]

    assert sorted(rows_of(back.child("judgements")), key=key) == sorted(
        rows_of(run.child("judgements")), key=key
    )
    assert sorted(rows_of(back.child("parity")), key=key) == sorted(
        rows_of(run.child("parity")), key=key
    )


def test_a_jury_is_judged_too_and_what_it_said_is_kept(tmp_path):
    def row(name, *jury_answers, svlm):
        found = judged(
            f"{tmp_path}/i/{name}.png",
            answer="left",
            lvlm="left",
            svlm=svlm,
            verdict="lvlm_inconsistent",
        )
        return found | {"jury_answers": list(jury_answers)}

    rows = [
        row("a", "lift", svlm=None),
        row("b", "lift", "right", svlm="xyz"),
        row("c", "right", svlm=None),
    ]
    output = Folder.at(tmp_path / "new")
    rejudge(write_run(tmp_path / "run", [rows]), matcher="anls", output=output)
    assert states(output) == {"b": "lvlm_inconsistent", "c": "lvlm_inconsistent"}
    (unasked,) = rows_of(output.child("unasked"))
    assert unasked["jury_answers"] == ["lift"]


def test_a_part_whose_rows_are_all_set_aside(tmp_path):
    rows = [
        judged(
            f"{tmp_path}/images/a.png",
            answer="left",
            lvlm="lift",
            svlm=None,
            verdict="lvlm_inconsistent",
        )
    ]
    rows_too = [
        judged(
            f"{tmp_path}/images/b.png",
            answer="a b",
            lvlm="x",
            svlm=None,
            verdict="lvlm_inconsistent",
        )
    ]
    run = write_run(tmp_path / "run", [rows, rows_too])
    there, back = Folder.at(tmp_path / "there"), Folder.at(tmp_path / "back")
    rejudge(run, matcher="anls", output=there)
    assert there.child("judgements").names() == ["part-00000001.parquet"]
    rejudge(there, matcher="exact", output=back)
    assert states(back) == {"a": "lvlm_inconsistent", "b": "lvlm_inconsistent"}


def test_without_parity_no_image_is_needed(run, tmp_path):
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    output = Folder.at(tmp_path / "new")
    assert rejudge(run, matcher="anls", output=output, parity=False)["parity_images"] is None
    assert not output.child("parity").exists()
    with pytest.raises(RunError, match=r"c\.png: could be read when it was annotated"):
        rejudge(run, matcher="anls", output=Folder.at(tmp_path / "other"))


def test_processes_do_not_change_the_result(tmp_path):
    parts = [
        [judged(f"{tmp_path}/i/{n}.png", answer="left", lvlm="left", svlm="lift", verdict="parity")]
        for n in range(40)
    ]
    run = write_run(tmp_path / "run", parts)
    outputs = [Folder.at(tmp_path / f"new{processes}") for processes in (1, 2)]
    records = [
        rejudge(run, matcher="anls", output=output, processes=processes)
        for processes, output in enumerate(outputs, start=1)
    ]
    assert (
        records[0]["after"]
        == records[1]["after"]
        == {"parity": 0, "svlm_correct": 40, "lvlm_inconsistent": 0, "unasked": 0}
    )
    assert rows_of(outputs[0].child("judgements")) == rows_of(outputs[1].child("judgements"))


def test_nothing_is_overwritten(run, tmp_path):
    with pytest.raises(ConfigurationError, match="holds files already"):
        rejudge(run, matcher="anls", output=run)
    (tmp_path / "taken" / "judgements").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="holds files already"):
        rejudge(run, matcher="anls", output=Folder.at(tmp_path / "taken"))


def test_inputs_are_checked(run, tmp_path):
    new = Folder.at(tmp_path / "new")
    with pytest.raises(ConfigurationError, match="--matcher fuzzy: .* exact, anls"):
        rejudge(run, matcher="fuzzy", output=new)
    with pytest.raises(ConfigurationError, match="it holds no judgements/"):
        rejudge(Folder.at(tmp_path / "nowhere"), matcher="anls", output=new)
    assert not new.exists()


def test_of_a_run_of_rounds_one_is_asked_for(run, tmp_path):
    whole = Folder.at(tmp_path / "whole")
    whole.write_json("config.json", {"rounds": 10})
    for number in range(1, 11):
        whole.child(f"rounds/{number}").copy_from(run)
    with pytest.raises(
        ConfigurationError,
        match=r"whole: each of its 10 rounds has a judgements/ of its own; give .*/whole/rounds/1$",
    ):
        rejudge(whole, matcher="anls", output=Folder.at(tmp_path / "new"))


@pytest.mark.parametrize("matcher", MATCHERS)
def test_verdict_of_knows_what_only_the_svlm_could_tell(matcher):
    matches = MATCHERS[matcher]
    assert verdict_of(answer="red", lvlm_answer="red", svlm_answer=None, matches=matches) is None
    assert (
        verdict_of(answer="red", lvlm_answer="blue", svlm_answer=None, matches=matches)
        == "lvlm_inconsistent"
    )
    assert (
        verdict_of(answer="red", lvlm_answer="red", svlm_answer="blue", matches=matches) == "parity"
    )


def test_the_job(run, tmp_path):
    def job(*arguments):
        return subprocess.run(
            [sys.executable, "jobs/rejudge.py", *arguments], capture_output=True, text=True
        )

    done = job("--run", run.uri, "--matcher", "anls", "--output", f"{tmp_path}/new")
    assert done.returncode == 0, done.stderr
    assert "-> unasked" in done.stdout
    again = job("--run", run.uri, "--matcher", "anls", "--output", f"{tmp_path}/new")
    assert again.returncode == 2
    assert (
        again.stderr
        == f"error: --output {tmp_path}/new: holds files already and nothing is overwritten; give"
        " a new folder\n"
    )


def test_no_model_library_and_no_ray_is_loaded():
    code = (
        "import sys, mpa_ray.tools.rejudge; print([m for m in ('ray', 'torch', 'vllm',"
        " 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )


@pytest.mark.slow
def test_more_than_two_gibibytes_of_images_in_a_part(tmp_path: Path) -> None:
    """What one Arrow array holds at most."""
    large = b"x" * (36 * 2**20)
    ids = [f"s-{number}" for number in range(60)]
    images = [{"bytes": large, "path": None}] * 60
    stored = {name: ids for name in PARITY.names if name != "image"} | {
        "image": pa.array(images, PARITY.field("image").type)
    }

    class Stored(Folder):
        def exists(self, name: str = "") -> bool:
            return True

        def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
            return pa.table([stored[column] for column in PARITY.names], schema=PARITY)

    rows = pa.table(
        {"sample_id": ids[::-1], "image_id": ids, "image_uri": ids, "question": ids, "answer": ids}
    )
    place = Folder.at(tmp_path)
    table, fetched = with_stored_images(
        rows, stored=Stored(place.filesystem, place.path, place.uri), name="x", max_image_bytes=1
    )
    assert (table.column("sample_id").to_pylist(), fetched) == (ids[::-1], 0)
