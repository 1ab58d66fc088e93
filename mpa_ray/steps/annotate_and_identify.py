"""PA and PI as one stream of parts, each committed once."""

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from mpa_ray.config import Config, LocalModelSection
from mpa_ray.engines import ledger
from mpa_ray.errors import NothingToTeach, RunError
from mpa_ray.images import parts
from mpa_ray.images.sources import Source
from mpa_ray.observability import logs, telemetry
from mpa_ray.observability.progress import Progress, Watch, say
from mpa_ray.parity_identifier import identifier, identify
from mpa_ray.placement import capacity, place
from mpa_ray.pseudo_annotator import annotate, annotator
from mpa_ray.schema import Verdict
from mpa_ray.stages import commits, early_stop
from mpa_ray.stages.commits import Commit, Counts
from mpa_ray.stages.jury import ask_jury
from mpa_ray.stages.lvlm_answer import answer_own
from mpa_ray.stages.partial_parts import delete_partial_parts
from mpa_ray.stages.row_worker import RowStage, map_rows_with_model
from mpa_ray.stages.shared_actor import both_rows
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

if TYPE_CHECKING:
    from ray.data import Dataset


def annotate_and_identify(config: Config, output: Folder, source: Source, held: Lease) -> Counts:
    """Do PA and PI as one stream; where annotations are given, PI alone, or the L-VLM's own answers
    and PI. Return the counts of all parts (`commits.totals`).

    Args:
        config: of the run, with nothing left open of what the cluster decides.
        output: the run's folder; parts that are committed there are not done again.
        source: the parts to do.
        held: the lease on the output.

    Raises:
        RunError: an engine stopped for a reason that stays, too many rows are quarantined, or parts
            are missing in the end.
    """
    done = commits.committed(output)
    todo = [number for number in range(source.parts) if number not in done]
    data = commits.totals(output)
    _refuse_too_many(data, config, output, source)
    if todo:
        _do_parts(todo, data, config, output, source, held)
        data = commits.totals(output)
    covered = commits.rows_of_source(data, annotated=source.is_annotated)
    early_stop.raise_if_stopped(
        output, f"{covered:,} of {source.rows:,} {source.unit} are done and kept"
    )
    _refuse_incomplete(data, output, source)
    _refuse_too_many(data, config, output, source)
    delete_partial_parts(output)
    return data


def asked_models(config: Config, source: Source) -> dict[str, LocalModelSection]:
    """The models that are asked, by the names of their sections."""
    models = place.models_of(config)
    return {name: models[name] for name in models if name != "lvlm" or source.needs_lvlm}


def _do_parts(
    todo: list[int],
    before: Counts,
    config: Config,
    output: Folder,
    source: Source,
    held: Lease,
) -> None:
    """Do the parts `todo`, and watch what their commits add up to; `before` is of those done."""
    stage = "identify" if source.is_annotated else "annotate and identify"
    finished = commits.rows_of_source(before, annotated=source.is_annotated)
    asked = asked_models(config, source)
    needed = place.bundles(list(asked.values()))
    capacity.wait_for(
        needed, what=stage, fix=capacity.advice(asked), patience_s=config.cluster.patience_s
    )
    loading = f"{stage}: loading {' and '.join(model.model for model in asked.values())}"
    say(loading + (f"; {finished:,} {source.unit} are done" if finished else ""))
    progress = Progress(
        stage,
        source.rows,
        unit=source.unit,
        done=finished,
        quarantined=sum(before["quarantined"].values()),
    )
    costs = partial(ledger.costs, config, output)
    run = logs.run_id(output.uri)
    watched = telemetry.Run(run, listed=source.rows, done=finished, costs=costs)
    counted = before
    with (
        Watch(progress.waiting, stage=f"{stage}, loading"),
        Watch(partial(capacity.shortage, needed, what=stage), stage="nodes"),
    ):
        for commit in _commits(todo, config, output, source):
            held.check()
            progress.add(
                commits.rows_of_source(commit, annotated=source.is_annotated),
                quarantined=sum(commit["quarantined"].values()),
            )
            watched.committed(commit, done=progress.done)
            counted = commits.add_up([counted, commit])
            _refuse_too_many(counted, config, output, source)


def _commits(todo: list[int], config: Config, output: Folder, source: Source) -> Iterator[Commit]:
    """The commit of each part, as soon as it is written: read, annotate, identify, commit."""
    read = partial(
        early_stop.read_unless_stopped, read=source.read, output=output, schema=source.schema
    )
    rows = _asked_about(parts.dataset_of(todo, read), config, output, source)
    commit = partial(commits.commit_part, output=output, call=time.time())
    rows = rows.map_batches(commit, batch_size=None, batch_format="pyarrow", **commits.COMMITTING)
    rows.set_name("annotate_and_identify")
    for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(json.loads, table.column("commit").to_pylist())


def _asked_about(rows: Any, config: Config, output: Folder, source: Source) -> Any:
    """The stages between reading and committing."""
    if config.identify.in_one_actor:
        return in_shared_actor(rows, config, output)
    if source.needs_lvlm:
        rows = (
            answer_own(rows, config, output)
            if source.is_annotated
            else annotate(rows, config, output)
        )
    return identify(ask_jury(rows, config, output), config, output)


def _refuse_too_many(counts: Counts, config: Config, output: Folder, source: Source) -> None:
    """Judges what is quarantined so far, alike on a first call and on a resume, before models load
    and when the last part is there.
    """
    lost, of = commits.share_quarantined(counts, annotated=source.is_annotated)
    if of >= config.max_quarantined_after and lost > config.max_quarantined * of:
        reason, count = max(counts["quarantined"].items(), key=lambda item: item[1])
        raise RunError(
            f"{lost:,} of {of:,} {source.unit} ({100 * lost / of:.1f}%) are quarantined, more than"
            f" max_quarantined={config.max_quarantined} allows; {reason} leads with {count:,}. See"
            f" {output.uri}/quarantine; fix the cause"
            " and use a new output, or raise --max_quarantined and run the same command"
        )


_PARTS_NAMED = 5


def _refuse_incomplete(data: Counts, output: Folder, source: Source) -> None:
    """A run is complete when every part of its source is committed, and only then."""
    missing = sorted(set(range(source.parts)) - commits.committed(output))
    if missing:
        named = ", ".join(map(str, missing[:_PARTS_NAMED])) + (
            " ..." if len(missing) > _PARTS_NAMED else ""
        )
        raise RunError(
            f"{len(missing):,} of {source.parts:,} parts were done and are not in"
            f" {output.uri}/commits (part {named}): do all nodes share"
            " that folder? The same command does these parts again"
        )
    covered = commits.rows_of_source(data, annotated=source.is_annotated)
    if covered != source.rows:
        raise RunError(
            f"the commits in {output.uri}/commits are about {covered:,} {source.unit} and the"
            f" source has {source.rows:,}: files of this"
            " output were changed or are of another run; use a new output"
        )


def refuse_nothing(data: Counts, output: Folder) -> None:
    """Raise NothingToTeach where there is no parity sample."""
    verdicts = ", ".join(f"{name} {count:,}" for name, count in data["verdicts"].items())
    if not data["annotations"]:
        leading = "; ".join(f"{name} {count:,}" for name, count in data["quarantined"].items())
        raise NothingToTeach(
            f"all {data['images']:,} images were quarantined ({leading}); see"
            f" {output.uri}/quarantine, fix the cause, and use a new output"
        )
    if not data["verdicts"][Verdict.PARITY]:
        raise NothingToTeach(
            f"no parity sample among {data['annotations']:,} annotations ({verdicts}): there is"
            " nothing the L-VLM can teach the S-VLM here,"
            f" so nothing is trained. Look at {output.uri}/judgements; try another L-VLM, another"
            " prompt, or more images"
        )


def in_shared_actor(dataset: "Dataset", config: Config, output: Folder | None = None) -> "Dataset":
    """SOURCE_ROW parts in, JUDGED_ROW parts out: what `annotate` and then `identify` give. `output`
    is explained at `map_rows_with_model`.
    """
    first, second = annotator(config), identifier(config)
    stage = RowStage(
        name="AnnotatorAndIdentifier",
        work=partial(both_rows, annotate=first.work, identify=second.work),
        models=[*first.models, *second.models],
        asks=[*first.asks, *second.asks],
        schema=second.schema,
    )
    return map_rows_with_model(dataset, stage, config=config, output=output)
