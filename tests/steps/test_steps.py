"""The list of steps: each reads what an earlier one has written, and the guide says the same."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpa_ray import pipeline
from mpa_ray.config import Config
from mpa_ray.config.parse import validate
from mpa_ray.errors import RunError
from mpa_ray.report.status import status
from mpa_ray.stages import step_times
from mpa_ray.steps import prepare
from mpa_ray.steps.step import InTurn, Run, Step, follow
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

GUIDE = Path(__file__).parents[2] / "docs" / "output.md"
MODEL = {"model": "x", "engine": "sure_engine:load", "gpus_per_replica": 0}


def run_of(root: Path, **settings: Any) -> Run:
    tree = {"output": str(root / "out"), "lvlm": MODEL, "svlm": MODEL | {"model": "y"}}
    asked_for = validate(tree | settings)
    output = Folder.at(asked_for.output)
    config = prepare.resolved(asked_for, output)
    return Run(asked_for=asked_for, config=config, output=output, held=Lease())


def run_of_the_demo(root: Path) -> Run:
    return run_of(
        root,
        demo={"images": 8, "questions": 4},
        ablations=("human_labels",),
        evaluate={"lvlm": True},
    )


RUNS = {
    "demo": run_of_the_demo,
    "images": lambda root: run_of(root, images="/data/images", ablations=("no_pi_all",)),
    "annotations": lambda root: run_of(root, annotations="/data/annotations"),
    "parity": lambda root: run_of(root, parity="/data/parity"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_step_reads_a_setting_or_what_an_earlier_step_has_written(
    name: str, tmp_path: Path
) -> None:
    run = RUNS[name](tmp_path)
    written: set[str] = set()
    for step in pipeline.steps(run):
        for read in step.reads:
            assert read in written or _is_set(read, run.config), f"{step.name} reads {read}"
        assert not written & set(step.writes), f"{step.name} writes what another has written"
        written |= set(step.writes)


def _is_set(name: str, config: Config) -> bool:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return bool(value)


def test_names_of_steps_are_different(tmp_path: Path) -> None:
    names = [step.name for step in pipeline.steps(run_of_the_demo(tmp_path))]
    assert len(set(names)) == len(names) and names[0] == "demo_inputs"


def test_the_guide_lists_the_steps(tmp_path: Path) -> None:
    rows = {}
    for step in pipeline.steps(run_of_the_demo(tmp_path)):
        name, reads, writes = _for_the_guide(step)
        rows[name] = f"| `{name}` | {reads} | {writes} |"
    text = GUIDE.read_text()
    missing = [row for row in rows.values() if row not in text]
    assert not missing, "\n".join(["docs/output.md lacks:", *missing])


def _for_the_guide(step: Step) -> tuple[str, str, str]:
    """A step as the guide has it: one row for all comparisons, and one for all models asked."""
    kind, _, model = step.name.partition("_")
    reads, writes = (
        ", ".join(f"`{name}`" for name in names) for names in (step.reads, step.writes)
    )
    if kind == "evaluate":
        reads, shown = "`evaluation/questions`, the model", "<model>"
    elif kind == "train" and model != "mpa":
        reads, shown = "`judgements`, or `labels.benchmark`", "<comparison>"
    else:
        return step.name, reads, writes
    return f"{kind}_{shown}", reads, writes.replace(model, shown)


def test_steps_are_done_once_unless_they_check_again(tmp_path: Path) -> None:
    run, done = run_of(tmp_path, images="/data/images"), []

    def step(name: str, **options: Any) -> Step:
        work = lambda run: done.append(name) or {"made": name}  # noqa: E731
        return Step(name=name, reads=(), writes=(), work=work, **options)

    steps = [step("a"), step("b", checks_again=True), step("c"), step("d")]
    follow(steps, run)
    first = step_times.records(run.output)
    assert sorted(done) == ["a", "b", "c", "d"] and first["c"]["made"] == "c"
    follow(steps, run)
    assert step_times.records(run.output)["a"] == first["a"] and done[4:] == ["b"]
    assert list(step_times.records(run.output))[:2] == ["a", "b"]


def in_turn(work: Callable[[Run, Sequence[str]], Iterator[dict[str, Any]]]) -> InTurn:
    """One lane for "a" and "c", and one for "b"."""
    lanes = lambda run, names: [[name for name in names if name != "b"], ["b"]]  # noqa: E731
    return InTurn(lanes=lanes, work=work)


def test_a_step_of_its_own_is_done_in_the_callers_thread(tmp_path: Path) -> None:
    """Ctrl-C and the signal of a lost lease reach the main thread alone; training ends by them."""
    run, threads = run_of(tmp_path, images="/data/images"), {}

    def train(run: Run) -> dict[str, Any]:
        threads["train"] = threading.current_thread()
        return {}

    def ask(run: Run, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for name in names:
            threads[name] = threading.current_thread()
            yield {}

    work = in_turn(ask)
    asking = [Step(name=name, reads=(), writes=(), work=work) for name in "abc"]
    follow([Step(name="train", reads=(), writes=(), work=train), *asking], run)
    assert threads["train"] is threading.current_thread()
    assert threads["a"] is threads["c"] is not threading.current_thread()


def test_what_failed_in_a_lane_is_done_again_and_what_came_before_it_is_not(tmp_path: Path) -> None:
    run, begun = run_of(tmp_path, images="/data/images"), []
    failing = ["c"]

    def ask(run: Run, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        begun.append(list(names))
        for name in names:
            if name in failing:
                raise RunError("no engine")
            yield {"asked": name}

    work = in_turn(ask)
    steps = [Step(name=name, reads=(), writes=(), work=work) for name in "abc"]
    with pytest.raises(RunError, match="no engine"):
        follow(steps, run)
    failing.clear()
    follow(steps, run)
    assert begun in ([["a", "c"], ["b"], ["c"]], [["a", "c"], ["c"], ["b"]])
    assert [step_times.record(run.output, n)["asked"] for n in "abc"] == ["a", "b", "c"]


def test_what_is_to_be_done_is_told(tmp_path: Path) -> None:
    run = run_of(tmp_path, images="/data/images")
    todo = pipeline.steps(run)
    prepare.take_over(run, todo)
    run.output.write_json("stages/list_inputs.json", {"seconds": 1.0})
    lines = status(run.output).splitlines()
    assert lines[-1] == "to do: annotate_and_identify, train_mpa, holdout_mpa"
