"""The report's pages in a real browser: that they work, by hand and by keys, and that foreign text
runs nothing.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mpa_ray.images.parts import part_name
from mpa_ray.report import page, write_report
from mpa_ray.report.rating_questions import QUESTIONS
from mpa_ray.schema import JUDGEMENTS
from mpa_ray.storage.folder import Folder
from mpa_ray.tools.studies import ratings
from tests.browser import assert_harmless, assert_no_sideways_scroll, browser, installed
from tests.report_runs import HOSTILE, some_rows, write_finished, write_hostile, write_started

pytestmark = pytest.mark.skipif(installed() is not None, reason=str(installed()))

By_ID, By_CSS = "id", "css selector"
DEADLINE_S = 30


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_finished(tmp_path_factory.mktemp("ordinary") / "run")
    write_report(run)
    return Path(run.path) / "report"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_hostile(tmp_path_factory.mktemp("hostile") / "ru\"n' <b>x")
    write_report(run)
    return Path(run.path) / "report"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    with browser(tmp_path / "profile") as found:
        yield found


def open_page(driver: Any, path: Path) -> None:
    driver.get(path.as_uri())


def text(driver: Any, css: str) -> str:
    return driver.find_element(By_CSS, css).text


def press(driver: Any, keys: str) -> None:
    driver.find_element(By_CSS, "body").send_keys(keys)


def start_rating(driver: Any, path: Path, rater: str) -> None:
    open_page(driver, path)
    driver.execute_script("document.getElementById('rater').value = ''")
    driver.find_element(By_ID, "rater").send_keys(f"{rater}\n")


def eventually(check: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (found := check()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


def downloaded(profile: Path, pattern: str) -> list[dict[str, Any]]:
    """The one file that was downloaded, moved away so that the next one can be told from it."""

    def complete() -> list[Path]:
        return [path for path in (profile / "downloads").glob(pattern) if path.stat().st_size]

    (path,) = eventually(complete)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    path.rename(profile / f"taken-{time.monotonic_ns()}.jsonl")
    return lines


def test_the_gallery_filters_searches_and_turns(driver: Any, ordinary: Path) -> None:
    open_page(driver, ordinary / "index.html")
    assert text(driver, "#found") == "1–24 of 65"
    driver.find_element(By_ID, "next").click()
    assert text(driver, "#found") == "25–48 of 65"
    driver.find_element(By_CSS, "[data-kind=quarantined]").click()
    assert text(driver, "#found") == "1–5 of 5"
    assert "image file is truncated" in text(driver, "#cards")
    driver.find_element(By_CSS, "[data-kind=parity]").click()
    assert driver.find_element(By_CSS, "[data-kind=parity]").get_attribute("aria-pressed") == "true"
    press(driver, "/")
    driver.switch_to.active_element.send_keys('"NUMBER 10 say"')
    assert text(driver, "#found") == "1–1 of 1"
    assert "What does number 10 say" in text(driver, "#cards")
    driver.switch_to.active_element.send_keys(" nowhere")
    assert text(driver, "#found") == "No sample fits"
    loaded = (
        "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    )
    assert driver.execute_script(loaded)
    assert_harmless(driver, ordinary / "index.html")


def test_a_tile_shows_the_path_below_the_root_and_the_whole_one_as_its_title(
    driver: Any, tmp_path: Path
) -> None:
    run = write_finished(tmp_path / "run")
    root = f"{tmp_path}/images"
    listed = {"source": root, "root": root, "files": [], "images": 65}
    run.write_json("manifest/index.json", listed)
    write_report(run)
    open_page(driver, Path(run.path) / "report/index.html")
    # The search knows the whole path.
    driver.find_element(By_ID, "search").send_keys(f"{root}/000007")
    (tile,) = driver.find_elements(By_CSS, ".uri")
    assert (tile.text, tile.get_attribute("title")) == ("000007.png", f"{root}/000007.png")
    start_rating(driver, Path(run.path) / "report/check.html", "Ann")
    whole = driver.find_element(By_CSS, "#texts dd:last-child").get_attribute("title")
    assert whole == f"{root}/{text(driver, '#texts dd:last-child')}"


@pytest.mark.parametrize("size", [(1440, 900), (1280, 720)])
@pytest.mark.parametrize("words", [4, 400])
def test_keep_drop_and_fix_are_in_sight(tmp_path: Path, size: tuple[int, int], words: int) -> None:
    """Whatever the length of the texts and the form of the image; so is what is typed for "fix"."""
    rows = some_rows(tmp_path / "images", 4)
    for row in rows:
        row["question"], row["svlm_answer"] = "many words " * (words // 2), "wrong " * words
    run = write_started(tmp_path / "run", [rows], [])
    Image.new("RGB", (300, 900)).save(rows[0]["image_uri"])
    write_report(run)
    # What is drawn at the middle of each is the control itself, and nothing that lies over it.
    unseen = """
        return [...document.querySelectorAll(arguments[0])].filter((item) => {
            const { left, right, top, bottom } = item.getBoundingClientRect();
            const there = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
            return top < 0 || bottom > innerHeight || there !== item;
        }).length
    """
    with browser(tmp_path / "profile", width=size[0], height=size[1]) as driver:
        start_rating(driver, Path(run.path) / "report/check.html", "Ann")
        assert len(driver.find_elements(By_CSS, "#decisions button")) == 3
        for _ in rows:
            assert driver.execute_script("return scrollY") == 0
            assert driver.execute_script(unseen, "#decisions button") == 0
            press(driver, "\ue014")
        press(driver, "f")
        assert driver.execute_script(unseen, "#decisions button, .decision textarea") == 0


def test_colors_follow_the_system_and_the_toggle(tmp_path: Path, ordinary: Path) -> None:
    shade = "return getComputedStyle(document.body).backgroundColor"
    with browser(tmp_path / "profile", dark=True) as driver:
        open_page(driver, ordinary / "index.html")
        dark = driver.execute_script(shade)
        driver.find_element(By_ID, "theme").click()
        light = driver.execute_script(shade)
        assert dark != light
        open_page(driver, ordinary / "check.html")
        assert driver.execute_script(shade) == light, "the choice holds for the other pages"


@pytest.mark.parametrize("run", ["ordinary", "hostile"])
def test_no_page_is_wider_than_a_phone(
    tmp_path: Path, run: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(run)
    with browser(tmp_path / "profile", width=360, height=740) as driver:
        for name in ("index.html", "review.html", "check.html"):
            open_page(driver, folder / name)
            if name != "index.html":
                driver.find_element(By_ID, "rater").send_keys("Ann\n")
            driver.execute_script(
                "document.querySelectorAll('details').forEach((item) => (item.open = true))"
            )
            assert_no_sideways_scroll(driver)


def test_hostile_text_runs_nothing(driver: Any, hostile: Path) -> None:
    open_page(driver, hostile / "index.html")
    for chip in driver.find_elements(By_CSS, "#kinds button"):
        chip.click()
        driver.execute_script(
            "document.querySelectorAll('button.link').forEach((button) => button.click())"
        )
    driver.find_element(By_CSS, "[data-kind=all]").click()
    driver.find_element(By_ID, "search").send_keys("<script>")
    every = (
        "document.querySelectorAll('*').forEach((item) => item.dispatchEvent(new"
        " MouseEvent('mouseover', {bubbles: true})))"
    )
    driver.execute_script(every)
    assert "<script>window.pwned = 1</script>" in text(driver, "#cards")
    assert_harmless(driver, hostile / "index.html")


@pytest.mark.parametrize("name", ["review.html", "check.html"])
def test_hostile_text_is_rated_as_text(driver: Any, hostile: Path, name: str) -> None:
    start_rating(driver, hostile / name, HOSTILE[2])
    for _ in range(20):
        press(driver, "ynyn")
    press(driver, "\ue012")
    assert_harmless(driver, hostile / name)
    open_page(driver, hostile / name)
    assert_harmless(driver, hostile / name)


def test_what_would_reorder_text_is_shown_by_its_code(driver: Any, hostile: Path) -> None:
    open_page(driver, hostile / "index.html")
    driver.find_element(By_ID, "search").send_keys("gpj.exe")
    shown = driver.find_element(By_ID, "cards").get_attribute("textContent")
    assert "⟨U+202E⟩gpj.exe⟨U+202C⟩ ⟨U+2066⟩isolated⟨U+2069⟩" in shown
    assert not set(shown) & set("\u202e\u202c\u2066\u2069")


def test_the_policy_stops_what_gets_past_the_escaping(
    driver: Any, ordinary: Path, tmp_path: Path
) -> None:
    """The control: markup in the page's source, and in what a script would make of it."""
    injected = (
        "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'><img"
        " src='http://127.0.0.1:9/x.png'>"
    )
    path = tmp_path / "injected.html"
    path.write_text(
        (ordinary / "index.html")
        .read_text()
        .replace('<main id="main"', f'{injected}<main id="main"', 1)
    )
    open_page(driver, path)
    complaints = [entry["message"] for entry in driver.get_log("browser")]
    assert driver.execute_script("return window.pwned") is None
    assert sum("Content Security Policy" in complaint for complaint in complaints) >= 3
    made = (
        "try { document.body.innerHTML = '<b>x</b>'; return 'made' } catch (error) { return"
        " error.name }"
    )
    assert driver.execute_script(made) == "TypeError"


def test_ten_thousand_samples_are_searched_at_once(driver: Any, tmp_path: Path) -> None:
    run = write_started(tmp_path / "run", [], [])
    rows = some_rows(tmp_path / "images", 10_000)
    pages = _with_rows(run, rows)
    assert pages == ["index.html"]
    path = Path(run.path) / "report/index.html"
    assert path.stat().st_size < page.LARGEST
    open_page(driver, path)
    assert text(driver, "#found") == "1–24 of 10,000"
    took = typical_search_ms(driver)
    # A frame or two on an idle machine; this one may be busy.
    assert took < 150, f"a search took {took:.0f} ms"


@pytest.mark.slow
def test_a_hundred_thousand_judged_rows(driver: Any, tmp_path: Path) -> None:
    """Images that compress as photographs do, each of its own name."""
    rows = some_rows(tmp_path / "images", 100_000)
    (tmp_path / "images").mkdir()
    photographs = [photograph(tmp_path / f"{number}.jpg", seed=number) for number in range(20)]
    for number, row in enumerate(rows):
        os.link(photographs[number % len(photographs)], row["image_uri"])
    run = write_started(tmp_path / "run", [], [])
    table = pa.Table.from_pylist(rows, schema=JUDGEMENTS)
    for number in range(0, len(rows), 1000):
        run.write_table(f"judgements/{part_name(number // 1000)}", table.slice(number, 1000))
    pages = write_report(run)
    folder = Path(run.path) / "report"
    assert {
        name: size for name in pages if (size := (folder / name).stat().st_size) >= page.LARGEST
    } == {}
    open_page(driver, folder / "index.html")
    held = "return JSON.parse(document.getElementById('data').textContent).samples.length"
    first = driver.execute_script(held)
    assert first > 1000 and text(driver, "#found") == f"1–24 of {first:,}"
    assert (
        driver.execute_script("return performance.getEntriesByType('navigation')[0].domComplete")
        < 10_000
    )
    assert typical_search_ms(driver) < 150
    gallery = [folder / name for name in pages if name.startswith("samples")]
    for path in gallery:
        open_page(driver, path)
        first += driver.execute_script(held)
    assert first == 2000
    assert_harmless(driver, folder / "index.html", *gallery)


def photograph(path: Path, *, seed: int) -> Path:
    """Smooth regions, edges and fine grain."""
    draw = np.random.default_rng(seed)
    layers = [
        Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8)).resize((640, 480))
        for size in ((7, 9), (60, 80))
    ]
    mixed = (
        0.65 * np.asarray(layers[0], float)
        + 0.35 * np.asarray(layers[1], float)
        + draw.normal(0, 9, (480, 640, 1))
    )
    Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(path, quality=88)
    return path


def typical_search_ms(driver: Any) -> float:
    """The slower of some searches, at the best of three tries."""
    timed = """
        const search = document.getElementById("search");
        const took = ["4", "num", "number 77", "zzz", "stop red", ""].map((words) => {
            const start = performance.now();
            search.value = words;
            search.dispatchEvent(new Event("input"));
            return performance.now() - start;
        });
        return took.sort((a, b) => a - b)[3];
    """
    return min(driver.execute_script(timed) for _ in range(3))


def _with_rows(run: Folder, rows: list[dict[str, Any]]) -> list[str]:
    run.write_table(
        "judgements/part-00000000.parquet", pa.Table.from_pylist(rows, schema=JUDGEMENTS)
    )
    return write_report(run, samples=10_000, rated=0)


def test_rating_by_keys_survives_a_reload(driver: Any, ordinary: Path, tmp_path: Path) -> None:
    review = ordinary / "review.html"
    start_rating(driver, review, "Ann")
    total = len(
        json.loads(driver.execute_script("return document.getElementById('data').textContent"))[
            "samples"
        ]
    )
    assert text(driver, "#place") == f"Sample 1 of {total}"
    press(driver, "ynyn")
    assert text(driver, "#place") == f"Sample 2 of {total}"
    press(driver, "y")
    press(driver, "3n0")
    press(driver, "2n")
    # The mark has moved on to the third question; this takes nothing back.
    driver.refresh()
    start_rating(driver, review, "Ann")
    assert text(driver, "#done") == f"1 of {total} rated"
    assert text(driver, "#place") == f"Sample 2 of {total}"
    assert _pressed(driver) == [["Yes"], ["No"], ["No"], []]
    press(driver, "yyyy")
    assert text(driver, "#done") == f"2 of {total} rated"
    driver.find_element(By_ID, "export").click()
    lines = downloaded(tmp_path / "profile", "ratings-Ann-*.jsonl")
    assert [[line[name] for name in QUESTIONS] for line in _by_time(lines)] == [
        [1, 0, 1, 0],
        [1, 1, 1, 1],
    ]
    assert_harmless(driver, review)


def _by_time(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(lines, key=lambda line: line["time"])


def _pressed(driver: Any) -> list[list[str]]:
    rows = driver.find_elements(By_CSS, "#questions .asking")
    return [
        [button.text for button in row.find_elements(By_CSS, "[aria-pressed=true]")] for row in rows
    ]


def test_several_raters_export_and_import(tmp_path: Path, ordinary: Path) -> None:
    review = ordinary / "review.html"
    with browser(tmp_path / "one") as driver:
        for rater, keys in (("Ann", "yyyy"), ("Бен/2", "nnnn")):
            start_rating(driver, review, rater)
            press(driver, keys)
        driver.find_element(By_ID, "export-all").click()
        lines = downloaded(tmp_path / "one", "ratings-all-*.jsonl")
        assert {(line["rater"], line["answerability"]) for line in lines} == {
            ("Ann", 1),
            ("Бен/2", 0),
        }
    older = [
        line | {"time": "2000-01-01T00:00:00.000Z", "answerability": 0}
        for line in lines
        if line["rater"] == "Ann"
    ]
    other = [lines[0] | {"run": "another"}]
    sent = tmp_path / "sent.jsonl"
    sent.write_text(
        "\n".join([*map(json.dumps, [*lines, *older, *other]), "no json", '{"mpa_ray_rating": 1}'])
        + "\n"
    )
    with browser(tmp_path / "two") as driver:
        open_page(driver, review)
        driver.find_element(By_ID, "import").send_keys(str(sent))
        eventually(lambda: text(driver, "#told"))
        assert text(driver, "#told") == (
            "2 ratings imported; 1 are not newer than what is here; 1 are of another run or page;"
            " 2 lines are no ratings."
        )
        start_rating(driver, review, "Ann")
        assert text(driver, "#done").startswith("1 of ")
        driver.find_element(By_ID, "export-all").click()
        again = downloaded(tmp_path / "two", "ratings-all-*.jsonl")
        assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, lines))
        assert_harmless(driver, review)


def test_two_open_pages_lose_nothing(driver: Any, ordinary: Path, tmp_path: Path) -> None:
    start_rating(driver, ordinary / "review.html", "Ann")
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    start_rating(driver, ordinary / "review.html", "Ann")
    press(driver, "\ue014yyyy")
    driver.switch_to.window(first)
    press(driver, "nnnn")
    eventually(lambda: text(driver, "#done").startswith("2 of "))
    driver.refresh()
    start_rating(driver, ordinary / "review.html", "Ann")
    assert text(driver, "#done").startswith("2 of ")


def test_dropping_and_fixing(driver: Any, ordinary: Path, tmp_path: Path) -> None:
    start_rating(driver, ordinary / "check.html", "Ann")
    assert "S-VLM" in text(driver, "#texts")
    press(driver, "d")
    press(driver, "\ue014")
    press(driver, "f")
    field = driver.switch_to.active_element
    assert field.get_attribute("id") == "fixed-answer"
    field.clear()
    field.send_keys("two words <b>")
    driver.refresh()
    start_rating(driver, ordinary / "check.html", "Ann")
    driver.find_element(By_ID, "export").click()
    path = tmp_path / "exported.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(line) for line in downloaded(tmp_path / "profile", "ratings-Ann-*.jsonl")
        )
    )
    found = {rating.decision: rating for rating in ratings.read([path])}
    assert found.keys() == {"drop", "fix"}
    assert found["fix"].answer == "two words <b>" and not found["fix"].blind
    assert_harmless(driver, ordinary / "check.html")


def test_keys_can_be_switched_off(driver: Any, ordinary: Path) -> None:
    start_rating(driver, ordinary / "review.html", "Ann")
    driver.find_element(By_ID, "keys").click()
    press(driver, "yyyy")
    assert text(driver, "#done").startswith("0 of ")
    driver.find_element(By_CSS, "#questions button").click()
    assert _pressed(driver)[0] == ["Yes"]


def test_a_browser_that_keeps_nothing_says_so(driver: Any, ordinary: Path, tmp_path: Path) -> None:
    forbid = (
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }"
    )
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": forbid})
    start_rating(driver, ordinary / "review.html", "Ann")
    press(driver, "yyyy")
    assert "Export your ratings before you close" in text(driver, "#trouble")
    driver.find_element(By_ID, "export").click()
    assert len(downloaded(tmp_path / "profile", "ratings-Ann-*.jsonl")) == 1


def test_every_control_has_a_name_and_can_be_reached(driver: Any, ordinary: Path) -> None:
    nameless = """
        return [...document.querySelectorAll("button, input, select, textarea, a[href]")]
            .filter((item) => !item.closest("[hidden]"))
            .filter((item) => !(item.textContent.trim() || item.getAttribute("aria-label")
                || item.labels?.length))
            .map((item) => item.outerHTML.slice(0, 80));
    """
    for name in ("index.html", "review.html", "check.html"):
        open_page(driver, ordinary / name)
        assert driver.execute_script(nameless) == []
        assert (
            driver.execute_script(
                "return [...document.images].filter((image) => !image.hasAttribute('alt')).length"
            )
            == 0
        )
        assert driver.execute_script("return document.querySelectorAll('h1').length") == 1


def test_a_finished_page_needs_no_script_for_its_figures(
    run_without_scripts: Any, ordinary: Path
) -> None:
    open_page(run_without_scripts, ordinary / "index.html")
    assert "need JavaScript" in text(run_without_scripts, "#samples")
    assert "It closes 60% of the gap" in text(run_without_scripts, "#result")


@pytest.fixture
def run_without_scripts(driver: Any) -> Any:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    return driver
