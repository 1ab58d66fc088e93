"""Annotating and self-answering, ours beside what people would use instead, on the same requests,
images and model.

    python benchmarks/inference.py --model prefill --images 96 --rounds 3
    python benchmarks/inference.py --model overhead --images 1024 --rounds 3
    python benchmarks/inference.py --model overhead --images 5000 --rounds 1 \\
        --ways ours --name inference-5000
    python benchmarks/inference.py --model overhead --images 1024 --rounds 3 \\
        --ways ours constrained --name inference-constrained

The requests, the same for every way: for each image the Pseudo Annotator's prompt (24 tokens of
reply), then a question of its own (4 tokens), both with the text that our prompts share after the
image (`--preamble`). Greedy, so that the work is the same. Ways:

- bare: vLLM's async engine, a coroutine an image, nothing else.
- ours: the same two questions as a row's work in the engine actors of Ray Data
  (`mpa_ray.stages.row_worker`), from reading to committed rows.
- ray_data_llm: `ray.data.llm`, one processor for the annotations and then one for the answers, as
  two passes.
- ray_data_class: a class with vLLM's `LLM` in Ray Data's `map_batches`, as in vLLM's own example of
  batch inference on Ray Data, in two passes; only where it is asked for.
- transformers: `generate` in batches, all annotations first and then all answers, as the released
  code of the paper does.
- constrained: ours, with annotations held to their form while they are written
  (`annotate.constrained`); only where it is asked for.

Models are random weights in Qwen2-VL's architecture that never end a reply early: `prefill` has 36
million parameters and 256 image tokens an image, `overhead` 2 million and 16. Each way runs in a
process of its own, all in turn in each round; what is timed begins when the model is loaded. On the
CPU every way has one core for the model. The report goes to benchmarks/results/.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

import encoder_runs
import random_model
import result_file
from mpa_ray.config import Config, ModelSection
from mpa_ray.engines import Sampling
from mpa_ray.images import parts
from mpa_ray.images.sources import source_of
from mpa_ray.models.chat_template import user_prompt
from mpa_ray.models.gpu_memory import USED
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.schema import SOURCE_ROW, Stage
from mpa_ray.stages.row_worker import Ask, Row, RowStage, map_rows_with_model
from mpa_ray.storage.folder import Folder
from mpa_ray.tasks import prompts

ANNOTATING, ANSWERING = Sampling(max_tokens=24), Sampling(max_tokens=4)
_BATCH = 16


def annotation_prompt(preamble: str) -> str:
    return preamble + prompts.SCENE_TEXT


def answering_prompt(preamble: str, image_id: str) -> str:
    return preamble + prompts.ANSWERING.format(
        question=f"What does the sign with number {image_id[:4]} say?"
    )


def images_of(side: int, count: int) -> list[bytes]:
    """`count` JPEGs of `side` pixels a side, each of a noise of its own."""
    found = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.effect_noise((side // 8, side // 8), 40 + number % 80).resize((side, side)).convert(
            "RGB"
        ).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def section(model: str, options: argparse.Namespace) -> ModelSection:
    return ModelSection(
        model=model,
        gpus_per_replica=options.cards,
        cpus_per_replica=_cores(options),
        max_model_len=1024,
        images_in_flight=options.in_flight,
        dtype="bfloat16",
        engine_options=json.loads(options.engine_options),
    )


def _cores(options: argparse.Namespace) -> int:
    """Of an engine actor: one on the CPU, as every way has it; beside a GPU what is left."""
    return max(1, min(8, (os.cpu_count() or 1) - 4)) if options.cards else 1


def start(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of our engine: to load, to its first reply, and to close."""
    from mpa_ray import engines

    [(image_id, data), *_] = inputs(options)
    marks = [time.perf_counter()]
    engine = engines.load(section(model, options).model_copy(update={"engine": "vllm"}))
    marks.append(time.perf_counter())
    asked = engine.ask(
        Image.open(io.BytesIO(data)).convert("RGB"),
        annotation_prompt(options.preamble),
        image_id=image_id,
        sampling=ANSWERING,
    )
    asyncio.run(asked)
    marks.append(time.perf_counter())
    engine.close()
    marks.append(time.perf_counter())
    return {
        name: round(after - before, 2)
        for name, before, after in zip(
            ("load, s", "first reply, s", "close, s"), marks, marks[1:], strict=False
        )
    }


def inputs(options: argparse.Namespace) -> list[tuple[str, bytes]]:
    side = random_model.SIZES[options.model].side
    return [
        (hashlib.sha256(data).hexdigest()[:32], data) for data in images_of(side, options.images)
    ]


def bare(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """vLLM's `AsyncLLM.generate` and nothing else; images are decoded and prompts written
    before.
    """
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=model, disable_log_stats=True, **engine_arguments(model, options)),
        usage_context=UsageContext.LLM_CLASS,
    )
    written = chat_of(model)
    annotating = written(annotation_prompt(options.preamble))
    pictures = [
        (
            image_id,
            Image.open(io.BytesIO(data)).convert("RGB"),
            written(answering_prompt(options.preamble, image_id)),
        )
        for image_id, data in inputs(options)
    ]
    once = {"temperature": 0.0, "output_kind": RequestOutputKind.FINAL_ONLY}
    first, second = (
        SamplingParams(max_tokens=sampling.max_tokens, **once)
        for sampling in (ANNOTATING, ANSWERING)
    )

    async def work() -> float:
        slots = asyncio.Semaphore(options.in_flight)

        async def ask(
            image_id: str, picture: Image.Image, prompt: str, sampling: Any, name: str
        ) -> None:
            request = {
                "prompt": prompt,
                "multi_modal_data": {"image": picture},
                "multi_modal_uuids": {"image": image_id},
            }
            async for _ in engine.generate(request, sampling, request_id=f"{image_id}-{name}"):
                pass

        async def one(image_id: str, picture: Image.Image, answering: str) -> None:
            async with slots:
                await ask(image_id, picture, annotating, first, "first")
                if options.second:
                    await ask(image_id, picture, answering, second, "second")

        await ask("warm", Image.new("RGB", (112, 112)), annotating, second, "warm")
        began = time.perf_counter()
        await asyncio.gather(*(one(*row) for row in pictures))
        return time.perf_counter() - began

    seconds = asyncio.run(work())
    engine.shutdown()
    return {"seconds": seconds}


ROW = pa.schema(
    [*SOURCE_ROW, *((name, pa.float64()) for name in ("began", "prompt_tokens", "cached_tokens"))]
)


async def ask_twice(
    row: Row, ask: Ask, *, preamble: str, form: str | None, second: bool
) -> list[Row]:
    began = time.time()
    await ask(annotation_prompt(preamble), replace(ANNOTATING, form=form))
    if not second:
        return [row | {"began": began, "prompt_tokens": 0, "cached_tokens": 0}]
    reply = await ask(answering_prompt(preamble, row["image_id"]), ANSWERING)
    return [
        row
        | {
            "began": began,
            "prompt_tokens": reply.prompt_tokens,
            "cached_tokens": reply.cached_tokens,
        }
    ]


def write_part(part: pa.Table, *, output: Folder) -> pa.Table:
    """As a run writes what it found: without images."""
    output.write_table(
        parts.part_name(part.column("part")[0].as_py()),
        part.drop_columns(["image"]),
    )
    sums = {
        name: [pc.sum(part.column(name)).as_py()] for name in ("prompt_tokens", "cached_tokens")
    }
    return pa.table(
        sums
        | {
            "began": [pc.min(part.column("began")).as_py()],
            "ended": [time.time()],
        }
    )


def constrained(model: str, options: argparse.Namespace) -> dict[str, Any]:
    return ours(model, options, form=prompts.annotation_form(()))


def ours(model: str, options: argparse.Namespace, form: str | None = None) -> dict[str, Any]:
    """Ray Data with our engine actors, from files to files."""
    images = Path(options.scratch) / "images"
    images.mkdir(exist_ok=True)
    for image_id, data in inputs(options):
        (images / f"{image_id}.jpg").write_bytes(data)
    with tempfile.TemporaryDirectory() as output:
        counted = Path(output, "encoder_runs")
        os.environ[encoder_runs.FILE] = str(counted)
        config = Config(
            images=str(images),
            output=output,
            # Counts the runs of the vision encoder besides.
            lvlm=section(model, options).model_copy(update={"engine": "encoder_runs:load"}),
            svlm=section(model, options),
            images_per_part=options.part,
        )
        folder = Folder.at(output)
        source = source_of(config, folder)
        with ray_session():
            work = partial(ask_twice, preamble=options.preamble, form=form, second=options.second)
            read = parts.dataset_of(list(range(source.parts)), source.read)
            stage = RowStage(
                name="Asker",
                work=work,
                models=[config.lvlm],
                asks=[Stage.PSEUDO_ANNOTATOR],
                schema=ROW,
            )
            rows = map_rows_with_model(read, stage, config=config, output=folder)
            write = partial(write_part, output=folder.child("written"))
            found = rows.map_batches(write, batch_size=None, batch_format="pyarrow").to_pandas()
        runs = int(counted.read_text())
    return {
        # Until the last part is written; then Ray ends the actors, as bare ends its engine.
        "seconds": found["ended"].max() - found["began"].min(),
        "second_prompt_tokens": int(found["prompt_tokens"].sum()),
        "second_cached_tokens": int(found["cached_tokens"].sum()),
        "encoder_runs": runs,
    }


def ray_data_llm(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Two processors of `ray.data.llm` as two passes. Images are decoded before, and the engine's
    options are ours.
    """
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    rows = ray.data.from_items(
        [{"image_id": image_id, "image": data} for image_id, data in inputs(options)],
        override_num_blocks=8,
    )

    def one_pass(prompt: Any, sampling: Sampling) -> float:
        def before(row: Row) -> Row:
            return {
                "prompt": prompt(row["image_id"]),
                "multimodal_data": {"image": Image.open(io.BytesIO(row["image"])).convert("RGB")},
                "sampling_params": {"max_tokens": sampling.max_tokens, "temperature": 0.0},
            }

        config = vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=engine_arguments(model, options),
            batch_size=16,
            max_concurrent_batches=max(2, options.in_flight // 16),
            concurrency=1,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
            **({} if options.cards else {"placement_group_config": {"bundles": [{"CPU": 1}]}}),
        )
        processor = build_processor(
            config,
            preprocess=before,
            postprocess=lambda row: {"taken": row["time_taken_llm"], "ended": time.time()},
        )
        found = processor(rows).to_pandas()
        assert len(found) == options.images
        return float(found["ended"].max() - (found["ended"] - found["taken"]).min())

    written = chat_of(model)
    with ray_session():
        seconds = one_pass(
            lambda image_id: written(annotation_prompt(options.preamble)), ANNOTATING
        )
        if options.second:
            seconds += one_pass(
                lambda image_id: written(answering_prompt(options.preamble, image_id)), ANSWERING
            )
    return {"seconds": seconds}


class Llm:
    """vLLM's offline engine in an actor of `map_batches`; decodes images as they come."""

    def __init__(self, model: str, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(model=model, disable_log_stats=True, **arguments)

    def __call__(self, batch: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        from vllm import SamplingParams

        began = time.time()
        requests = [
            {
                "prompt": prompt,
                "multi_modal_data": {"image": Image.open(io.BytesIO(image)).convert("RGB")},
            }
            for prompt, image in zip(batch["prompt"], batch["image"], strict=True)
        ]
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        replies = self._llm.generate(requests, sampling, use_tqdm=False)
        assert all(len(reply.outputs[0].token_ids) == max_tokens for reply in replies)
        return {"began": [began] * len(replies), "ended": [time.time()] * len(replies)}


def ray_data_class(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Two passes of `map_batches` over a class that holds vLLM's `LLM`."""
    import ray.data

    written = chat_of(model)

    def one_pass(prompt: Any, sampling: Sampling) -> float:
        rows = ray.data.from_items(
            [
                {"prompt": written(prompt(image_id)), "image": data}
                for image_id, data in inputs(options)
            ],
            override_num_blocks=8,
        )
        found = rows.map_batches(
            Llm,
            fn_constructor_args=(model, engine_arguments(model, options)),
            fn_kwargs={"max_tokens": sampling.max_tokens},
            batch_size=options.in_flight,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_gpus=options.cards,
            num_cpus=1,
        ).to_pandas()
        assert len(found) == options.images
        return float(found["ended"].max() - found["began"].min())

    with ray_session():
        seconds = one_pass(lambda image_id: annotation_prompt(options.preamble), ANNOTATING)
        if options.second:
            seconds += one_pass(
                lambda image_id: answering_prompt(options.preamble, image_id), ANSWERING
            )
    return {"seconds": seconds}


def engine_arguments(model: str, options: argparse.Namespace) -> dict[str, Any]:
    on_cpu = {"enforce_eager": True, "distributed_executor_backend": "uni", "block_size": 32}
    on_gpus = {"tensor_parallel_size": options.cards, "gpu_memory_utilization": USED}
    return {
        "max_model_len": 1024,
        "max_num_seqs": options.in_flight,
        "dtype": "bfloat16",
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "enable_prefix_caching": True,
        **(on_gpus if options.cards else on_cpu),
        **json.loads(options.engine_options),
    }


def chat_of(model: str) -> Any:
    """Writes a text as a user's message about an image."""
    from transformers import AutoProcessor

    return partial(user_prompt, AutoProcessor.from_pretrained(model))


def transformers(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """`generate` in batches, in two passes; images are decoded before."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if not options.cards:
        torch.set_num_threads(1)
    device = "cuda" if options.cards else "cpu"
    processor = AutoProcessor.from_pretrained(model)
    loaded = (
        AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
    )
    pictures = [
        (image_id, Image.open(io.BytesIO(data)).convert("RGB"))
        for image_id, data in inputs(options)
    ]

    def one_pass(prompt: Any, sampling: Sampling) -> None:
        for start in range(0, len(pictures), _BATCH):
            batch = pictures[start : start + _BATCH]
            texts = [user_prompt(processor, prompt(image_id)) for image_id, _ in batch]
            shown = [[picture] for _, picture in batch]
            given = processor(
                text=texts, images=shown, padding=True, padding_side="left", return_tensors="pt"
            ).to(device, torch.bfloat16)
            with torch.inference_mode():
                made = loaded.generate(**given, max_new_tokens=sampling.max_tokens, do_sample=False)
            assert made.shape[1] == given["input_ids"].shape[1] + sampling.max_tokens
            processor.batch_decode(made)

    began = time.perf_counter()
    one_pass(lambda image_id: annotation_prompt(options.preamble), ANNOTATING)
    if options.second:
        one_pass(lambda image_id: answering_prompt(options.preamble, image_id), ANSWERING)
    return {"seconds": time.perf_counter() - began}


WAYS = {
    "bare": bare,
    "ours": ours,
    "ray_data_llm": ray_data_llm,
    "transformers": transformers,
    "constrained": constrained,
    "ray_data_class": ray_data_class,
}
_ASKED_FOR = ("constrained", "ray_data_class")


def in_a_process(
    way: str,
    given: argparse.Namespace,
    scratch: str,
    *,
    second: bool = True,
    limit_s: float | None = None,
) -> dict[str, Any]:
    """One measurement, in a process of its own, of the model in `scratch`."""
    on_cpu = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1",
    }
    environment = os.environ | ({} if given.cards else on_cpu)
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        ),
    }
    options = vars(given) | {"way": way, "scratch": scratch, "second": second}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(options)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
    )
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def report(
    results: dict[str, list[dict[str, Any]]],
    first: dict[str, list[dict[str, Any]]],
    given: argparse.Namespace,
) -> tuple[str, dict[str, Any]]:
    rates = {
        way: [given.images / found["seconds"] for found in rounds]
        for way, rounds in results.items()
    }
    middle = {way: median(values) for way, values in rates.items()}
    lines = ["| Way | Images/s, median | of each round | Ours is |", "| --- | --- | --- | --- |"]
    for way, values in rates.items():
        each = ", ".join(result_file.cut(value, 2) for value in values)
        lines.append(
            f"| {way} | {result_file.cut(middle[way], 2)} | {each} |"
            f" {result_file.cut(middle['ours'] / middle[way], 3)} times |"
        )
    counted = results["ours"]
    shares = [found["second_cached_tokens"] / found["second_prompt_tokens"] for found in counted]
    runs = [found["encoder_runs"] / given.images for found in counted]
    summary = {
        "images_per_second": middle,
        "cached_share_of_the_second_call": median(shares),
        "encoder_runs_per_image": median(runs),
    }
    lines += [
        "",
        f"- Vision encoder runs for an image, both calls: {summary['encoder_runs_per_image']:.4f}",
        "- Of the second call's prompt, from the cache:"
        f" {100 * summary['cached_share_of_the_second_call']:.1f}%"
        f" ({counted[-1]['second_cached_tokens'] / given.images:.1f} of"
        f" {counted[-1]['second_prompt_tokens'] / given.images:.1f} tokens)",
    ]
    for way, alone in first.items():
        # Each round's own: a machine's speed drifts.
        costs = [
            both["seconds"] / one["seconds"] - 1
            for both, one in zip(results[way], alone, strict=True)
        ]
        summary[f"second_call_over_first_{way}"] = median(costs)
        each = ", ".join(f"{cost:.3f}" for cost in costs)
        lines.append(f"- The second call costs, of the first ({way}): {median(costs):.3f} ({each})")
    if given.note:
        lines += ["", given.note]
    return "\n".join(lines), summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(random_model.SIZES), default="prefill")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=sorted(WAYS),
        default=[way for way in WAYS if way not in _ASKED_FOR],
        help="ours is always measured",
    )
    parser.add_argument(
        "--in-flight", type=int, default=16, help="images a vLLM engine works on at a time"
    )
    parser.add_argument("--part", type=int, default=32, help="images of a part")
    parser.add_argument(
        "--cards",
        type=int,
        default=result_file.gpus(),
        help="GPUs; 0 is the CPU. Without it, one where there is one",
    )
    parser.add_argument(
        "--preamble", default=prompts.PREAMBLE, help="what both prompts share after the image"
    )
    parser.add_argument(
        "--engine-options",
        default="{}",
        help="further arguments of vLLM's AsyncEngineArgs, as JSON",
    )
    parser.add_argument("--name", help="of the result; without it, inference-MODEL")
    parser.add_argument(
        "--note", default="", help="a line for the report, such as what else the machine was doing"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        options = argparse.Namespace(**json.loads(given.measure))
        measured = start if options.way == "start" else WAYS[options.way]
        print(json.dumps(measured(f"{options.scratch}/model", options)))
        return
    ways = list(dict.fromkeys([*given.ways, "ours"]))
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    first: dict[str, list[dict[str, Any]]] = {way: [] for way in ("bare", "ours") if "bare" in ways}
    with tempfile.TemporaryDirectory() as scratch:
        random_model.build(random_model.SIZES[given.model], Path(scratch) / "model")
        for number in range(given.rounds):
            # In turn, and in the other order each time: a machine's speed drifts.
            for way in ways if number % 2 == 0 else reversed(ways):
                results[way].append(in_a_process(way, given, scratch))
                print(number + 1, way, json.dumps(results[way][-1]), flush=True)
            for way, alone in first.items():
                alone.append(in_a_process(way, given, scratch, second=False))
                print(number + 1, f"{way}, first call alone", json.dumps(alone[-1]), flush=True)
    text, summary = report(results, first, given)
    found = {"summary": summary, "rounds": results, "first_call_alone": first}
    print(result_file.write(given.name or f"inference-{given.model}", text, found))


if __name__ == "__main__":
    main()
