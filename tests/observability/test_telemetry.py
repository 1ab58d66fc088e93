"""What Prometheus sees of a run, and the board that shows it."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpa_ray.config import Config
from mpa_ray.demo import render
from mpa_ray.engines import ledger
from mpa_ray.observability import logs, telemetry
from mpa_ray.schema import CALLS, JUDGEMENTS
from mpa_ray.stages import commits
from mpa_ray.storage.folder import Folder

ROOT = Path(__file__).parents[2]
METRIC = re.compile(r"\bray_\w+")


def exported() -> set[str]:
    """The names under which Ray exports our metrics."""
    return {
        f"ray_{name}" + ("_total" if kind == "counter" else "")
        for name, (kind, _, _) in telemetry.METRICS.items()
    }


Shown = dict[tuple[str, frozenset[tuple[str, str]]], Any]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What is shown, and nothing is handed to Ray."""
    values: Shown = {}
    monkeypatch.setattr(telemetry, "_shown", values)
    monkeypatch.setattr(telemetry, "_start_refreshing", lambda: None)
    monkeypatch.setattr(telemetry, "count", lambda name, by, **tags: None)
    return values


def tagged(**tags: str) -> frozenset[tuple[str, str]]:
    return frozenset(tags.items())


def test_a_run_has_one_name_in_every_call_and_no_other_run_has_it() -> None:
    name = logs.run_id(Folder.at("runs/my run").uri)
    assert name == logs.run_id(Folder.at(Path("runs/my run").resolve()).uri) and name.startswith(
        "my-run-"
    )
    assert name != logs.run_id(Folder.at("other/my run").uri)
    assert logs.run_id(Folder.at("runs/my run/").uri) == name
    assert logs.run_id(None) == ""
    assert len(logs.run_id(Folder.at("x" * 300).uri)) < 60


def test_every_token_count_of_a_commit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a version that knows further calls stay out, and end nothing."""
    counted = []
    tokens = {name: number for number, name in enumerate(commits.TOKEN_COLUMNS, 1)}
    commit = {
        "images": 0,
        "quarantined": {},
        "verdicts": {},
        "tokens": tokens | {"judge_tokens": 5},
    }
    monkeypatch.setattr(telemetry, "count", lambda name, by, **tags: counted.append((name, by)))
    telemetry.count_commit("r", commit)
    assert [by for name, by in counted if name == "mpa_tokens"] == list(tokens.values())
    assert {name.rsplit("_", 2)[0] for name in JUDGEMENTS.names if name.endswith("_tokens")} == {
        *CALLS
    }


def test_rows_wait_are_asked_about_and_are_gone(seen: Shown) -> None:
    rows = telemetry.Rows("r", "jury")

    def now() -> list[float]:
        return [
            seen["mpa_rows", tagged(run="r", stage="jury", state=state)]()
            for state in ("waiting", "asked")
        ]

    rows.add_waiting(3)
    assert now() == [3, 0]
    with rows:
        assert now() == [2, 1]
    with pytest.raises(ValueError, match="the row failed"), rows:
        raise ValueError("the row failed")
    assert now() == [1, 0]


def test_what_replies_cost_is_shown_where_there_are_prices(seen: Shown, tmp_path: Path) -> None:
    output = Folder.at(tmp_path)
    entry = {
        "stage": "pseudo_annotator",
        "model": "m",
        "requests": 3,
        "prompt_tokens": 10**6,
        "cached_tokens": 0,
        "output_tokens": 10**5,
    }
    output.write_json(
        "ledger/a.json", entry | {"unsure_prompt_tokens": 0, "unsure_output_tokens": 0}
    )
    priced = {
        "model": "m",
        "engine": "openai",
        "usd_per_million_input_tokens": 2.0,
        "usd_per_million_output_tokens": 10.0,
    }
    commit = {"images": 1, "quarantined": {}, "verdicts": {}, "tokens": {}}
    for lvlm in ({"model": "m"}, priced):
        costs = partial(ledger.costs, Config.model_validate({"lvlm": lvlm}), output)
        telemetry.Run(logs.run_id(output.uri), listed=9, done=0, costs=costs).committed(
            commit, done=1
        )
        cost = {tags: value for (name, tags), value in seen.items() if name == "mpa_cost_usd"}
        assert cost == (
            {tagged(run=logs.run_id(output.uri), step="annotate_and_identify"): 3.0}
            if lvlm is priced
            else {}
        )


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A real run on a Ray of its own, and what was seen of it from outside."""

    output: Folder
    samples: list[tuple[str, dict[str, str], float]]
    driver: str
    workers: list[str]

    def by(self, name: str, *tags: str) -> dict[str, float]:
        """The sums of a metric's samples by their tags."""
        found: Counter[str] = Counter()
        for metric, labels, value in self.samples:
            if metric == name:
                found["/".join(labels[tag] for tag in tags)] += value
        return dict(found)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    render.write_images(folder / "images", kind="sign", count=60, seed=5)
    (folder / "images/bad.png").write_bytes(b"no image")
    with tempfile.TemporaryDirectory(
        prefix="mpa-", dir="/tmp", ignore_cleanup_errors=True
    ) as ray_folder:
        environment = {
            "RAY_AUTH_MODE": "disabled",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": ray_folder,
        }
        environment |= {"RAY_metrics_report_interval_ms": "1000", "MPA_LOG_FORMAT": "json"}
        environment["PYTHONPATH"] = os.pathsep.join(
            map(str, (ROOT / "tests", ROOT / "benchmarks", ROOT))
        )
        command = [sys.executable, str(ROOT / "tests/telemetry_run.py"), str(folder)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        logs = list(Path(ray_folder).glob("ray/session_2*/logs/worker-*.err"))
        yield Watched(
            output=Folder.at(folder / "out"),
            samples=json.loads((folder / "scraped.json").read_text()),
            driver=done.stderr,
            workers=[line for path in logs for line in path.read_text().splitlines()],
        )


def test_a_scrape_says_what_the_commits_say(watched: Watched) -> None:
    counts = commits.totals(watched.output)
    ours = [(name, tags) for name, tags, _ in watched.samples if name.startswith("ray_mpa_")]
    assert {tags["run"] for _, tags in ours} == {logs.run_id(watched.output.uri)}
    assert {name for name, _ in ours} <= exported()
    assert watched.by("ray_mpa_images_total") == {"": 61}
    assert watched.by("ray_mpa_quarantined_total", "stage", "reason") == counts["quarantined"]
    assert counts["quarantined"].keys() == {
        "images/not_an_image",
        "pseudo_annotator/unparsable_annotation",
    }
    assert watched.by("ray_mpa_verdicts_total", "verdict") == {
        verdict: rows for verdict, rows in counts["verdicts"].items() if rows
    }
    tokens = watched.by("ray_mpa_tokens_total", "stage", "kind")
    assert sum(tokens.values()) == sum(counts["tokens"].values())
    assert (
        tokens["pseudo_annotator/cached"]
        == counts["tokens"]["annotation_cached_tokens"]
        == 40 * counts["annotations"]
    )
    assert watched.by("ray_mpa_run_images", "state") == {"listed": 61, "done": 61}
    # The actors are gone by then, and what they show goes with them.
    assert all(value == 0 for value in watched.by("ray_mpa_rows", "stage", "state").values())


def test_rays_dashboard_has_the_stages_by_name(watched: Watched) -> None:
    operators = {
        tags["operator"]
        for name, tags, _ in watched.samples
        if name.startswith("ray_data_") and "operator" in tags
    }
    for stage in ("PseudoAnnotator", "ParityIdentifier", "commit_part"):
        assert any(stage in operator for operator in operators), operators
    assert any(
        tags.get("dataset", "").startswith("annotate_and_identify")
        for _, tags, _ in watched.samples
    )


def test_log_lines_carry_run_and_stage(watched: Watched) -> None:
    run = logs.run_id(watched.output.uri)
    told = [
        json.loads(line)
        for line in watched.workers
        if "asked about part" in line or "committed part" in line
    ]
    stages = Counter(line["stage"] for line in told)
    numbers = len(commits.committed(watched.output))
    assert stages == {"pseudo_annotator": numbers, "parity_identifier": numbers, "commit": numbers}
    assert {line["run"] for line in told} == {run} and all(
        line["node_id"] and line["name"] == "mpa_ray" for line in told
    )
    said = [json.loads(line) for line in watched.driver.splitlines() if line.startswith("{")]
    ends = [line for line in said if "61 of 61 images" in line["message"]]
    assert [(line["run"], line["stage"]) for line in ends] == [(run, "annotate_and_identify")]


BOARD = json.loads((ROOT / "cluster/grafana/mpa_ray.json").read_text())


def rays_own() -> str:
    """The panels of Ray's own boards, which name the metrics it exports."""
    import ray.dashboard.modules.metrics.dashboards.default_dashboard_panels as panels

    return Path(panels.__file__).read_text()


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda panel: panel["title"])
def test_a_panel_asks_for_metrics_that_are_there(panel: dict[str, Any]) -> None:
    queries = [target["expr"] for target in panel["targets"]]
    assert queries
    for query in queries:
        names = set(METRIC.findall(query))
        assert names, query
        for name in names:
            assert name in exported() if name.startswith("ray_mpa_") else name in rays_own(), name
        for metric, selector in re.findall(r"(ray_mpa_\w+)\{([^}]*)\}", query):
            _, _, tags = telemetry.METRICS[metric.removeprefix("ray_").removesuffix("_total")]
            assert set(re.findall(r"(\w+)=", selector)) <= {"run", *tags}, query
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


def test_the_board_shows_every_metric() -> None:
    asked = {
        name
        for panel in BOARD["panels"]
        for target in panel["targets"]
        for name in METRIC.findall(target["expr"])
    }
    assert exported() <= asked


def test_the_board_is_one_that_grafana_takes() -> None:
    assert {
        "uid",
        "title",
        "schemaVersion",
        "panels",
        "templating",
        "time",
    } <= BOARD.keys() and "id" not in BOARD
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        assert {"type", "title", "datasource", "gridPos", "targets", "fieldConfig"} <= panel.keys()
        assert panel["type"] in {"timeseries", "stat", "gauge", "bargauge"}
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert max(x for x, _ in cells) < 24 and not cells & taken, (
            f"{panel['title']} lies over another"
        )
        taken |= cells
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables.keys() == {"datasource", "run"}
    assert set(METRIC.findall(variables["run"]["definition"])) <= exported()


def test_prometheus_reads_the_file_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    folder = ROOT / "cluster/grafana"
    [job] = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert [Path(name).name for name in job["file_sd_configs"][0]["files"]] == [
        PROMETHEUS_SERVICE_DISCOVERY_FILE
    ]
    [source] = yaml.safe_load((folder / "provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://127.0.0.1:9090")
    [provider] = yaml.safe_load((folder / "provisioning/dashboards/mpa_ray.yaml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "/etc/grafana/boards"
