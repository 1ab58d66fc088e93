"""Algorithm 1 of the paper, from images to an aligned S-VLM: the steps of a run, and doing them.

Each step leaves a record when it is done (`mpa_ray.stages.step_times`), and a call on the same
output resumes at the first step that has none. Parts of the step that annotates and identifies have
commits of their own (`mpa_ray.stages.commits`).
"""

from mpa_ray.config import Config, identity
from mpa_ray.errors import ConfigurationError, NothingToTeach
from mpa_ray.images.sources import refuse_output_among_images
from mpa_ray.observability import logs
from mpa_ray.observability.progress import say
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.placement.shared_folders import refuse_unshared
from mpa_ray.report import summary, write_report
from mpa_ray.report.run_record import RunRecord
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY, TRAIN_STEP
from mpa_ray.stages import early_stop, step_times
from mpa_ray.stages.commits import Counts
from mpa_ray.steps import rounds
from mpa_ray.steps.annotate_and_identify import annotate_and_identify
from mpa_ray.steps.checks import check_inputs
from mpa_ray.steps.evaluate_models import contestants, evaluate_step, held_out_step
from mpa_ray.steps.names import CONFIG
from mpa_ray.steps.prepare import (
    continued,
    demo_steps,
    input_steps,
    resolved,
    take_over,
)
from mpa_ray.steps.record import publish, record_of, record_of_rounds
from mpa_ray.steps.step import Run, Step, follow
from mpa_ray.steps.train_arm import train_step
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import lease
from mpa_ray.training.arms import arms


def steps(run: Run) -> list[Step]:
    """Algorithm 1. What is resumed, the records in `stages/`, the times in run.json and in the
    report, and the guide's table of steps follow from this list.
    """
    config = run.config
    found = [*demo_steps(run), *input_steps(run)]
    if not config.parity:
        found.append(
            Step(
                name=ANNOTATE_AND_IDENTIFY,
                reads=("manifest",),
                writes=("annotations", "judgements", "parity", "quarantine", "commits"),
                work=annotate_and_identify_run,
                checks_again=True,
            )
        )
    found += [train_step(arm) for arm in arms(config)]
    found += [evaluate_step(name) for name in contestants(config)]
    if config.pl.holdout:
        found.append(held_out_step())
    return found


def annotate_and_identify_run(run: Run) -> Counts:
    """Algorithms 2 and 3 on every part of the source."""
    assert run.source is not None
    return annotate_and_identify(run.placement.config, run.output, run.source, run.held)


def run(config: Config) -> RunRecord:
    """Run or resume the run in `config.output`. Return what is in its run.json.

    Raises:
        ConfigurationError: an input is missing or unfit, or the output holds another run; nothing
            was loaded.
        RunError: the run cannot continue; what is finished stays.
    """
    output = Folder.at(config.output)
    asked_for, record = continued(config, output)
    if record and {arm.name for arm in arms(asked_for)} <= record["training"].keys():
        say(f"{output.uri} is finished; this is what it holds")
        print(summary.table(record))
        return record
    check_inputs(asked_for)
    refuse_output_among_images(asked_for, output)
    with lease(output, say=say) as held:
        config = resolved(asked_for, output)
        call = Run(asked_for=asked_for, config=config, output=output, held=held)
        return _in_rounds(call) if config.rounds > 1 else _run(call)


def _run(run: Run) -> RunRecord:
    logs.in_driver(logs.run_id(run.output.uri))
    todo = steps(run)
    follow([step for step in todo if not step.needs_ray], run)
    take_over(run, todo)
    with ray_session():
        early_stop.begin_call(run.output)
        refuse_unshared(run.output, run.config, run.first_file)
        for line in run.placement.lines:
            say(line)
        if run.placement.refused and any(_trains(step, run.output) for step in todo):
            raise ConfigurationError(run.placement.refused)
        try:
            follow([step for step in todo if step.needs_ray], run)
        except NothingToTeach as error:
            error.record = record_of(run, todo)
            write_report(run.output, record=error.record)
            raise
    return publish(run, record_of(run, todo), run.placement.config)


def _trains(step: Step, output: Folder) -> bool:
    return step.name.startswith(TRAIN_STEP) and step_times.record(output, step.name) is None


def _in_rounds(call: Run) -> RunRecord:
    """The run of a configuration with several rounds; each of them is a run of its own, of all
    steps, in rounds/<k>/.
    """
    follow(demo_steps(call), call)
    shares = rounds.split(call.config, call.output)
    call.output.write_json(CONFIG, identity(call.asked_for))
    found = rounds.run_rounds(call.config, call.output, shares=shares, run=run, held=call.held)
    record = publish(call, record_of_rounds(call, found), call.config)
    print(rounds.table(record["rounds"]))
    return record
