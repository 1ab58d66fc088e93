"""Algorithm 1 of the paper, from images to an aligned S-VLM, with everything it left on the way.

Each step leaves a record when it is done (`mpa_ray.stages.step_times`), and a call on the same
output resumes at the first step that has none. Parts of the first step have commits of their own
(`mpa_ray.stages.commits`).
"""

from functools import partial
from typing import Any

from mpa_ray.config import Config, identity, keep_used
from mpa_ray.engines import ledger
from mpa_ray.errors import NothingToTeach
from mpa_ray.images import benchmark
from mpa_ray.images.sources import parity_set, refuse_output_among_images, source_of
from mpa_ray.observability import logs
from mpa_ray.observability.progress import say
from mpa_ray.observability.versions import versions
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.placement.shared_folders import refuse_unshared
from mpa_ray.report import parity_picture, summary, write_report
from mpa_ray.stages import crash_blame, early_stop, step_times
from mpa_ray.steps import rounds
from mpa_ray.steps.annotate_and_identify import annotate_and_identify, refuse_nothing
from mpa_ray.steps.checks import check_inputs, check_output, trained_on_labels
from mpa_ray.steps.evaluate_models import ask_trained
from mpa_ray.steps.names import CONFIG, RUN
from mpa_ray.steps.prepare import (
    counts_of_parity_set,
    with_demo_inputs,
    with_placement,
    without_holdout,
)
from mpa_ray.steps.record import publish, record_of
from mpa_ray.steps.train_arm import train_arm
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease, lease
from mpa_ray.training.arms import arms


def run(config: Config) -> dict[str, Any]:
    """Runs or resumes the run in `config.output`. Gives back what is in its run.json.

    Raises:
        ConfigurationError: an input is missing or unfit, or the output holds another run; nothing
            was loaded.
        RunError: the run cannot go on; what is finished stays.
    """
    output = Folder.at(config.output)
    before = check_output(config, output)
    if before:
        config = keep_used(config, before, trained_on_labels(output))
    record = output.read_json(RUN) if output.exists(RUN) else None
    if record and {arm.name for arm in arms(config)} <= record["training"].keys():
        say(f"{output.uri} is finished; this is what it holds")
        print(summary.table(record))
        return record
    check_inputs(config)
    refuse_output_among_images(config, output)
    with lease(output, say=say) as held:
        if config.rounds > 1:
            return _run_rounds(config, output, held)
        return _run(_with_earlier_arms(config, record) if record else config, output, held)


def _with_earlier_arms(config: Config, record: dict[str, Any]) -> Config:
    """Comparisons may be added to a finished run; those it has stay in its record."""
    earlier = [name for name in record["training"] if name != "mpa"]
    return config.model_copy(
        update={"ablations": tuple(dict.fromkeys([*earlier, *config.ablations]))}
    )


def _run_rounds(config: Config, output: Folder, held: Lease) -> dict[str, Any]:
    """The run of a configuration with several rounds; each of them is a run of its own in
    rounds/<k>/.
    """
    asked_for = identity(config)
    config = with_demo_inputs(config, output, held)
    shares = rounds.split(config, output)
    output.write_json(CONFIG, asked_for)
    found = rounds.run_rounds(config, output, shares=shares, run=run, held=held)
    own = {name: one["seconds"] for name, one in step_times.records(output).items()}
    record = {"config": config.model_dump(mode="json"), "versions": versions(), **found}
    record |= {
        "stages": own | found["stages"],
        "wall_seconds": sum(own.values()) + found["wall_seconds"],
    }
    held.check()
    output.write_json("evaluation/metrics.json", record["evaluation"])
    publish(config, output, record, held)
    print(rounds.table(record["rounds"]))
    return record


def _run(config: Config, output: Folder, held: Lease) -> dict[str, Any]:
    logs.in_driver(logs.run_id(output.uri))
    asked_for = identity(config)
    config = without_holdout(config) if config.parity else with_demo_inputs(config, output, held)
    if config.parity:
        source, given = None, parity_set(config, output)
        say(f"input: a parity set of {given.rows:,} rows")
    else:
        source = source_of(config, output)
        say(f"input: {source.rows:,} {source.unit} in {source.parts:,} parts")
    if config.evaluate.benchmark:
        benchmark.prepare(
            config.evaluate,
            output.child("evaluation/questions"),
            predictions=output.child("evaluation/predictions"),
        )
    # From here on the output belongs to this configuration; an input that was refused leaves it
    # free.
    output.write_json(CONFIG, asked_for)
    early_stop.go_on(output)
    crash_blame.forget(output)
    output.delete_unfinished()
    ledger.require_budget(output, config.lvlm)
    with ray_session():
        refuse_unshared(output, config, source.first_file if source else given.first_file)
        config, placed = with_placement(config, source)
        with logs.stage(step_times.ANNOTATE):
            data = (
                annotate_and_identify(config, output, source, held)
                if source
                else counts_of_parity_set(given.rows)
            )
        record = partial(record_of, config, output, placed, data)
        try:
            refuse_nothing(data, output)
            trained = {arm.name: train_arm(arm, config, output, held) for arm in arms(config)}
        except NothingToTeach as error:
            error.record = record({}, [])
            write_report(output, record=error.record)
            raise
        evaluation = ask_trained(config, output, trained, held)
    held.check()
    if source:
        parity_picture(output)
    found = record(trained, evaluation)
    publish(config, output, found, held)
    return found
