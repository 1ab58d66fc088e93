"""Log lines that carry run and stage."""

import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mpa_ray.errors import ConfigurationError
from mpa_ray.observability import logs, progress


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The process as it is before anything was set up, and afterwards as it was."""
    level, propagate = logs.LOG.level, logs.LOG.propagate
    handlers, logs.LOG.handlers = logs.LOG.handlers, []
    yield
    logs.LOG.handlers = handlers
    logs.LOG.setLevel(level)
    logs.LOG.propagate = propagate
    logs._run = logs._process_stage = ""


def test_a_worker_writes_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # pytest's own are not there in a worker.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.in_worker("run1-ab", "pseudo_annotator")
    logs.in_worker("run1-ab", "pseudo_annotator")
    logs.LOG.info("asked about part %d", 7)
    logs.LOG.error("a reply said: %s", "x\n2026 INFO run1-ab commit: forged")
    logs.LOG.error("a server said: %s", "\x1b]0;owned\x07\u202e")
    *lines, said = capsys.readouterr().err.splitlines()
    assert said.endswith("a server said: ⟨U+001B⟩]0;owned⟨U+0007⟩⟨U+202E⟩")
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO run1-ab pseudo_annotator: asked about part 7",
        "ERROR run1-ab pseudo_annotator: a reply said: x\\n2026 INFO run1-ab commit: forged",
    ]


def test_a_driver_says_things_for_people_and_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.in_driver("run1-ab")
    progress.say("nobody asked for JSON")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("MPA_LOG_FORMAT", "json")
    logs.in_driver("run1-ab")
    with logs.stage("train_mpa"):
        progress.say('loss 0.5 of "x"')
    logs.LOG.warning("later", extra={"part": 3})
    said = capsys.readouterr()
    assert [line.partition("] ")[2] for line in said.out.splitlines()] == ['loss 0.5 of "x"']
    first, second = (json.loads(line) for line in said.err.splitlines())
    assert (first["run"], first["stage"], first["message"], first["levelname"]) == (
        "run1-ab",
        "train_mpa",
        'loss 0.5 of "x"',
        "INFO",
    )
    assert (second["stage"], second["part"]) == ("", 3)


def test_stages_at_the_same_time_keep_their_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPA_LOG_FORMAT", "json")
    monkeypatch.setattr(progress, "_EVERY_S", 0.01)
    logs.in_driver("r")

    def evaluate(name: str) -> None:
        with logs.stage(name), progress.Watch(lambda: f"watching {name}"):
            for _ in range(20):
                progress.say(f"asking {name}")
                time.sleep(0.005)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(evaluate, ["a", "b"]))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(line["message"].endswith(line["stage"]) for line in lines) and {
        line["message"] for line in lines
    } == {
        "asking a",
        "asking b",
        "watching a",
        "watching b",
    }


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPA_LOG_FORMAT", "xml")
    with pytest.raises(
        ConfigurationError,
        match="MPA_LOG_FORMAT='xml' is no format of log lines; set it to plain or json",
    ):
        logs.in_driver("r")
