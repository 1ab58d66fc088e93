"""Full fine-tuning of an S-VLM: ours beside a bare DeepSpeed loop and the transformers Trainer, on
the same samples, batches and model.

    python benchmarks/training.py --samples 128 --rounds 3

- ours: `parity_leveler.level`: Ray Train, read ahead, logits of answer positions alone.
- deepspeed: the loop of DeepSpeed's own tutorials: a DataLoader with `--readers` workers, the
  model's own loss over all positions, backward, step.
- trainer: transformers' Trainer with the same DataLoader workers.

Qwen2-VL's architecture with random weights: `--model training` has 24 million, 32,000 tokens of
vocabulary and 64 image tokens an image, `qwen2-vl-2b` the published sizes. float32, AdamW, the
batch and micro-batch of `--batch` and `--micro`, one core for the model. Timed is the loop, in
tokens a second, the first step and reading included and loading the model not. Each way runs in a
process of its own, all in turn in each round. The report goes to benchmarks/results/.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from PIL import Image

import random_model
import result_file
import torch_figures
from mpa_ray.config import Config, ModelSection, TrainingSection
from mpa_ray.parity_leveler import level
from mpa_ray.placement.ray_session import ray_session
from mpa_ray.schema import PARITY
from mpa_ray.storage.folder import Folder


def write_samples(folder: Path, count: int, *, side: int) -> None:
    """A PARITY folder: noise, and questions and answers of different lengths."""
    rows = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.effect_noise((side // 4, side // 4), 40 + number % 80).resize((side, side)).convert(
            "RGB"
        ).save(buffer, "JPEG")
        question = (
            "What does the " + "large red " * (number % 7) + f"sign with number {number} say?"
        )
        row = {
            "image_id": f"{number:08d}",
            "sample_id": f"{number:08d}-0",
            "question": question,
            "answer": f"Road {number} " * (1 + number % 3),
        }
        rows.append(row | {"image": {"bytes": buffer.getvalue(), "path": None}})
    Folder.at(folder).write_table(
        "part-00000000.parquet", pa.Table.from_pylist(rows, schema=PARITY)
    )


def ours(model: str, samples: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        config = Config(
            svlm=ModelSection(model=model, gpus_per_replica=options.cards),
            pl=TrainingSection(
                holdout=0.0,
                batch_size=options.batch,
                micro_batch_size=options.micro,
                learning_rate=1e-5,
                precision=options.precision,
                gradient_checkpointing=options.checkpointing,
                zero_stage=1,
                gpus_per_worker=options.cards,
                cpus_per_worker=options.readers,
                checkpoint_every=10**6,
            ),
        )
        with ray_session():
            target = Folder.at(work).child("model")
            log = level(
                config,
                [Folder.at(samples)],
                name="mpa",
                target=target,
                work=Folder.at(work).child("checkpoints"),
            )
    return {name: log[name] for name in ("tokens_per_second", "mfu")}


def loaded(
    model: str, samples: str, options: argparse.Namespace
) -> tuple[Any, list[dict[str, Any]], Any]:
    """The model, the samples in memory with their images encoded, and what makes a batch of
    them.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mpa_ray.models.chat_template import end_tokens
    from mpa_ray.training.collator import Collator

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = AutoModelForImageTextToText.from_pretrained(
        model, dtype=getattr(torch, options.precision)
    )
    if options.checkpointing:
        network.gradient_checkpointing_enable()
    rows = Folder.at(samples).read_table("part-00000000.parquet").to_pylist()
    return (
        network,
        rows,
        Collator(AutoProcessor.from_pretrained(model), end_tokens=end_tokens(network)),
    )


class Collate:
    """Decodes and makes a batch, in the DataLoader's worker."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        from mpa_ray.training.training_data import Sample

        def sample(row: dict[str, Any]) -> Sample:
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
            return Sample(image=image, question=row["question"], answer=row["answer"])

        return self._collator([sample(row) for row in rows])


def deepspeed(model: str, samples: str, options: argparse.Namespace) -> dict[str, Any]:
    if not options.cards:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(options.port),
    }
    import deepspeed
    import torch

    if not options.cards:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    network, rows, collator = loaded(model, samples, options)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0
    )
    settings = torch_figures.deepspeed_config(
        micro=options.micro,
        batch=options.batch,
        bf16=options.precision == "bfloat16",
        stage=1,
    )
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)
    engine.train()
    batches = torch.utils.data.DataLoader(
        rows,
        batch_size=options.micro,
        shuffle=True,
        num_workers=options.readers,
        collate_fn=Collate(collator),
    )
    tokens, began = 0, time.perf_counter()
    for batch in batches:
        loss = engine(
            **{name: value.to(engine.device) for name, value in batch.items()}, use_cache=False
        ).loss
        engine.backward(loss)
        engine.step()
        tokens += int(batch["attention_mask"].sum())
    return {"tokens_per_second": tokens / (time.perf_counter() - began)}


def trainer(model: str, samples: str, options: argparse.Namespace) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    network, rows, collator = loaded(model, samples, options)
    collate = Collate(collator)
    tokens = sum(int(collate([row])["attention_mask"].sum()) for row in rows)
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            per_device_train_batch_size=options.micro,
            gradient_accumulation_steps=options.batch // options.micro,
            num_train_epochs=1,
            learning_rate=1e-5,
            bf16=options.precision == "bfloat16",
            use_cpu=not options.cards,
            gradient_checkpointing=options.checkpointing,
            save_strategy="no",
            report_to=[],
            dataloader_num_workers=options.readers,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        training = Trainer(model=network, args=arguments, train_dataset=rows, data_collator=collate)
        began = time.perf_counter()
        training.train()
        return {"tokens_per_second": tokens / (time.perf_counter() - began)}


WAYS = {"ours": ours, "deepspeed": deepspeed, "trainer": trainer}


def in_a_process(
    way: str, given: argparse.Namespace, scratch: str, *, limit_s: float | None = None
) -> dict[str, Any]:
    """One measurement, in a process of its own, of the model and samples in `scratch`."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        __file__,
        "--measure",
        json.dumps(vars(given) | {"way": way, "scratch": scratch}),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=limit_s
    )
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def report(results: dict[str, list[float]], note: str) -> str:
    middle = {way: median(values) for way, values in results.items()}
    lines = ["| Way | Tokens/s, median | of each round | Ours is |", "| --- | --- | --- | --- |"]
    for way, values in results.items():
        each = ", ".join(f"{value:,.0f}" for value in values)
        lines.append(
            f"| {way} | {middle[way]:,.0f} | {each} |"
            f" {result_file.cut(middle['ours'] / middle[way], 3)} times |"
        )
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(random_model.SIZES), default="training")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="samples of an optimizer step")
    parser.add_argument(
        "--micro", type=int, default=4, help="samples that go through the model at once"
    )
    parser.add_argument(
        "--cards",
        type=int,
        choices=[0, 1],
        default=result_file.gpus(),
        help="1 trains on a GPU; so it is where there is one",
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing, in every way"
    )
    parser.add_argument(
        "--readers", type=int, default=1, help="cores that decode images and make batches"
    )
    parser.add_argument(
        "--port", type=int, default=29571, help="of torch's rendezvous on this machine"
    )
    parser.add_argument(
        "--note", default="", help="a line for the report, such as what else the machine was doing"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        options = argparse.Namespace(**json.loads(given.measure))
        found = WAYS[options.way](f"{options.scratch}/model", f"{options.scratch}/samples", options)
        print(json.dumps(found))
        return
    results: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        size = random_model.SIZES[given.model]
        random_model.build(size, Path(scratch) / "model")
        write_samples(Path(scratch) / "samples", given.samples, side=size.side)
        for number in range(given.rounds):
            # In turn, and in the other order each time: a machine's speed drifts.
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                found = in_a_process(way, given, scratch)
                results[way].append(found["tokens_per_second"])
                print(number + 1, way, f"{results[way][-1]:,.0f} tokens/s", flush=True)
    print(
        result_file.write("training", report(results, given.note), {"tokens_per_second": results})
    )


if __name__ == "__main__":
    main()
