"""Algorithm 1 of the paper, from images to an aligned S-VLM, with everything it left on the way.

Each step leaves a record when it is done (`mpa_ray.stages`), and a call on the same output goes on with the first step that has none.
Parts of the first step have commits of their own (`mpa_ray.parts`).
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import ValidationError

from mpa_ray import (
    attempts,
    benchmark,
    engines,
    families,
    ledger,
    logs,
    models,
    one_actor,
    parts,
    placement,
    rounds,
    stages,
    stopping,
    summary,
    telemetry,
)
from mpa_ray.config import LABELED_ARMS, Config, ModelSection, changes, identity, keep_used, of_identity
from mpa_ray.errors import ConfigurationError, NothingToTeach, RunError
from mpa_ray.evaluate import evaluate
from mpa_ray.forgetting import learned_and_forgotten
from mpa_ray.inputs.sources import Source, parity_set, refuse_output_among_images, source_of
from mpa_ray.jury import identify_jury
from mpa_ray.lease import Lease, lease
from mpa_ray.model_card import model_card
from mpa_ray.own_answer import answer_own
from mpa_ray.parity_identifier import identify
from mpa_ray.parity_leveler import Arm, arms, level, settings_of, training_folders
from mpa_ray.placement import capacity
from mpa_ray.placement.shared_folders import refuse_unshared
from mpa_ray.progress import Progress, Watch, not_yet, say, training_line
from mpa_ray.pseudo_annotator import annotate
from mpa_ray.ray_session import ray_session
from mpa_ray.report import parity_picture, write_report
from mpa_ray.schema import CHANGES, Verdict
from mpa_ray.side_by_side import side_by_side
from mpa_ray.storage import Folder
from mpa_ray.training import tracking
from mpa_ray.versions import versions

_CONFIG = "config.json"
_RUN = "run.json"


def run(config: Config) -> dict[str, Any]:
    """Runs, or goes on with, the run in `config.output`. Gives back what is in its run.json.

    Raises:
        ConfigurationError: an input is missing or unfit, or the output holds another run; nothing was loaded.
        RunError: the run cannot go on; what is finished stays.
    """
    output = Folder.at(config.output)
    before = _check_output(config, output)
    if before:
        config = keep_used(config, before, _trained_on_labels(output))
    record = output.read_json(_RUN) if output.exists(_RUN) else None
    if record and {arm.name for arm in arms(config)} <= record["training"].keys():
        say(f"{output.uri} is finished; this is what it holds")
        print(summary.table(record))
        return record
    _check_inputs(config)
    refuse_output_among_images(config, output)
    with lease(output) as held:
        if config.rounds > 1:
            return _run_rounds(config, output, held)
        return _run(_with_earlier_arms(config, record) if record else config, output, held)


def _with_earlier_arms(config: Config, record: dict[str, Any]) -> Config:
    """Comparisons may be added to a finished run; those it has stay in its record."""
    earlier = [name for name in record["training"] if name != "mpa"]
    return config.model_copy(update={"ablations": tuple(dict.fromkeys([*earlier, *config.ablations]))})


def _run_rounds(config: Config, output: Folder, held: Lease) -> dict[str, Any]:
    """The run of a configuration with several rounds; each of them is a run of its own in rounds/<k>/."""
    asked_for = identity(config)
    config = _with_demo_inputs(config, output, held)
    shares = rounds.split(config, output)
    output.write_json(_CONFIG, asked_for)
    found = rounds.run_rounds(config, output, shares=shares, run=run, held=held)
    own = {name: one["seconds"] for name, one in stages.records(output).items()}
    record = {"config": config.model_dump(mode="json"), "versions": versions(), **found}
    record |= {"stages": own | found["stages"], "wall_seconds": sum(own.values()) + found["wall_seconds"]}
    held.check()
    output.write_json("evaluation/metrics.json", record["evaluation"])
    _publish(config, output, record, held)
    print(rounds.table(record["rounds"]))
    return record


def _run(config: Config, output: Folder, held: Lease) -> dict[str, Any]:
    logs.in_driver(telemetry.run_id(output))
    asked_for = identity(config)
    config = _without_holdout(config) if config.parity else _with_demo_inputs(config, output, held)
    if config.parity:
        source, given = None, parity_set(config, output)
        say(f"input: a parity set of {given.rows:,} rows")
    else:
        source = source_of(config, output)
        say(f"input: {source.rows:,} {source.unit} in {source.parts:,} parts")
    if config.evaluate.benchmark:
        benchmark.prepare(config.evaluate, output.child("evaluation/questions"), predictions=output.child("evaluation/predictions"))
    # From here on the output belongs to this configuration; an input that was refused leaves it free.
    output.write_json(_CONFIG, asked_for)
    stopping.go_on(output)
    attempts.forget(output)
    output.delete_unfinished()
    ledger.require_budget(output, config.lvlm)
    with ray_session():
        refuse_unshared(output, config, source.first_file if source else given.first_file)
        config, placed = _place(config, source)
        with logs.stage(stages.ANNOTATE):
            data = annotate_and_identify(config, output, source, held) if source else _given(given.rows)
        record = partial(_record, config, output, placed, data)
        try:
            _refuse_nothing(data, output)
            trained = {arm.name: _train(arm, config, output, held) for arm in arms(config)}
        except NothingToTeach as error:
            error.record = record({}, [])
            write_report(output, record=error.record)
            raise
        evaluation = _ask_trained(config, output, trained, held)
    held.check()
    if source:
        parity_picture(output)
    found = record(trained, evaluation)
    _publish(config, output, found, held)
    return found


def _record(
    config: Config,
    output: Folder,
    placed: dict[str, Any],
    data: dict[str, Any],
    trained: dict[str, dict[str, Any]],
    evaluation: list[dict[str, Any]],
) -> dict[str, Any]:
    """What run.json says."""
    paid = ledger.accounts(config, output)
    finished = stages.records(output)
    return {
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "placement": placed,
        **data,
        "training": trained,
        "evaluation": evaluation,
        "ledger": paid,
        "cost_usd": {step: account["cost_usd"] for step, account in paid.items() if "cost_usd" in account},
        "stages": {name: one["seconds"] for name, one in finished.items()},
        "wall_seconds": stages.wall_seconds(finished.values()),
    }


def _publish(config: Config, output: Folder, record: dict[str, Any], held: Lease) -> None:
    """Writes what a finished run shows, run.json last."""
    output.write_bytes("model/README.md", model_card(config, record).encode())
    write_report(output, record=record)
    attempts.forget(output)
    held.check()
    output.write_json(_RUN, record)
    print(summary.table(record))


def _without_holdout(config: Config) -> Config:
    """A parity set holds nothing that the S-VLM had right, so no row held out of it could tell what was forgotten."""
    return config.model_copy(update={"pl": config.pl.model_copy(update={"holdout": 0.0})})


def _given(rows: int) -> dict[str, Any]:
    """The counts of a run that starts from a parity set: each row is an annotation, and what it was found in is not known."""
    nothing = parts.add_up([])
    return nothing | {"seconds": 0.0, "annotations": rows, "verdicts": nothing["verdicts"] | {str(Verdict.PARITY): rows}}


def _place(config: Config, source: Source | None) -> tuple[Config, dict[str, Any]]:
    """The configuration with what the cluster decides filled in, and the record of it for run.json."""
    placed = capacity.placed(config, _asked(config, source))
    for line in placed.lines:
        say(line)
    return placed.config, placed.record


def _asked(config: Config, source: Source | None) -> list[str]:
    """The models that are asked while images are annotated and identified."""
    return [name for name in placement.models_of(config) if name != "lvlm" or source.needs_lvlm] if source else []


def check(config: Config, output: Folder) -> None:
    """Everything that can be refused before a model loads.

    Raises:
        ConfigurationError: with a line that names the thing and the fix.
    """
    _check_output(config, output)
    _check_inputs(config)
    refuse_output_among_images(config, output)


def _check_inputs(config: Config) -> None:
    if config.images and not Folder.at(config.images).exists():
        raise ConfigurationError(f"images={config.images!r} does not exist; give a folder or prefix of images, Parquet files or tars")
    tracking.check(config.pl.tracking)
    _check_models(config)


def _check_models(config: Config) -> None:
    asked = {"lvlm": config.lvlm} if config.asks_lvlm else {}
    for flag, model in {**asked, **{f"jury.{number}": juror for number, juror in enumerate(config.jury)}}.items():
        if model.engine == "openai":
            models.check_api(flag, model)
        elif ":" in model.engine:
            # What its model's name means is known to it alone.
            engines.own(model.engine)
        else:
            models.check(f"{flag}.model", model.model)
            families.check(f"{flag}.model", model, trained=False)
    if ":" in config.svlm.engine:
        engines.own(config.svlm.engine)
    models.check("svlm.model", config.svlm.model)
    families.check("svlm.model", config.svlm, trained=True)
    _warn_of_size(config.svlm, families.count_parameters(config.svlm))


def _check_output(config: Config, output: Folder) -> Config | None:
    """What the run in `output` was asked for; None where there is none yet."""
    if not output.exists():
        return None
    if not output.exists(_CONFIG):
        if output.names():
            raise ConfigurationError(f"output={config.output!r} holds other files and no run; give an empty or new folder")
        return None
    try:
        before = of_identity(output.read_json(_CONFIG))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise ConfigurationError(
            f"output={config.output!r} holds a run of another version of mpa_ray (it differs in {fields}); give another output"
        ) from error
    differing = changes(before, config, trained=_trained_on_labels(output))
    if differing:
        listed = "; ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in differing.items())
        raise ConfigurationError(f"output={config.output!r} holds another run: {listed}. Give another output, or the settings of that run")
    return before


def _trained_on_labels(output: Folder) -> set[str]:
    """The comparisons on human labels whose training has begun."""
    return {arm for arm in LABELED_ARMS if output.exists(f"stages/train_{arm}.json") or output.exists(f"checkpoints/{arm}")}


def _warn_of_size(svlm: ModelSection, parameters: int | None) -> None:
    warning = families.size_warning(svlm, parameters)
    if warning:
        say(warning)


def _with_demo_inputs(config: Config, output: Folder, held: Lease) -> Config:
    """The demo renders its images and its benchmark into the output; every other run has its own."""
    if not config.demo.images:
        return config
    from mpa_ray.demo import inputs

    inputs_folder = output.child("inputs")
    images, questions = config.demo.images, config.demo.questions
    rendered = partial(inputs.write, inputs_folder, task=config.task, images=images, questions=questions, seed=config.seed)
    found = stages.once(output, "demo_inputs", rendered, held)
    if LABELED_ARMS & set(config.ablations):
        labels = partial(inputs.write_labels, inputs_folder, task=config.task, count=images, seed=config.seed)
        found |= stages.once(output, "demo_labels", labels, held)
    say(f"demo: {images:,} unlabeled images and a benchmark of {questions:,} questions in {inputs_folder.uri}")
    labeled = config.evaluate.model_copy(update={"benchmark": found["benchmark"]})
    labels_section = config.labels.model_copy(update={"benchmark": found.get("labels")})
    return config.model_copy(update={"images": found["images"], "evaluate": labeled, "labels": labels_section})


def annotate_and_identify(config: Config, output: Folder, source: Source, held: Lease) -> dict[str, Any]:
    """PA and PI as one stream; PI alone, or the L-VLM's own answers and PI, where annotations are given. Gives back the counts and the
    seconds."""
    done = parts.committed(output)
    todo = [number for number in range(source.parts) if number not in done]
    before = parts.totals(output)
    _refuse_too_many(before, config, output, source)
    if todo:
        finished = parts.rows_of_source(before, annotated=source.is_annotated)
        stage = "identify" if source.is_annotated else "annotate and identify"
        progress = Progress(stage, source.rows, unit=source.unit, done=finished, quarantined=sum(before["quarantined"].values()))
        counted = {name: before[name] for name in ("images", "annotations", "quarantined_images", "quarantined")}
        asked = [placement.models_of(config)[name] for name in _asked(config, source)]
        needed = placement.bundles(asked)
        capacity.wait_for(
            needed,
            what=stage,
            mend=capacity.advice({name: placement.models_of(config)[name] for name in _asked(config, source)}),
            patience_s=config.cluster.patience_s,
        )
        watched = telemetry.Run(config, output, listed=source.rows, done=finished)
        say(f"{stage}: loading {' and '.join(model.model for model in asked)}" + (f"; {finished:,} {source.unit} are done" if done else ""))
        read = partial(stopping.read_unless_stopped, read=source.read, output=output, schema=source.schema)
        rows = parts.dataset_of(todo, read)
        rows = _asked_about(rows, config, output, source)
        commit = partial(parts.commit_part, output=output, call=time.time())
        rows = rows.map_batches(commit, batch_size=None, batch_format="pyarrow", **parts.COMMITTING)
        rows.set_name("annotate_and_identify")
        tables = rows.iter_batches(batch_size=None, batch_format="pyarrow")
        with (
            stages.clock(output, stages.ANNOTATE, held),
            Watch(progress.waiting, stage=f"{stage}, loading"),
            Watch(partial(capacity.shortage, needed, what=stage), stage="nodes"),
        ):
            for counts in (json.loads(row) for table in tables for row in table.column("commit").to_pylist()):
                held.check()
                progress.add(
                    parts.rows_of_source(counts, annotated=source.is_annotated), quarantined=sum(counts["quarantined"].values())
                )
                watched.committed(counts, done=progress.done)
                counted = _sum(counted, counts)
                _refuse_too_many(counted, config, output, source)
    data = parts.totals(output) if todo else before
    covered = parts.rows_of_source(data, annotated=source.is_annotated)
    stopping.raise_if_stopped(output, f"{covered:,} of {source.rows:,} {source.unit} are done and kept")
    _refuse_incomplete(data, output, source)
    _refuse_too_many(data, config, output, source)
    stopping.forget(output)
    attempts.forget(output)
    return data | {"seconds": stages.finish(output, stages.ANNOTATE, {}, held)["seconds"]}


def _asked_about(rows: Any, config: Config, output: Folder, source: Source) -> Any:
    """The stages between reading and committing."""
    if config.identify.in_one_actor:
        return one_actor.annotate_and_identify(rows, config, output)
    if source.needs_lvlm:
        rows = answer_own(rows, config, output) if source.is_annotated else annotate(rows, config, output)
    return identify(identify_jury(rows, config, output), config, output)


def _sum(before: dict[str, Any], commit: dict[str, Any]) -> dict[str, Any]:
    return {
        name: dict(Counter(value) + Counter(commit[name])) if isinstance(value, dict) else value + commit[name]
        for name, value in before.items()
    }


def _refuse_too_many(counts: dict[str, Any], config: Config, output: Folder, source: Source) -> None:
    """Judges what is quarantined so far, alike on a first call and on a resume, before models load and when the last part is there."""
    lost, of = parts.share_quarantined(counts, annotated=source.is_annotated)
    if of >= config.max_quarantined_after and lost > config.max_quarantined * of:
        reason, count = max(counts["quarantined"].items(), key=lambda item: item[1])
        raise RunError(
            f"{lost:,} of {of:,} {source.unit} ({100 * lost / of:.1f}%) are quarantined, more than"
            f" max_quarantined={config.max_quarantined} allows; {reason} leads with {count:,}. See {output.uri}/quarantine; fix the cause"
            " and use a new output, or raise --max_quarantined and run the same command"
        )


_PARTS_NAMED = 5


def _refuse_incomplete(data: dict[str, Any], output: Folder, source: Source) -> None:
    """A run is complete when every part of its source is committed, and only then."""
    missing = sorted(set(range(source.parts)) - parts.committed(output))
    if missing:
        named = ", ".join(map(str, missing[:_PARTS_NAMED])) + (" ..." if len(missing) > _PARTS_NAMED else "")
        raise RunError(
            f"{len(missing):,} of {source.parts:,} parts were done and are not in {output.uri}/commits (part {named}): do all nodes share"
            " that folder? The same command does these parts again"
        )
    covered = parts.rows_of_source(data, annotated=source.is_annotated)
    if covered != source.rows:
        raise RunError(
            f"the commits in {output.uri}/commits are about {covered:,} {source.unit} and the source has {source.rows:,}: files of this"
            " output were changed or are of another run; use a new output"
        )


def _refuse_nothing(data: dict[str, Any], output: Folder) -> None:
    verdicts = ", ".join(f"{name} {count:,}" for name, count in data["verdicts"].items())
    if not data["annotations"]:
        leading = "; ".join(f"{name} {count:,}" for name, count in data["quarantined"].items())
        raise NothingToTeach(
            f"all {data['images']:,} images were quarantined ({leading}); see {output.uri}/quarantine, mend the cause, and use a new output"
        )
    if not data["verdicts"][Verdict.PARITY]:
        raise NothingToTeach(
            f"no parity sample among {data['annotations']:,} annotations ({verdicts}): there is nothing the L-VLM can teach the S-VLM here,"
            f" so nothing is trained. Look at {output.uri}/judgements; try another L-VLM, another prompt, or more images"
        )


def model_folder(output: Folder, arm: str) -> Folder:
    """Where an arm's S-VLM goes: model/ is MPA's, models/<arm>/ those for comparison."""
    return output.child("model") if arm == "mpa" else output.child(f"models/{arm}")


def _train(arm: Arm, config: Config, output: Folder, held: Lease) -> dict[str, Any]:
    """Trains an arm."""
    target = model_folder(output, arm.name)
    work = output.child("checkpoints")

    def training() -> dict[str, Any]:
        say(f"train {arm.name}: collecting rows")
        folders = training_folders(arm, output, config)
        watched = _training_line(work.child(arm.name), arm.name, telemetry.run_id(output), config)
        own = config.model_copy(update={"pl": settings_of(arm, config)})
        curve = output.child(f"tensorboard/{arm.name}")
        tracked = tracking.Tracking(names=config.pl.tracking, folder=curve, run=f"{telemetry.run_id(output)}-{arm.name}")
        with Watch(watched, stage=f"train_{arm.name}"):
            result = level(own, folders, name=arm.name, target=target, work=work, tracking=tracked)
        work.child(arm.name).delete_folder()
        if families.count_parameters(config.svlm) is None:
            _warn_of_size(config.svlm, result["parameters"])
        say(f"train {arm.name}: {result['samples']:,} samples, final loss {result['loss']:.3f}, {result['seconds']:.0f} s in the loop")
        return {"loop_seconds" if key == "seconds" else key: value for key, value in result.items()}

    return stages.once(output, f"train_{arm.name}", training, held)


def _training_line(work: Folder, name: str, run: str, config: Config) -> Callable[[], str | None]:
    """What tells how far a training is that begins now."""
    began = time.monotonic()
    # A call that was interrupted has left its own.
    earlier = work.read_json("progress.json") if work.exists("progress.json") else None

    def line() -> str | None:
        state = work.read_json("progress.json") if work.exists("progress.json") else None
        if state is None:
            return not_yet(f"train {name}: starting", began)
        fewest = placement.training_bundles(config.pl, config.pl.min_workers or config.pl.workers or 1)
        lost = capacity.shortage(fewest, what=f"train {name}", labels=config.pl.node_labels)
        if lost:
            return lost
        if state == earlier:
            return not_yet(f"train {name}: starting", began)
        telemetry.show_training(run, name, state)
        return f"train {name}: {training_line(state)}"

    return line


def _svlm(config: Config, target: Folder) -> Any:
    return config.svlm.model_copy(update={"model": target.uri, "revision": None})


def _ask_trained(config: Config, output: Folder, trained: dict[str, dict[str, Any]], held: Lease) -> list[dict[str, Any]]:
    """Asks the models about the labeled benchmark, before and after, and MPA's own S-VLM about the held-out rows. Gives back the scores;
    what was learned and forgotten goes into `trained`."""
    contestants = {"zero_shot": config.svlm} | {name: _svlm(config, model_folder(output, name)) for name in trained}
    if config.evaluate.lvlm:
        contestants["lvlm"] = config.lvlm
    evaluations = {f"evaluate_{name}": partial(_evaluate, name, contestants[name], config, output) for name in contestants}
    work = evaluations if config.evaluate.benchmark else {}
    if config.pl.holdout:
        work["holdout_mpa"] = partial(_ask_held_out, contestants["mpa"], config, output)
    asked = side_by_side(lambda name: stages.once(output, name, work[name], held), work, at_once=config.evaluate.models_at_once)
    done = dict(zip(work, asked, strict=True))
    if config.pl.holdout:
        change = done.pop("holdout_mpa")
        # A record of an earlier version does not know of all of them.
        trained["mpa"]["holdout"] = {name: change[name] for name in CHANGES if name in change}
        if change["forgotten"] > change["learned"]:
            say(
                f"held out: MPA forgot more than it learned ({change['forgotten']:,} against {change['learned']:,} of the held-out rows)."
                f" The S-VLM it came from, {config.svlm.model}, is the better one there; try --pl.replay 0.5 in a new output"
            )
    scores = [score for found in done.values() for score in found["scores"]]
    if scores:
        output.write_json("evaluation/metrics.json", scores)
    return scores


def _evaluate(name: str, model: ModelSection, config: Config, output: Folder) -> dict[str, Any]:
    say(f"evaluate {name}: asking {model.model}")
    return {"scores": evaluate(model, name=name, config=config, output=output)}


def _ask_held_out(model: ModelSection, config: Config, output: Folder) -> dict[str, Any]:
    say("held out: asking MPA's S-VLM again")
    return learned_and_forgotten(model, name="mpa", config=config, output=output)
