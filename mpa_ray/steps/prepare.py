"""What a run starts from: its configuration on this output, and its inputs."""

from collections.abc import Iterable

from mpa_ray.config import LABELED_ARMS, Config, identity, keep_used
from mpa_ray.demo import inputs
from mpa_ray.engines import ledger
from mpa_ray.images import benchmark
from mpa_ray.observability.progress import say
from mpa_ray.report.run_record import RunRecord
from mpa_ray.stages.step_times import STEPS
from mpa_ray.steps.checks import check_output, trained_on_labels
from mpa_ray.steps.names import CONFIG, RUN
from mpa_ray.steps.step import Record, Run, Step
from mpa_ray.storage.folder import Folder

_INPUTS = "inputs"


def continued(config: Config, output: Folder) -> tuple[Config, RunRecord | None]:
    """`config` as the run in `output` continues with it, and the run's record where it was finished
    before. Comparisons may be added to a run, and those it has stay, with the settings that they
    have used.

    Raises:
        ConfigurationError: the output holds another run.
    """
    before = check_output(config, output)
    if not before:
        return config, None
    record = output.read_json(RUN) if output.exists(RUN) else None
    config = keep_used(config, before, trained_on_labels(output))
    earlier = [name for name in record["training"] if name != "mpa"] if record else []
    arms = tuple(dict.fromkeys([*earlier, *config.ablations]))
    return config.model_copy(update={"ablations": arms}), record


def resolved(config: Config, output: Folder) -> Config:
    """`config` with what follows from it and the output: where the demo's inputs are; and no
    held-out rows of a parity set, which holds nothing that the S-VLM had right.
    """
    if config.parity:
        return config.model_copy(update={"pl": config.pl.model_copy(update={"holdout": 0.0})})
    if not config.demo.images:
        return config
    folder = f"{output.uri}/{_INPUTS}"
    labels = f"{folder}/{inputs.LABELS}" if _renders_labels(config) else None
    evaluate = config.evaluate.model_copy(update={"benchmark": f"{folder}/{inputs.BENCHMARK}"})
    return config.model_copy(
        update={
            "images": f"{folder}/{inputs.IMAGES}",
            "evaluate": evaluate,
            "labels": config.labels.model_copy(update={"benchmark": labels}),
        }
    )


def _renders_labels(config: Config) -> bool:
    return bool(config.demo.images and LABELED_ARMS & set(config.ablations))


def demo_steps(run: Run) -> list[Step]:
    """Rendering the inputs of a run with the demo's preset; none for any other."""
    if not run.config.demo.images:
        return []
    rendered = (f"{_INPUTS}/{inputs.IMAGES}", f"{_INPUTS}/{inputs.BENCHMARK}")
    labels = (f"{_INPUTS}/{inputs.LABELS}",)
    reads = ("demo.images",)
    steps = [Step(name="demo_inputs", reads=reads, writes=rendered, work=render, needs_ray=False)]
    if _renders_labels(run.config):
        steps.append(
            Step(
                name="demo_labels", reads=reads, writes=labels, work=render_labels, needs_ray=False
            )
        )
    return steps


def render(run: Run) -> Record:
    """Render the demo's images and its benchmark."""
    config, folder = run.config, run.output.child(_INPUTS)
    images, questions = config.demo.images, config.demo.questions
    say(
        f"demo: {images:,} unlabeled images and a benchmark of {questions:,} questions in"
        f" {folder.uri}"
    )
    inputs.write(
        folder, task=config.task_spec.name, images=images, questions=questions, seed=config.seed
    )
    return {"images": images, "questions": questions}


def render_labels(run: Run) -> Record:
    """Render labeled questions for the comparisons on human labels."""
    config, folder = run.config, run.output.child(_INPUTS)
    count = config.demo.images
    inputs.write_labels(folder, task=config.task_spec.name, count=count, seed=config.seed)
    return {"questions": count}


def input_steps(run: Run) -> list[Step]:
    """Listing the images and reading the benchmark once, and checking at each call that they are
    the same.
    """
    config = run.config
    given = "parity" if config.parity else "annotations" if config.annotations else "images"
    listing = Step(
        name="list_inputs",
        reads=(given,),
        writes=("manifest",),
        work=list_inputs,
        needs_ray=False,
        checks_again=True,
    )
    reading = Step(
        name="read_benchmark",
        reads=("evaluate.benchmark",),
        writes=("evaluation/questions",),
        work=read_benchmark,
        needs_ray=False,
        checks_again=True,
    )
    return [listing, reading] if config.evaluate.benchmark else [listing]


def list_inputs(run: Run) -> Record:
    """List what is annotated, judged or trained on, or check that it is what was listed."""
    if run.parity:
        say(f"input: a parity set of {run.parity.rows:,} rows")
        return {"rows": run.parity.rows, "parts": run.parity.files}
    assert run.source is not None
    say(f"input: {run.source.rows:,} {run.source.unit} in {run.source.parts:,} parts")
    return {"rows": run.source.rows, "parts": run.source.parts}


def read_benchmark(run: Run) -> Record:
    """Read the benchmark's questions into the output, or check that they are the same."""
    parts = benchmark.prepare(
        run.config.evaluate,
        run.output.child("evaluation/questions"),
        predictions=run.output.child("evaluation/predictions"),
    )
    return {"parts": parts}


def take_over(run: Run, steps: Iterable[Step]) -> None:
    """Begin with this call: from here on the output belongs to this configuration. An input that
    was refused before has left it free.
    """
    run.output.write_json(CONFIG, identity(run.asked_for))
    run.output.write_json(STEPS, [step.name for step in steps])
    run.output.delete_unfinished()
    ledger.require_budget(run.output, run.config.lvlm)
