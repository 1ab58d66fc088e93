"""The report without a browser: what it draws, counts and writes, and that foreign text cannot get
out of its place.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.fs
import pytest

from mpa_ray.cli import parse
from mpa_ray.config import Config, ModelSection, identity
from mpa_ray.errors import ConfigurationError
from mpa_ray.report import charts, facts, page, parity_picture, views, write, write_report
from mpa_ray.report.charts import Axis
from mpa_ray.report.gains import Evaluation, answer_type, compared, opening
from mpa_ray.report.rating_questions import AFTER, BEFORE
from mpa_ray.report.run_folder import drawn
from mpa_ray.report.selection import QUARANTINED, select
from mpa_ray.report.text import cut, embedded, visible
from mpa_ray.report.thumbnails import Step, Thumbnails
from mpa_ray.report.views import headline, rerun
from mpa_ray.schema import Verdict
from mpa_ray.storage.folder import Folder
from tests.report_runs import (
    HOSTILE,
    finish,
    rejected,
    some_rows,
    write_finished,
    write_hostile,
    write_started,
)
from tests.run_folders import picture, rows_of


class Outline(HTMLParser):
    """The elements of a page, with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self.text_of: dict[str, str] = {}
        self._script: str | None = None
        self._last = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._script = (dict(attributes).get("id") or "") if tag == "script" else None
        self._last = tag

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.words.append(data)
            self.text_of.setdefault(self._last, data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def outline(run: Folder, name: str = "index.html") -> Outline:
    return Outline(run.read_bytes(f"report/{name}").decode())


def data_of(run: Folder, name: str = "index.html"):
    return json.loads(outline(run, name).scripts["data"])


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return write_finished(tmp_path / "run")


def test_a_finished_run(run: Folder) -> None:
    assert write_report(run) == ["review.html", "check.html", "index.html"]
    words = " ".join(" ".join(outline(run).words).split())
    assert "small learns from large" in words
    for shown in (
        "40.0",
        "70.0",
        "90.0",
        "+30.0",
        "images: truncated",
        "$0.0123",
        "33.3%",
        "final loss 0.500",
        "1 min 1 s",
        "learned 2",
    ):
        assert shown in words, shown
    assert "It closes 60% of the gap to the L-VLM." in words
    found = data_of(run)
    verdicts = Counter(sample["verdict"] for sample in found["samples"])
    assert verdicts == {"parity": 24, "svlm_correct": 24, "lvlm_inconsistent": 12, QUARANTINED: 5}
    assert {sample["change"] for sample in found["samples"] if sample.get("change")} >= {
        "learned",
        "kept",
    }
    assert all(
        sample["image"] >= 0 for sample in found["samples"] if sample["verdict"] != QUARANTINED
    )


def words_of(run: Folder, name: str = "index.html") -> str:
    return " ".join(" ".join(outline(run, name).words).split())


def test_the_heading_names_the_models_and_the_task(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LARGEST", write._RESERVED + 8000)
    write_report(run)
    found = outline(run)
    assert found.text_of["h1"] == "textvqa: small learns from large"
    assert found.text_of["title"] == "textvqa: small learns from large · MPA report"
    assert f"S-VLM org/small , L-VLM org/large {run.uri} · written" in words_of(run)
    further = outline(run, "samples-2.html").text_of
    assert further["title"] == further["h1"] == "textvqa: small learns from large · samples, page 2"


def test_the_heading_of_rows_without_settings_is_the_folder(run: Folder) -> None:
    run.delete("run.json")
    run.delete("config.json")
    write_report(run)
    assert outline(run).text_of["h1"] == "run"


SCORE_ROW = re.compile(
    r'<th scope="row">([^<]*)</th><td class="chart-cell">(.*?)</td>\s*<td'
    r' class="num">([\d.]+)</td>',
    re.DOTALL,
)


def test_scores_are_drawn_on_an_axis_of_their_range(run: Folder) -> None:
    """40, 70 and 90 with 9 to each side; kinds of questions have no intervals."""
    write_report(run)
    text = run.read_bytes("report/index.html").decode()
    rows = SCORE_ROW.findall(text.partition('id="result"')[2].partition("</section>")[0])
    dot, ends = r'cx="([^"]*)"', r'class="range.*?x1="([^"]*)" x2="([^"]*)"'
    assert [
        (label, re.findall(dot, chart), re.findall(ends, chart), score)
        for label, chart, score in rows
    ] == [
        ("S-VLM before", ["14.29%"], [("1.43%", "27.14%")], "40.0"),
        ("S-VLM after MPA", ["57.14%"], [("44.29%", "70.00%")], "70.0"),
        ("L-VLM", ["85.71%"], [("72.86%", "98.57%")], "90.0"),
    ]
    words = words_of(run)
    assert "paired by question. The axis begins at 30, not at 0. Model 30 100 Score" in words
    assert "By question The axis begins at 40, not at 0. Questions 40 90 Before" in words
    assert "By answer The axis begins at 30, not at 0. Questions 30 100 Before" in words


def test_an_axis_that_begins_at_0_needs_no_word(run: Folder) -> None:
    record = run.read_json("run.json")
    scores = [score | {"ci95": [0.0, 100.0]} for score in record["evaluation"]]
    run.write_json("run.json", record | {"evaluation": scores})
    write_report(run)
    assert "paired by question. Model 0 100 Score" in words_of(run)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([61.3, 74.1], (60, 80)),
        ([3, 97], (0, 100)),
        ([65.0], (60, 80)),
        ([0.0], (0, 20)),
        ([72.0, 100.00000000000001], (70, 100)),
        ([100.0, 99.0], (80, 100)),
        ([97.0, 131.5], (90, 140)),
        ([131.5], (130, 150)),
        ([], (0, 100)),
    ],
)
def test_an_axis_is_rounded_outwards_and_20_wide(
    values: list[float], ends: tuple[float, float]
) -> None:
    assert charts.axis_of(values) == ends


def test_an_image_is_shown_by_its_path_below_the_root(run: Folder, tmp_path: Path) -> None:
    root = f"{tmp_path}/images"
    listed = {"source": root, "files": [], "images": 65}

    def shown(name: str) -> set[tuple[str, str]]:
        write_report(run)
        return {(sample["uri"], sample["path"]) for sample in data_of(run, name)["samples"]}

    for name in ("index.html", "check.html"):
        assert all(uri == path for uri, path in shown(name)), "no root is known"
        run.write_json("manifest/index.json", listed | {"root": root})
        assert (f"{root}/000001.png", "000001.png") in shown(name)
        assert all(uri == f"{root}/{path}" for uri, path in shown(name))
        run.write_json("manifest/index.json", listed | {"root": f"{tmp_path}/imag"})
        assert all(uri == path for uri, path in shown(name)), "the images are elsewhere"
        run.delete("manifest/index.json")


def test_what_the_cascade_spared(run: Folder) -> None:
    write_report(run)
    words = words_of(run)
    assert "The S-VLM was asked about 48 of 60 annotations." in words
    record = run.read_json("run.json")
    run.write_json("run.json", record | {"svlm_asked": 0})
    write_report(run)
    assert "was asked about" not in words_of(run)


def test_how_fast_each_model_was_trained(run: Folder) -> None:
    record = run.read_json("run.json")
    arm = record["training"]["mpa"]
    earlier = {name: value for name, value in arm.items() if name != "tokens_per_second"}
    arms = {
        "mpa": arm | {"mfu": None},
        "no_pi_all": arm | {"tokens_per_second": 12345.6, "mfu": 0.3141},
        "consistent": earlier,
    }
    run.write_json("run.json", record | {"training": arms})
    write_report(run)
    words = words_of(run)
    trained = "20 samples, final loss 0.500, batch 4, learning rate 1e-05"
    assert f"S-VLM after MPA : {trained}, 80 tokens a second" in words
    assert f"without PI, all pseudo-labels : {trained}, 12,346 tokens a second (31.4% MFU)" in words
    assert f"all self-consistent rows : {trained}" in words
    assert words.count("tokens a second") == 2 and words.count("MFU") == 1


def test_a_run_under_way(tmp_path: Path) -> None:
    rows = some_rows(tmp_path / "images", 20)
    run = write_started(tmp_path / "run", [rows], [rejected(f"{tmp_path}/images/bad.png")])
    write_report(run)
    words = " ".join(" ".join(outline(run).words).split())
    assert "The run is under way. 21 images are done" in words
    assert "No scores yet" in words and "Nothing is trained yet" in words
    assert f"python jobs/report.py --output {run.uri}" in words
    run.write_json(
        "checkpoints/mpa/progress.json",
        {"samples": 12, "of": 20, "loss": 1.25, "tokens_per_second": 80.0},
    )
    write_report(run)
    assert "S-VLM after MPA is in training: 12 of 20 samples, loss 1.250." in " ".join(
        " ".join(outline(run).words).split()
    )
    finish(run)
    write_report(run)
    assert "under way" not in " ".join(outline(run).words)


def test_a_run_of_rounds_under_way_shows_what_its_rounds_have_done(tmp_path: Path) -> None:
    run = Folder.at(tmp_path / "run")
    for number in (1, 2):
        made = write_started(
            tmp_path / f"made{number}", [some_rows(tmp_path / f"images{number}", 10 * number)], []
        )
        run.child(f"rounds/{number}").copy_from(made)
        run.write_json("config.json", made.read_json("config.json") | {"rounds": 2})
    found = facts.read(run)
    assert (found.data["images"], found.data["verdicts"]["parity"], found.data["seconds"]) == (
        30,
        12,
        122.0,
    )
    assert found.stages == {"round_1": 61.0, "round_2": 61.0} and found.wall_seconds == 122.0
    training = {"samples": 12, "of": 20, "loss": 1.25, "tokens_per_second": 80.0}
    run.write_json("rounds/2/checkpoints/mpa/progress.json", training)
    write_report(run)
    words = " ".join(" ".join(outline(run).words).split())
    assert (
        "The run is under way. 30 images are done" in words
        and "S-VLM after MPA is in training: 12 of 20 samples" in words
    )


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = write_started(tmp_path / "run", [], [])
    assert write_report(run) == ["index.html"]
    assert data_of(run) == {"samples": [], "images": []}


def test_before_run_json_is_written(run: Folder) -> None:
    record = run.read_json("run.json")
    run.delete("run.json")
    write_report(run, record=record)
    assert "under way" not in " ".join(outline(run).words)


def test_the_run_of_an_earlier_version_is_shown(run: Folder) -> None:
    """Settings and figures that were added since are missing from its record."""
    record = run.read_json("run.json")
    for name in ("parity", "cluster"):
        record["config"].pop(name)
    run.write_json("run.json", record)
    write_report(run)
    assert "small learns from large" in " ".join(" ".join(outline(run).words).split())


def test_a_run_that_starts_from_a_parity_set(tmp_path: Path) -> None:
    run = Folder.at(tmp_path / "run")
    config = Config(parity="reviewed/parity", output=run.uri, svlm=ModelSection(model="org/small"))
    run.write_json("config.json", identity(config))
    trained = {
        "samples": 25,
        "loss": 0.5,
        "seconds": 3.0,
        "tokens_per_second": 80.0,
        "batch_size": 4,
        "learning_rate": 1e-5,
    }
    counts = {
        "images": 0,
        "annotations": 25,
        "quarantined": {},
        "verdicts": {"parity": 25},
        "tokens": {},
        "seconds": 0.0,
    }
    record = {
        "config": config.model_dump(mode="json"),
        **counts,
        "training": {"mpa": trained},
        "evaluation": [],
        "stages": {},
    }
    assert write_report(run, record=record) == ["index.html"]
    text = run.read_bytes("report/index.html").decode()
    assert outline(run).text_of["h1"] == "textvqa: small learns from a parity set"
    parity = Path("reviewed/parity").absolute()
    assert f"S-VLM <b>org/small</b>, parity set <b>{parity}</b>" in text
    assert "Parity set, made elsewhere" in text
    assert (
        "Images worked on" not in text
        and "<h3>Verdicts</h3>" not in text
        and "<h3>Quarantine</h3>" not in text
    )


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run"):
        write_report(Folder.at(tmp_path))
    with pytest.raises(ConfigurationError, match="--samples -1"):
        write_report(Folder.at(tmp_path), samples=-1)


def test_through_a_store_that_is_not_local(run: Folder) -> None:
    """As from S3: nothing but Arrow's file systems is used."""
    remote = Folder(
        pyarrow.fs.SubTreeFileSystem(run.path, pyarrow.fs.LocalFileSystem()), "", "s3://bucket/run"
    )
    remote.filesystem.create_dir("report")
    write_report(remote)
    assert "s3://bucket/run" in " ".join(outline(run).words)
    assert len(data_of(run)["samples"]) == 65


def test_from_s3(run: Folder, bucket: str) -> None:
    remote = Folder.at(f"s3://{bucket}/run")
    remote.upload(run.path)
    write_report(remote)
    assert remote.child("report").names(".html") == ["check.html", "index.html", "review.html"]
    assert (
        len(
            json.loads(Outline(remote.read_bytes("report/index.html").decode()).scripts["data"])[
                "samples"
            ]
        )
        == 65
    )


def test_pages_are_the_same_when_written_again(run: Folder) -> None:
    write_report(run)
    first = data_of(run)
    write_report(run)
    assert data_of(run) == first


@pytest.fixture
def hostile(tmp_path: Path) -> Folder:
    run = write_hostile(tmp_path / "ru\"n' <b>x")
    write_report(run)
    return run


@pytest.mark.parametrize("name", ["index.html", "review.html", "check.html"])
def test_foreign_text_makes_no_element(hostile: Folder, tmp_path: Path, name: str) -> None:
    ours = write_finished(tmp_path / "ordinary")
    write_report(ours)
    expected, found = outline(ours, name), outline(hostile, name)
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in expected.elements}
    assert sum(tag == "script" for tag, _ in found.elements) == 2
    for _, attributes in found.elements:
        assert not [
            attribute
            for attribute in attributes
            if attribute.startswith("on") or attribute == "style"
        ]
        for attribute in ("href", "src"):
            assert not re.match(r"\s*(javascript|http|//)", attributes.get(attribute) or "")
    assert found.scripts[""] == expected.scripts[""], "the script is ours to the letter"


def test_foreign_text_is_kept_to_the_letter(hostile: Folder) -> None:
    raw = hostile.read_bytes("report/check.html").decode()
    data = outline(hostile, "check.html").scripts["data"]
    assert not set(data) & set("<>&\u2028\u2029")
    assert data in raw
    assert {sample["question"] for sample in json.loads(data)["samples"]} == {
        HOSTILE[number] for number in range(0, len(HOSTILE), 3)
    }


def test_the_policy_names_our_own_script_and_style_alone(run: Folder) -> None:
    write_report(run)
    elements = outline(run).elements
    policy = next(
        attributes["content"]
        for tag, attributes in elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert re.fullmatch(
        r"default-src 'none'; script-src 'sha256-[\w+/=]{44}'; style-src 'sha256-[\w+/=]{44}';"
        r" img-src data:; base-uri 'none';"
        r" form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        policy or "",
    )


@pytest.mark.parametrize("name", ["theme.js", "gallery.js", "review.js", "style.css"])
def test_our_own_files_stay_in_their_elements(name: str) -> None:
    text = page._source(name)
    assert not re.search(r"</|<!--|<script", text)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?:|@import|url\(",
        text,
    )


def test_a_rater_gets_nothing_that_tells(run: Folder) -> None:
    write_report(run)
    samples = data_of(run, "review.html")["samples"]
    assert len(samples) == 60
    assert all(
        sample.keys() == {"id", "fingerprint", "question", "answer", "image"} for sample in samples
    )
    text = run.read_bytes("report/review.html").decode()
    rest = (
        text.replace(page._source("style.css"), "")
        .replace(page._source("theme.js"), "")
        .replace(page._source("review.js"), "")
    )
    assert not [
        word for word in ("parity", "svlm", "inconsistent", "index.html", ".png") if word in rest
    ]


def test_the_rating_study_is_the_sheets(run: Folder) -> None:
    found = select(run, samples=10, review=7, seed=3)
    judgements = run.child("judgements")
    assert found.study[BEFORE].places() == drawn(judgements, 7, salt="before_pi/3")
    assert found.study[AFTER].places() == drawn(
        judgements, 7, salt="after_pi/3", verdicts=frozenset({"parity"})
    )


def test_the_gallery_is_drawn_by_verdict(run: Folder) -> None:
    found = select(run, samples=20, review=0, seed=0)
    assert found.quotas(20) == {
        "parity": 8,
        "svlm_correct": 4,
        "lvlm_inconsistent": 4,
        QUARANTINED: 4,
    }
    # What one kind lacks goes to the others: 60 judged rows and 5 quarantined ones.
    more = select(run, samples=50, review=0, seed=0)
    assert more.quotas(50) == {
        "parity": 24,
        "svlm_correct": 11,
        "lvlm_inconsistent": 10,
        QUARANTINED: 5,
    }
    judged, _ = found.gallery(20)
    other, _ = select(run, samples=20, review=0, seed=1).gallery(20)
    assert set(judged) != set(other)


def test_pages_are_cut_by_size(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", write._RESERVED + 8000)
    pages = write_report(run, rated=5)
    assert "samples-2.html" in pages
    names = [name for name in pages if name == "index.html" or name.startswith("samples")]
    samples = [sample for name in names for sample in data_of(run, name)["samples"]]
    assert len(samples) == len({sample["id"] for sample in samples}) == 65
    for name in pages:
        assert len(outline(run, name).scripts["data"]) < 9000
        assert (Path(run.path) / "report" / name).stat().st_size < write._RESERVED + 8000
        assert all(
            sample["image"] < len(data_of(run, name)["images"])
            for sample in data_of(run, name)["samples"]
        )
    links = {attributes.get("href") for tag, attributes in outline(run).elements if tag == "a"}
    assert {f"{name}#samples" for name in names} <= links
    monkeypatch.undo()
    write_report(run, rated=0)
    assert run.child("report").names() == ["index.html"], "pages that are no longer there are gone"


def test_an_image_is_in_a_page_once() -> None:
    images = Thumbnails(Step(64, 50), max_image_bytes=10**6, max_image_pixels=10**6)
    images.add([("a", picture(1)), ("b", b"no image"), ("c", picture(3))])
    (found,) = write._paged(
        [("a", {"id": "1"}), ("b", {"id": "2"}), ("a", {"id": "3"}), ("c", {"id": "4"})], images
    )
    assert [sample["image"] for sample in found["samples"]] == [0, -1, 0, 1]
    assert len(found["images"]) == 2


def test_thumbnails_shrink_with_the_space(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Step] = []
    original = write.pictures
    monkeypatch.setattr(
        write,
        "pictures",
        lambda run, rows, step, **limits: steps.append(step) or original(run, rows, step, **limits),
    )
    write_report(run, rated=0)
    monkeypatch.setattr(page, "LARGEST", write._RESERVED + 100)
    write_report(run, rated=0)
    assert [step.side for step in steps] == [256, 256, 256, 128]


def test_images_that_are_gone_come_from_the_parity_set(run: Folder, tmp_path: Path) -> None:
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    write_report(run)
    with_image = {sample["verdict"] for sample in data_of(run)["samples"] if sample["image"] >= 0}
    assert with_image == {"parity"}


def test_a_picture_for_a_readme(run: Folder) -> None:
    parity_picture(run)
    assert run.read_bytes("report/parity_samples.png").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("7", "number"),
        ("3.5%", "number"),
        ("$1,200.50", "number"),
        ("twelve", "number"),
        ("12:30", "number"),
        ("yes", "yes or no"),
        ("No.", "yes or no"),
        ("stop", "one word"),
        ("A1", "one word"),
        ("5 cm", "phrase"),
        ("a long road", "phrase"),
        ("", "one word"),
    ],
)
def test_answer_type(answer: str, kind: str) -> None:
    assert answer_type(answer) == kind


def test_the_shown_settings_make_the_same_run(run: Folder, tmp_path: Path) -> None:
    found = facts.read(run)
    shown = rerun(found)
    assert shown is not None and found.settings is not None
    (tmp_path / "rerun.yaml").write_text(shown["yaml"])
    again = parse(Config(), ["--config", f"{tmp_path}/rerun.yaml", "--output", "elsewhere"])
    assert identity(again) == identity(found.settings)


def test_opening() -> None:
    assert [opening(text) for text in ("How many are there?", "What is it?", "«Is it?»", "?!")] == [
        "how many",
        "what",
        "is",
        "",
    ]


def test_gains(run: Folder) -> None:
    evaluation = Evaluation(run, run.read_json("run.json")["evaluation"])
    found = headline(evaluation)
    assert (
        found is not None
        and found["sure"]
        and found["difference"] == pytest.approx(30)
        and found["closed"] == pytest.approx(60)
    )
    groups = {group.name: group for group in evaluation.by_question_kind()}
    assert groups["text"].questions == 50 and groups["text"].scores == {
        "zero_shot": 40,
        "mpa": 70,
        "lvlm": 90,
    }
    assert sum(group.questions for group in evaluation.by_answer_type()) == 100


def test_the_rows_of_the_score_table(run: Folder) -> None:
    found = facts.read(run)
    rows = {row["name"]: row for row in views.scores(found, Evaluation(run, found.evaluation))}
    assert list(rows) == ["zero_shot", "mpa", "lvlm"]
    shown = {
        name: (row["label"], row["score"], row["interval"], row["n"], row["samples"])
        for name, row in rows.items()
    }
    assert shown == {
        "zero_shot": ("S-VLM before", 40.0, "31.0 to 49.0", 100, None),
        "mpa": ("S-VLM after MPA", 70.0, "61.0 to 79.0", 100, 20),
        "lvlm": ("L-VLM", 90.0, "81.0 to 99.0", 100, None),
    }
    assert rows["zero_shot"]["test"] is None
    assert [rows[name]["test"]["difference"] for name in ("mpa", "lvlm")] == pytest.approx([30, 50])
    write_report(run)
    words = words_of(run)
    assert (
        "S-VLM before 40.0 31.0 to 49.0 – – S-VLM after MPA 70.0 61.0 to 79.0 +30.0 (+21.0 to"
        " +39.0) 20 L-VLM 90.0" in words
    )


def test_the_parity_share_of_each_answer_type(run: Folder) -> None:
    selection = select(run, samples=10, review=0, seed=0)
    rows = {row["name"]: row for row in views.parity_by_type(selection)}
    judged_rows = rows_of(run.child("judgements"))
    types = Counter((answer_type(row["answer"]), row["verdict"]) for row in judged_rows)
    assert sum(row["rows"] for row in rows.values()) == 60
    for name, row in rows.items():
        assert row["counts"] == {str(verdict): types[name, str(verdict)] for verdict in Verdict}
        assert (
            row["share"] == pytest.approx(100 * types[name, "parity"] / row["rows"])
            and row["share"] <= 100
        )


def test_a_question_is_of_the_type_of_its_commonest_answer(run: Folder) -> None:
    evaluation = Evaluation(run, run.read_json("run.json")["evaluation"])
    for model, table in evaluation.predictions.items():
        answers = [["no", "no", "yes yes"], *table.column("answers").to_pylist()[1:]]
        evaluation.predictions[model] = table.set_column(
            table.column_names.index("answers"), "answers", [answers]
        ).slice(0, 1)
    assert [(group.name, group.questions) for group in evaluation.by_answer_type()] == [
        ("yes or no", 1)
    ]


def test_only_questions_with_the_same_text_are_paired(run: Folder) -> None:
    evaluation = Evaluation(run, run.read_json("run.json")["evaluation"])
    a = evaluation.predictions["mpa"]
    other = a.set_column(
        1,
        "question",
        [
            [
                f"{text}!" if number < 30 else text
                for number, text in enumerate(a.column(1).to_pylist())
            ]
        ],
    )
    assert compared(a, other)[1] == 70
    assert compared(a, a.slice(0, 0)) == (None, 0)


def test_text() -> None:
    assert visible("a\u202eb\x00c\td\ne\u200f") == "a⟨U+202E⟩b⟨U+0000⟩c\td\ne\u200f"
    assert cut("w" * 10, 4) == "wwww… (10 characters)" and cut(None) is None
    for text in HOSTILE:
        assert json.loads(embedded({text: [text]})) == {text: [text]}
    assert embedded("\ud800").encode("utf-8", "replace")


def test_charts() -> None:
    assert '<rect class="fill parity" width="50.00%"' in charts.bar(1, 2, "parity")
    assert "<script" not in charts.bar(1, 2, "<script>")
    assert charts.bar(0, 0).count("<rect") == 3
    whole, part = Axis(0, 100), Axis(60, 80)
    assert 'cx="100.00%"' in charts.interval(250, None, whole)
    assert 'cx="0.00%"' in charts.interval(50, None, part)
    tens = re.findall(r'grid" x1="(.*?)"', charts.interval(70, None, part))
    assert tens == ["0.00%", "50.00%", "100.00%"]
    marks = re.findall(r'(?:x1|cx)="(\d.*?)"', charts.change(65, 70, 75, part))[len(tens) :]
    assert marks == ["25.00%", "75.00%", "25.00%", "50.00%"], "range, L-VLM, before, after"
    assert "down" in charts.change(60, 40, None, whole)
    assert "tick" in charts.change(40, 60, 90, whole)
    assert len(charts.binned([(float(n), 1.0) for n in range(100_000)])) <= 240
    assert "nan" not in charts.curve([(1.0, 0.0)]) and "polyline" in charts.curve([])


def test_facts_of_an_unfinished_run_are_those_of_its_record(run: Folder) -> None:
    finished = facts.read(run)
    run.delete("run.json")
    under_way = facts.read(run)
    assert under_way.data == finished.data
    assert under_way.training == finished.training
    assert under_way.config["lvlm"]["model"] == finished.config["lvlm"]["model"]
    assert sorted(score["model"] for score in under_way.evaluation) == ["lvlm", "mpa", "zero_shot"]


def test_the_job(run: Folder, tmp_path: Path) -> None:
    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "jobs/report.py", *arguments], capture_output=True, text=True
        )

    made = job("--output", run.uri, "--to", f"{tmp_path}/pages", "--samples", "10", "--rated", "4")
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{tmp_path}/pages/index.html, and 2 further pages\n"
    assert not run.child("report").exists()
    refused = job("--output", f"{tmp_path}/nowhere")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"error: {tmp_path}/nowhere: holds no run; give the output folder of one\n",
    )


def test_no_model_library_and_no_ray_is_loaded() -> None:
    code = (
        "import sys, mpa_ray.report, mpa_ray.tools.studies.compare, mpa_ray.tools.studies.review;"
    )
    code += "print([m for m in ('ray', 'torch', 'vllm') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )
