"""Train one model of the demo's pair from nothing: `python -m benchmarks.demo_pair.train_pair
--model lvlm --output FOLDER`.

The L-VLM sees both domains and all four wordings, and learns to annotate. The S-VLM sees plain
images and the plain wordings only, and never annotates. Neither is held back in any other way: on
what it was trained for, the S-VLM is always right.

The shipped pair took 40 minutes (L-VLM) and 31 minutes (S-VLM), a thread each, on two cores that
were busy with other work. One thread is the fastest choice on a shared machine: the matrices are
too small to split.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from benchmarks.demo_pair.models import (
    ANNOTATION_PROMPTS,
    SIZES,
    build_model,
    build_processor,
    build_tokenizer,
    reply,
    save,
)
from benchmarks.demo_pair.packed import Exchange, PackedForward
from mpa_ray.demo.facts import Facts, SignFacts
from mpa_ray.demo.questions import (
    ALL_WORDINGS,
    PLAIN_WORDINGS,
    annotation_kinds,
    ask,
    open_kinds,
    parse_annotation,
    true_answer,
    write_annotation,
    yes_no_kind,
)
from mpa_ray.demo.render import render
from mpa_ray.tasks import prompts

# Users' seeds start at 0, so that no image of theirs was trained on.
TRAINING_SEED = -1
HELD_OUT_SEED = -2

IMAGES_PER_STEP = 64
WARM_UP_STEPS = 100
DECAY_FROM = 0.4  # of all steps
PEAK_LEARNING_RATE = 2e-3
REPORT_EVERY = 200  # steps


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """What a model is shown."""

    domains: tuple[str, ...]
    wordings: tuple[int, ...]
    annotates: bool
    steps: int
    row_length: int  # tokens; the longest image with its questions fits
    plain_steps: int = 0  # the first steps, on plain images alone, whatever the domains


# With both domains from the start, the L-VLM's loss stood still from step 1,200 until it was
# stopped at 2,800, digits being what is learned last; on plain images alone it fell again before
# step 2,000.
CURRICULA = {
    "lvlm": Curriculum(
        domains=("plain", "shifted"),
        wordings=ALL_WORDINGS,
        annotates=True,
        steps=6_400,
        row_length=152,
        plain_steps=2_000,
    ),
    "svlm": Curriculum(
        domains=("plain",), wordings=PLAIN_WORDINGS, annotates=False, steps=6_400, row_length=104
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SIZES, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, help="instead of the model's own number of steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    curriculum = CURRICULA[arguments.model]

    tokenizer = build_tokenizer()
    model = build_model(SIZES[arguments.model], tokenizer, seed=0)
    print(
        f"{arguments.model}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.2f}M"
        " parameters",
        flush=True,
    )
    train(
        model,
        PackedForward(model, tokenizer, length=curriculum.row_length),
        curriculum,
        arguments.steps or curriculum.steps,
    )
    save(model, tokenizer, arguments.output)

    processor = build_processor(tokenizer)
    report_answers(model, processor)
    if curriculum.annotates:
        report_annotations(model, processor)


def train(
    model: torch.nn.Module, forward: PackedForward, curriculum: Curriculum, steps: int
) -> None:
    model.train()
    forward.compile()
    optimizers = build_optimizers(model)
    started, losses = time.monotonic(), []
    for step, (pixels, exchanges) in zip(range(steps), training_batches(curriculum), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward.loss(pixels, exchanges)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0:
            print(
                f"step {step + 1}  loss {np.mean(losses):.4f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
            losses.clear()
    model.eval()


def build_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms and biases."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        in_block = "layers." in name or "blocks." in name
        (matrices if in_block and weight.dim() == 2 else others).append(weight)
    return [
        torch.optim.Muon(
            matrices, lr=PEAK_LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, a plateau, and a linear decay to nothing."""
    warm_up = (step + 1) / WARM_UP_STEPS
    decay = (1 - step / steps) / (1 - DECAY_FROM)
    return PEAK_LEARNING_RATE * min(1.0, warm_up, decay)


def training_batches(curriculum: Curriculum) -> Iterator[tuple[torch.Tensor, list[list[Exchange]]]]:
    """Endless batches: pixels uint8 [64, 96, 96, 3], and each image's exchanges. Every image is
    new.
    """
    rng = Random(TRAINING_SEED)
    for step in count():
        domains = ("plain",) if step < curriculum.plain_steps else curriculum.domains
        pixels, exchanges = [], []
        for index in range(step * IMAGES_PER_STEP, (step + 1) * IMAGES_PER_STEP):
            image, facts = render(
                "mixed", seed=TRAINING_SEED, index=index, domain=rng.choice(domains)
            )
            pixels.append(np.asarray(image))
            exchanges.append(list(training_exchanges(facts, curriculum, rng)))
        yield torch.from_numpy(np.stack(pixels)), exchanges


def training_exchanges(facts: Facts, curriculum: Curriculum, rng: Random) -> Iterator[Exchange]:
    """Four questions to answer, and an annotation to write.

    Reading is learned last, digits last of all, so every image is asked what can be read from it.
    """
    reading = ("word", "number") if isinstance(facts, SignFacts) else ("value", "value")
    looking = sorted({*open_kinds(facts), yes_no_kind(facts)} - set(reading))
    for kind in (*reading, *rng.sample(looking, 2)):
        question = ask(facts, kind, rng, curriculum.wordings)
        yield prompts.ANSWERING.format(question=question.text), question.answer
    if curriculum.annotates:
        prompt = draw_annotation_prompt(facts, rng)
        question = ask(facts, rng.choice(annotation_kinds(prompt, facts)), rng)
        yield prompt, write_annotation(question)


def draw_annotation_prompt(facts: Facts, rng: Random) -> str:
    """Mostly the prompt made for such an image; now and then the one made for the other kind."""
    fitting, other = (
        (prompts.SCENE_TEXT, prompts.CHART)
        if isinstance(facts, SignFacts)
        else (prompts.CHART, prompts.SCENE_TEXT)
    )
    candidates = (fitting, other, prompts.WORLD_KNOWLEDGE, prompts.PATHOLOGY_YES_NO)
    return rng.choices(candidates, weights=(0.5, 0.05, 0.2, 0.25))[0]


def report_answers(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, *, images: int = 400
) -> None:
    """Print greedy accuracy on held-out images: plain ones in the plain wordings, shifted ones in
    all wordings, by question kind.
    """
    for domain, wordings in (("plain", PLAIN_WORDINGS), ("shifted", ALL_WORDINGS)):
        for image_kind in ("sign", "chart"):
            pictures, facts = held_out(image_kind, domain, images)
            rng = Random(HELD_OUT_SEED)
            questions = [
                ask(fact, rng.choice((*open_kinds(fact), yes_no_kind(fact))), rng, wordings)
                for fact in facts
            ]
            texts = [prompts.ANSWERING.format(question=question.text) for question in questions]
            answers = reply(model, processor, pictures, texts, max_new_tokens=8)
            right = [
                answer.strip() == question.answer
                for answer, question in zip(answers, questions, strict=True)
            ]
            print(f"{domain} {image_kind}: {_percent(right)} of {images}", flush=True)
            for kind, hits in _grouped((question.kind for question in questions), right).items():
                print(f"    {kind}: {_percent(hits)}")


def report_annotations(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, *, images: int = 400
) -> None:
    """Print what share of the annotations, sampled at temperature 1, has the right form, and what
    share of all is right.
    """
    torch.manual_seed(0)
    for prompt, name in zip(
        ANNOTATION_PROMPTS,
        ("scene text", "chart", "world knowledge", "pathology yes/no"),
        strict=True,
    ):
        for image_kind in ("sign", "chart"):
            pictures, facts = held_out(image_kind, "shifted", images)
            annotations = reply(
                model, processor, pictures, [prompt] * images, max_new_tokens=40, temperature=1.0
            )
            parsed = [parse_annotation(annotation) for annotation in annotations]
            formed = [pair is not None for pair in parsed]
            right = [
                pair is not None and true_answer(pair[0], fact) == pair[1]
                for pair, fact in zip(parsed, facts, strict=True)
            ]
            print(
                f"annotations, {name}, {image_kind}: well-formed {_percent(formed)}, right"
                f" {_percent(right)}",
                flush=True,
            )


def held_out(image_kind: str, domain: str, images: int) -> tuple[list[Image.Image], list[Facts]]:
    rendered = [
        render(image_kind, seed=HELD_OUT_SEED, index=index, domain=domain)
        for index in range(images)
    ]
    return [image for image, _ in rendered], [facts for _, facts in rendered]


def _grouped(keys: Iterable[str], values: Iterable[bool]) -> dict[str, list[bool]]:
    groups = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        groups[key].append(value)
    return dict(sorted(groups.items()))


def _percent(hits: Iterable[bool]) -> str:
    return f"{100 * np.mean(list(hits)):.1f}%"


if __name__ == "__main__":
    main()
