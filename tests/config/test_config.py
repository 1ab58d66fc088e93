"""The typed configuration: what excludes what, what a run is known by, and that every field says
what it means.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from mpa_ray.config import (
    Config,
    ModelSection,
    Section,
    TrainingSection,
    changes,
    identity,
    keep_used,
    of_identity,
)
from mpa_ray.tasks import TASKS
from mpa_ray.tasks.benchmarks import METRICS
from mpa_ray.tasks.matchers import MATCHERS


def fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")


# Sections say what they are in their docstrings, and one field in its name.
_SPEAKING = {"pl.weight_decay"}


def test_every_field_says_what_it_means() -> None:
    silent = {
        name
        for name, field in fields()
        if not field.description
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    }
    assert silent <= _SPEAKING


def test_the_defaults_are_valid_and_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.pl.workers = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": "x", "demo": {"images": 3}}, "exclude each other: the demo renders its own"),
        ({"annotations": "y", "images": "x"}, "exclude each other: annotations name their images"),
        ({"parity": "y", "images": "x"}, "y' and images exclude each other"),
        ({"parity": "y", "rounds": 2}, "y' and rounds exclude each other"),
        ({"parity": "y", "pl": {"replay": 0.5}}, "y' and pl.replay exclude each other"),
        (
            {"parity": "y", "ablations": ["no_pi_all"]},
            r"y' and ablations=\['no_pi_all'\] exclude each other",
        ),
        (
            {"annotate": {"constrained": True}, "lvlm": {"engine": "transformers"}},
            "it cannot hold a reply to a form",
        ),
        ({"pl": {"node_labels": {"ray.io/market-type": "!spot"}}}, "String should match pattern"),
        (
            {"pl": {"node_labels": {"a": "b"}, "workers": 2, "min_workers": 1}},
            "min_workers=1 and node_labels=.* exclude each other",
        ),
        (
            {"pl": {"replay": 0.5, "train_on": "all"}},
            "replay=0.5 and train_on='all' exclude each other",
        ),
        ({"pl": {"replay": 0.5, "train_on": "consistent"}}, "exclude each other"),
        (
            {"lvlm": {"min_replicas": 3, "max_replicas": 2}},
            "max_replicas=2 is below min_replicas=3",
        ),
        ({"lvlm": {"gpus_per_replica": 1.5}}, "must be a whole number"),
        (
            {"lvlm": {"engine": "transformers", "engine_options": {"seed": 1}}},
            "takes no engine_options",
        ),
        ({"svlm": {"engine": "openai"}}, "its weights must be here too"),
        ({"ablations": ["consistent", "consistent"]}, "names one twice"),
        ({"lvlm": {"modle": "x"}}, "Extra inputs are not permitted"),
        ({"task": "vqa"}, "Input should be 'textvqa'"),
        ({"pl": {"zero_stage": 0}}, "Input should be 1, 2 or 3"),
        ({"pl": {"holdout": 0.5}}, "less than 0.5"),
        ({"pl": {"workers": 0}}, "greater than 0"),
        ({"pl": {"learning_rate": 0}}, "greater than 0"),
        ({"pl": {"learning_rate": float("inf")}}, "finite number"),
        ({"annotate": {"temperature": float("nan")}}, "finite number"),
        ({"annotate": {"top_p": 0}}, "greater than 0"),
        ({"images_per_part": 2.5}, "valid integer"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(settings)


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 2, 8])
def test_gpus_of_a_replica(gpus: float) -> None:
    assert ModelSection(gpus_per_replica=gpus).gpus_per_replica == gpus


def test_replay_belongs_to_the_parity_set() -> None:
    assert TrainingSection(replay=0.5).train_on == "parity"
    assert TrainingSection(train_on="all").replay == 0


def test_missing_settings_are_named_as_flags() -> None:
    assert Config().missing() == ["--images", "--output", "--lvlm.model", "--svlm.model"]
    whole = Config(
        images="i", output="o", lvlm=ModelSection(model="a/b"), svlm=ModelSection(model="c/d")
    )
    assert whole.missing() == []


def test_a_run_is_known_by_what_changes_its_result() -> None:
    base = Config(images="i", output="o")

    def known_by(**settings: Any) -> str:
        return json.dumps(identity(Config.model_validate(base.model_dump() | settings)))

    same = [
        {"output": "elsewhere"},
        {"lvlm": {"images_in_flight": 8, "max_replicas": 4}},
        {"pl": {"workers": 4, "zero_stage": 3, "checkpoint_every": 10}},
        {"ablations": ["consistent"]},
    ]
    other = [
        {"images": "j"},
        {"seed": 1},
        {"task": "chartqa"},
        {"prompt": "Ask."},
        {"lvlm": {"model": "a/b"}},
        {"lvlm": {"max_pixels": 1000}},
        {"annotate": {"temperature": 0}},
        {"identify": {"matcher": "anls"}},
        {"pl": {"batch_size": 8}},
        {"pl": {"holdout": 0.2}},
    ]
    assert {known_by(**settings) for settings in same} == {known_by()}
    assert len({known_by(), *(known_by(**settings) for settings in other)}) == len(other) + 1


def test_the_identity_is_flat_and_names_settings_as_flags_do() -> None:
    flat = identity(Config(images="i"))
    assert (
        flat["images"] == str(Path("i").absolute())
        and flat["lvlm.engine"] == "vllm"
        and flat["pl.holdout"] == 0.1
    )
    assert "output" not in flat and "lvlm.max_replicas" not in flat and "pl.workers" not in flat
    assert set(flat) <= {name for name, _ in fields()}


SIGNS = {
    "name": "signs",
    "prompt": "Reply: Question: <question>, Answer: <answer>",
    "metric": "exact_match",
}


def stored(config: Config) -> Config:
    """The configuration as config.json gives it back."""
    return of_identity(json.loads(json.dumps(identity(config))))


@pytest.mark.parametrize(
    "settings",
    [
        {"task": SIGNS},
        {"task": "chartqa"},
        {"jury": [{"model": "a/b"}, {"model": "gpt-4o", "engine": "openai"}]},
        {
            "lvlm": {"model": "a/b", "engine_options": {"seed": 1}},
            "pl": {"node_labels": {"a": "b"}},
        },
        {"parity": "p"},
        {"demo": {"images": 3}, "ablations": ["human_labels"]},
    ],
)
def test_a_run_is_known_again(settings: dict[str, Any]) -> None:
    config = Config.model_validate(settings)
    assert changes(stored(config), config) == {}
    assert identity(stored(config)) == identity(config)


def test_changes_are_named_with_both_values() -> None:
    own = Config.model_validate({"task": SIGNS})
    changed = own.model_copy(update={"seed": 1})
    assert changes(own, changed) == {"seed": (0, 1)}
    assert changes(Config(), own)["task"] == ("textvqa", None)


@pytest.mark.parametrize("model", ["svlm", "lvlm", "jury"])
def test_a_model_whose_folder_is_gone_is_the_model_it_was(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> Config:
        section = {"model": name}
        return Config.model_validate({model: [section] if model == "jury" else section})

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "models/mine/config.json").touch()
    before = config("models/mine")
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    assert changes(before, config("models/mine")) == {}
    assert changes(before, config("models/other"))


LABELS = {"benchmark": "labels.parquet"}


@pytest.mark.parametrize(
    ("trained", "now", "differing"),
    [
        ((), {"ablations": ["few_shot_full"], "labels": LABELS, "few_shot": 10}, []),
        (("no_pi_all",), {"ablations": ["no_pi_all", "human_labels"], "labels": LABELS}, []),
        (
            ("human_labels",),
            {"ablations": ["human_labels"], "labels": LABELS},
            ["labels.benchmark"],
        ),
        (
            ("human_labels",),
            {"ablations": ["few_shot_lora"], "labels": LABELS, "few_shot": 10},
            ["labels.benchmark"],
        ),
        (
            ("few_shot_full",),
            {"ablations": ["few_shot_lora"], "labels": LABELS, "few_shot": 10},
            ["few_shot", "labels.benchmark"],
        ),
        (("few_shot_full",), {"few_shot": 10}, []),
        (("human_labels",), {"ablations": ["no_pi_all"]}, []),
    ],
)
def test_labels_are_compared_once_a_comparison_was_trained_on_them(
    trained: tuple[str, ...], now: dict[str, Any], differing: list[str]
) -> None:
    before = Config.model_validate({"labels": {"benchmark": "others.parquet"}})
    assert sorted(changes(before, Config.model_validate(now), trained=trained)) == differing


def test_labels_that_were_used_stay_where_a_call_names_none() -> None:
    before = Config.model_validate({"labels": LABELS, "few_shot": 10})
    kept = keep_used(Config(), before, {"few_shot_full"})
    assert (kept.labels, kept.few_shot) == (before.labels, 10)
    assert keep_used(Config(), before, {"human_labels"}).few_shot == 100, (
        "which that comparison does not read"
    )
    assert keep_used(Config(), before, {"no_pi_all"}) == Config()
    again = Config.model_validate({"ablations": ["human_labels"], "labels": LABELS})
    assert keep_used(again, before, {"human_labels"}) == again


def test_tasks_name_what_there_is() -> None:
    for task in TASKS.values():
        assert task.matcher in MATCHERS and task.metric in METRICS
        assert "Question: <question>, Answer: <answer>" in task.prompt
