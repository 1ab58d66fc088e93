"""The first hour on a GPU: what it computes, holds and serves, in one dated result with ratios.

    python benchmarks/gpu.py --bare        torch and transformers alone, DeepSpeed if it is there
    python benchmarks/gpu.py               all of it, some 30 minutes
    python benchmarks/gpu.py --tiny        the same code with tiny models, on the CPU too

Parts, each in a process of its own with a limit of time; where one fails, its error stands in the
result and the others go on:

- matrix_product, patch_embedding, activations, training_step (bare):
  benchmarks/torch_figures.py.
- engine_start: loading the L-VLM's engine, for the first time and with compiled kernels at hand.
- serving: benchmarks/inference.py's ways with Qwen2-VL-7B's shape: images a second and GPU of ours,
  bare vLLM, two passes of `ray.data.llm`, vLLM's engine in a class of `map_batches`, and
  transformers; runs of the vision encoder and hits of the KV cache.
- training: benchmarks/training.py's ways with Qwen2-VL-2B's shape: tokens a second and MFU of the
  Parity Leveler beside a bare DeepSpeed loop and transformers' Trainer.

Weights are random: no file is fetched. The report goes to benchmarks/results/.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("pydantic") is None:
    # The package's first import needs it, and what a bare run uses of the package does not.
    package = types.ModuleType("mpa_ray")
    package.__path__ = [str(ROOT / "mpa_ray")]
    sys.modules["mpa_ray"] = package

import result_file  # noqa: E402
import torch_figures  # noqa: E402
from torch_figures import Row, Where  # noqa: E402

Options = argparse.Namespace


def _serving_options(given: Options, scratch: str) -> Options:
    """Those of benchmarks/inference.py."""
    return Options(
        model="overhead" if given.tiny else "qwen2-vl-7b",
        images=given.images or (32 if given.tiny else 512),
        in_flight=16 if given.tiny else 128,
        part=32,
        cards=int(given.device == "cuda"),
        preamble=_preamble(),
        engine_options="{}",
        scratch=scratch,
    )


def _preamble() -> str:
    from mpa_ray.tasks import prompts

    return prompts.PREAMBLE


def _model(name: str, given: Options, scratch: str) -> None:
    """Random weights into `scratch`/model, by a process that leaves the GPU when they are there."""
    script = Path(__file__).with_name("random_model.py")
    subprocess.run(
        [sys.executable, str(script), name, f"{scratch}/model", given.device], check=True
    )


def engine_start(given: Options) -> Iterator[Row]:
    """Twice, each time in a new process: vLLM keeps what it compiled."""
    import inference

    with tempfile.TemporaryDirectory() as scratch:
        options = _serving_options(given, scratch)
        _model(options.model, given, scratch)
        for start in ("first", "second"):
            yield {"start": start} | inference.in_a_process("start", options, scratch)


def serving(given: Options) -> Iterator[Row]:
    """Ours first, so that each other way has its ratio as soon as it is measured."""
    import inference

    ways = ("ours", "bare", "ray_data_llm", "ray_data_class", "transformers")
    with tempfile.TemporaryDirectory() as scratch:
        options = _serving_options(given, scratch)
        _model(options.model, given, scratch)
        ours = None
        for way in ways:
            try:
                found = inference.in_a_process(way, options, scratch, limit_s=given.way_s)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                yield {"way": way, "error": _last_line(error)}
                continue
            rate = options.images / found["seconds"] / max(1, options.cards)
            ours = rate if way == "ours" else ours
            row: Row = {"way": way, "images/s and GPU": round(rate, 3)}
            if ours is not None:
                row["ours is, times"] = result_file.cut(ours / rate, 3)
            if way == "ours":
                cached = found["second_cached_tokens"] / found["second_prompt_tokens"]
                row["encoder runs an image"] = round(found["encoder_runs"] / options.images, 4)
                row["of the second prompt from the KV cache"] = round(cached, 4)
            yield row


def training(given: Options) -> Iterator[Row]:
    """MFU of the other ways is the Parity Leveler's by the ratio of their tokens: the model and the
    samples are the same.
    """
    import random_model
    import training as ways_to_train

    name = "overhead" if given.tiny else "qwen2-vl-2b"
    options = Options(
        model=name,
        batch=16,
        micro=4,
        cards=int(given.device == "cuda"),
        precision="bfloat16",
        checkpointing=True,
        readers=1 if given.tiny else 4,
        port=29571,
    )
    with tempfile.TemporaryDirectory() as scratch:
        _model(name, given, scratch)
        side = random_model.SIZES[name].side
        count = given.samples or (32 if given.tiny else 256)
        ways_to_train.write_samples(Path(scratch) / "samples", count, side=side)
        ours: Row | None = None
        for way in ways_to_train.WAYS:
            try:
                found = ways_to_train.in_a_process(way, options, scratch, limit_s=given.way_s)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                yield {"way": way, "error": _last_line(error)}
                continue
            ours = found if way == "ours" else ours
            row: Row = {"way": way, "tokens/s": round(found["tokens_per_second"], 1)}
            if ours is not None:
                ratio = ours["tokens_per_second"] / found["tokens_per_second"]
                row["ours is, times"] = result_file.cut(ratio, 3)
                if ours["mfu"] is not None:
                    row["MFU"] = round(ours["mfu"] / ratio, 4)
            yield row


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[-1][:300]


# With the most seconds that each may take.
BARE: dict[str, tuple[Callable[[Where], Iterator[Row]], int]] = {
    "matrix_product": (torch_figures.matrix_product, 60),
    "patch_embedding": (torch_figures.patch_embedding, 120),
    "activations": (torch_figures.activations, 300),
    # Each in a process of its own: what DeepSpeed has held, it does not let go.
    **(
        {
            f"training_step_zero_{stage}": (partial(torch_figures.training_step, stage=stage), 240)
            for stage in (2, 3)
        }
        if importlib.util.find_spec("deepspeed")
        else {"training_step": (partial(torch_figures.training_step, stage=0), 240)}
    ),
}
FULL: dict[str, tuple[Callable[[Options], Iterator[Row]], int]] = {
    "engine_start": (engine_start, 600),
    "serving": (serving, 1500),
    "training": (training, 900),
}


def in_a_process(part: str, given: Options, limit_s: int) -> tuple[list[Row], str]:
    """The rows of a part, and what ended it early: nothing, where nothing did."""
    options = json.dumps(vars(given) | {"measure": None})
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "--measure", part, "--options", options],
            env=os.environ
            | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
            # A tiny model needs no more.
            | ({} if given.device == "cuda" else {"OMP_NUM_THREADS": "1"}),
            stdout=said,
            stderr=log,
            # With its engines, where the limit ends it.
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        said.seek(0)
        log.seek(0)
        rows = [json.loads(line) for line in said if line.startswith('{"row"')]
        told = log.read()
    if status is None:
        return [found["row"] for found in rows], f"ended after {limit_s} seconds"
    why = "\n".join(told.strip().splitlines()[-5:])[-1000:] or f"status {status}"
    return [found["row"] for found in rows], why if status else ""


def table(rows: list[Row]) -> list[str]:
    """The rows, with every column that one of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        [str(row.get(name, "")).replace("|", "/").replace("\n", " ") for name in columns]
        for row in rows
    ]
    return [f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *lines]]


def report(found: dict[str, dict[str, Any]]) -> str:
    lines = []
    for part, of_part in found.items():
        lines += [f"## {part}", "", f"{of_part['seconds']:.0f} seconds.", ""]
        lines += [*table(of_part["rows"]), ""] if of_part["rows"] else []
        lines += ["Failed:", "", "```", of_part["failed"], "```", ""] if of_part["failed"] else []
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bare", action="store_true", help="what needs neither Ray nor vLLM")
    parser.add_argument("--tiny", action="store_true", help="tiny models: to prove the code")
    parser.add_argument("--parts", nargs="+", choices=[*BARE, *FULL], help="these alone")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], help="without it, a GPU if there is one"
    )
    parser.add_argument("--images", type=int, help="that each way is asked about; without it, 512")
    parser.add_argument("--samples", type=int, help="that each way learns; without it, 256")
    parser.add_argument("--way-s", type=int, default=420, help="the most seconds of a way")
    parser.add_argument("--results", type=Path, default=result_file.RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure, Options(**json.loads(given.options)))
        return
    given.device = given.device or ("cuda" if result_file.gpus() else "cpu")
    if given.device == "cpu" and not given.tiny:
        parser.error("there is no GPU here; --tiny runs the same code with tiny models on the CPU")
    parts = given.parts or [*BARE, *([] if given.bare else FULL)]
    results, given.results = given.results, str(given.results)
    found = {}
    for part in parts:
        began = time.perf_counter()
        rows, failed = in_a_process(part, given, (BARE | FULL)[part][1])
        seconds = time.perf_counter() - began
        found[part] = {"rows": rows, "failed": failed, "seconds": seconds}
        print(f"{part}, {seconds:.0f} seconds", *table(rows), failed, sep="\n", flush=True)
    name = "gpu-bare" if given.bare else "gpu"
    name += "-tiny" if given.tiny else ""
    print(result_file.write(name, report(found), {"parts": found}, folder=results))
    if all(part["failed"] for part in found.values()):
        sys.exit("no part ran to its end")


def measure(part: str, given: Options) -> None:
    """Say the rows of one part as they come."""
    if part in BARE:
        rows = BARE[part][0](Where(device=given.device, tiny=given.tiny))
    else:
        rows = FULL[part][0](given)
    for row in rows:
        print(json.dumps({"row": row}), flush=True)


if __name__ == "__main__":
    main()
