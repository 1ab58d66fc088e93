"""PA and PI as one stream of parts, each committed once."""

import json
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from mpa_ray.config import Config
from mpa_ray.engines import ledger
from mpa_ray.errors import NothingToTeach, RunError
from mpa_ray.images import parts
from mpa_ray.images.sources import Source
from mpa_ray.observability import logs, telemetry
from mpa_ray.observability.progress import Progress, Watch, say
from mpa_ray.parity_identifier import identify, identifying
from mpa_ray.placement import capacity, place
from mpa_ray.pseudo_annotator import annotate, annotating
from mpa_ray.schema import JUDGED_ROW, Verdict
from mpa_ray.stages import commits, crash_blame, early_stop, step_times
from mpa_ray.stages.jury import identify_jury
from mpa_ray.stages.lvlm_answer import answer_own
from mpa_ray.stages.row_worker import ask_model
from mpa_ray.stages.shared_actor import AnnotatorAndIdentifier, both_rows
from mpa_ray.steps.prepare import asked_models
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease

if TYPE_CHECKING:
    from ray.data import Dataset


def annotate_and_identify(
    config: Config, output: Folder, source: Source, held: Lease
) -> dict[str, Any]:
    """PA and PI as one stream; PI alone, or the L-VLM's own answers and PI, where annotations are
    given. Gives back the counts and the seconds.
    """
    done = commits.committed(output)
    todo = [number for number in range(source.parts) if number not in done]
    before = commits.totals(output)
    _refuse_too_many(before, config, output, source)
    if todo:
        finished = commits.rows_of_source(before, annotated=source.is_annotated)
        stage = "identify" if source.is_annotated else "annotate and identify"
        progress = Progress(
            stage,
            source.rows,
            unit=source.unit,
            done=finished,
            quarantined=sum(before["quarantined"].values()),
        )
        counted = {
            name: before[name]
            for name in ("images", "annotations", "quarantined_images", "quarantined")
        }
        asked = [place.models_of(config)[name] for name in asked_models(config, source)]
        needed = place.bundles(asked)
        capacity.wait_for(
            needed,
            what=stage,
            fix=capacity.advice(
                {name: place.models_of(config)[name] for name in asked_models(config, source)}
            ),
            patience_s=config.cluster.patience_s,
        )
        watched = telemetry.Run(
            logs.run_id(output.uri),
            listed=source.rows,
            done=finished,
            costs=partial(ledger.costs, config, output),
        )
        say(
            f"{stage}: loading {' and '.join(model.model for model in asked)}"
            + (f"; {finished:,} {source.unit} are done" if done else "")
        )
        read = partial(
            early_stop.read_unless_stopped, read=source.read, output=output, schema=source.schema
        )
        rows = parts.dataset_of(todo, read)
        rows = _asked_about(rows, config, output, source)
        commit = partial(commits.commit_part, output=output, call=time.time())
        rows = rows.map_batches(
            commit, batch_size=None, batch_format="pyarrow", **commits.COMMITTING
        )
        rows.set_name("annotate_and_identify")
        tables = rows.iter_batches(batch_size=None, batch_format="pyarrow")
        with (
            step_times.clock(output, step_times.ANNOTATE, held),
            Watch(progress.waiting, stage=f"{stage}, loading"),
            Watch(partial(capacity.shortage, needed, what=stage), stage="nodes"),
        ):
            for counts in (
                json.loads(row) for table in tables for row in table.column("commit").to_pylist()
            ):
                held.check()
                progress.add(
                    commits.rows_of_source(counts, annotated=source.is_annotated),
                    quarantined=sum(counts["quarantined"].values()),
                )
                watched.committed(counts, done=progress.done)
                counted = _sum(counted, counts)
                _refuse_too_many(counted, config, output, source)
    data = commits.totals(output) if todo else before
    covered = commits.rows_of_source(data, annotated=source.is_annotated)
    early_stop.raise_if_stopped(
        output, f"{covered:,} of {source.rows:,} {source.unit} are done and kept"
    )
    _refuse_incomplete(data, output, source)
    _refuse_too_many(data, config, output, source)
    early_stop.forget(output)
    crash_blame.forget(output)
    return data | {"seconds": step_times.finish(output, step_times.ANNOTATE, {}, held)["seconds"]}


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
    return identify(identify_jury(rows, config, output), config, output)


def _sum(before: dict[str, Any], commit: dict[str, Any]) -> dict[str, Any]:
    return {
        name: dict(Counter(value) + Counter(commit[name]))
        if isinstance(value, dict)
        else value + commit[name]
        for name, value in before.items()
    }


def _refuse_too_many(
    counts: dict[str, Any], config: Config, output: Folder, source: Source
) -> None:
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


def _refuse_incomplete(data: dict[str, Any], output: Folder, source: Source) -> None:
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


def refuse_nothing(data: dict[str, Any], output: Folder) -> None:
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
    is explained at `ask_model`.
    """
    return ask_model(
        dataset,
        AnnotatorAndIdentifier,
        partial(both_rows, annotate=annotating(config), identify=identifying(config)),
        models=[config.lvlm, config.svlm],
        schema=JUDGED_ROW,
        config=config,
        output=output,
    )
