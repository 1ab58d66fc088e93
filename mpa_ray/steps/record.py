"""run.json, and what a finished run shows."""

from collections.abc import Sequence
from typing import cast

from mpa_ray.config import Config
from mpa_ray.engines import ledger
from mpa_ray.observability.versions import versions
from mpa_ray.report import parity_picture, summary, write_report
from mpa_ray.report.model_card import model_card
from mpa_ray.report.run_record import RunRecord, evaluation_of, training_of
from mpa_ray.schema import ANNOTATE_AND_IDENTIFY, Verdict
from mpa_ray.stages import commits, step_times
from mpa_ray.steps.names import RUN
from mpa_ray.steps.step import Run, Step


def counts_of(run: Run) -> RunRecord:
    """The counts of what was annotated and identified (`commits.totals`) and the seconds of it.

    Where the run starts from a parity set each row is an annotation, and what it was found in is
    not known.
    """
    if not run.parity:
        found = step_times.record(run.output, ANNOTATE_AND_IDENTIFY) or {}
        return cast(RunRecord, {name: found[name] for name in found if name != "calls"})
    nothing, rows = commits.add_up([]), run.parity.rows
    verdicts = nothing["verdicts"] | {str(Verdict.PARITY): rows}
    return {**nothing, "seconds": 0.0, "annotations": rows, "verdicts": verdicts}


def record_of(run: Run, steps: Sequence[Step]) -> RunRecord:
    """What run.json says, of those of `steps` that are done."""
    finished = step_times.records(run.output)
    of_steps = {step.name: finished[step.name] for step in steps if step.name in finished}
    paid = ledger.accounts(run.config, run.output)
    return {
        "config": run.placement.config.model_dump(mode="json"),
        "versions": versions(),
        "placement": run.placement.record,
        **counts_of(run),
        "training": training_of(of_steps),
        "evaluation": evaluation_of(of_steps),
        "ledger": paid,
        "cost_usd": {
            step: account["cost_usd"] for step, account in paid.items() if "cost_usd" in account
        },
        "stages": {name: one["seconds"] for name, one in finished.items()},
        "wall_seconds": step_times.wall_seconds(finished.values()),
    }


def record_of_rounds(run: Run, found: RunRecord) -> RunRecord:
    """What run.json says of a run of several rounds; `found` is of `rounds.run_rounds`."""
    own = {name: one["seconds"] for name, one in step_times.records(run.output).items()}
    return {
        "config": run.config.model_dump(mode="json"),
        "versions": versions(),
        **found,
        "stages": own | found["stages"],
        "wall_seconds": sum(own.values()) + found["wall_seconds"],
    }


def publish(run: Run, record: RunRecord, config: Config) -> RunRecord:
    """Write what a finished run shows, run.json last. Return `record`.

    Args:
        run: that is finished.
        record: what run.json says.
        config: with what the cluster decided, where that is one thing for all of the run.
    """
    output = run.output
    run.held.check()
    if record["evaluation"]:
        output.write_json("evaluation/metrics.json", record["evaluation"])
    if run.config.rounds == 1 and not run.config.parity:
        parity_picture(output)
    output.write_bytes("model/README.md", model_card(config, record).encode())
    write_report(output, record=record)
    run.held.check()
    output.write_json(RUN, record)
    print(summary.table(record))
    return record
