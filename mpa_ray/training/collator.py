"""From samples to a batch of tensors. Prompt and answer are tokenised apart and joined, so that
where the answer begins is never guessed.

Families differ in their chat template and in what their processor makes of an image; nothing here
names one.
"""

import re
from typing import Any

from mpa_ray.models.chat_template import user_prompt, with_reply
from mpa_ray.tasks import prompts
from mpa_ray.training.training_data import Sample

IGNORED = -100
"""The label of a token that is not learned: torch's cross entropy leaves it out."""

_MARK = "0123456789answer"


class Collator:
    """Makes a batch: what the processor gives, with the answers appended, padded on the right, and
    `labels` on answer tokens alone.

    Args:
        processor: the S-VLM's own.
        end_tokens: the ids that end a reply of this model; the first that the chat template writes
            after a reply is learned too.
        image_arguments: `engines.chat.image_arguments`.
    """

    def __init__(
        self, processor: Any, *, end_tokens: set[int], image_arguments: dict[str, Any] | None = None
    ) -> None:
        self._processor = processor
        self._image_arguments = image_arguments or {}
        self._tokenizer = processor.tokenizer
        self._end_tokens = end_tokens
        self._last_word, self._lead, self._tail = answer_form(processor)
        pad = self._tokenizer.pad_token_id
        self._pad = pad if pad is not None else min(end_tokens)

    def __call__(self, samples: list[Sample], *, learned: int | None = None) -> dict[str, Any]:
        """The batch of `samples`. Only the first `learned` have labels; the rest fill up a worker's
        share and teach nothing.

        Returns:
            Tensors: `input_ids`, `attention_mask`, `labels` of shape (batch, longest), and the
                processor's image tensors.
        """
        import torch

        prompt_texts = [
            user_prompt(self._processor, prompts.ANSWERING.format(question=sample.question))
            for sample in samples
        ]
        pictures = [[sample.image] for sample in samples]
        inputs = dict(
            self._processor(
                text=prompt_texts,
                images=pictures,
                padding=True,
                return_tensors="pt",
                **self._image_arguments,
            )
        )
        shape = inputs["input_ids"].shape
        rows = [
            row[mask.bool()]
            for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        answers = [torch.tensor(self.answer_tokens(sample.answer)) for sample in samples]
        longest = max(
            len(prompt) + len(answer) for prompt, answer in zip(rows, answers, strict=True)
        )
        # Per-token tensors beside the ids (token types, say) are 0 for text, which is what the
        # answer is.
        per_token = {name for name, value in inputs.items() if value.shape == shape}
        batch = {name: value for name, value in inputs.items() if name not in per_token}
        for name in per_token:
            kept = [
                value[mask.bool()]
                for value, mask in zip(inputs[name], inputs["attention_mask"], strict=True)
            ]
            batch[name] = torch.zeros(len(samples), longest, dtype=inputs[name].dtype)
            for target, value in zip(batch[name], kept, strict=True):
                target[: len(value)] = value
        batch["input_ids"].fill_(self._pad)
        batch["labels"] = torch.full((len(samples), longest), IGNORED)
        for index, (prompt, answer) in enumerate(zip(rows, answers, strict=True)):
            end = len(prompt) + len(answer)
            batch["input_ids"][index, :end] = torch.cat([prompt, answer])
            batch["attention_mask"][index, :end] = 1
            if learned is None or index < learned:
                batch["labels"][index, len(prompt) : end] = answer
        return batch

    def answer_tokens(self, answer: str) -> list[int]:
        """The answer as the model would write it, up to and with the token that ends its reply."""
        tokens = self._continuation(f"{self._lead}{answer}{self._tail}")
        answer_alone = self._continuation(f"{self._lead}{answer}")
        end = next(
            (
                index
                for index in range(len(answer_alone), len(tokens))
                if tokens[index] in self._end_tokens
            ),
            None,
        )
        # A template that ends no reply (LLaVA's) would never teach the model to stop.
        return tokens[: end + 1] if end is not None else [*answer_alone, min(self._end_tokens)]

    def _continuation(self, text: str) -> list[int]:
        """The tokens of `text` as they follow the prompt's last word: alone, some tokenizers
        (Llama's) would begin it with another one.
        """
        before = self._tokenizer(self._last_word, add_special_tokens=False)["input_ids"]
        both = self._tokenizer(f"{self._last_word}{text}", add_special_tokens=False)["input_ids"]
        if both[: len(before)] == before:
            return both[len(before) :]
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_form(processor: Any) -> tuple[str, str, str]:
    """The word that ends a prompt with the white space after it, and what the chat template writes
    before and after a reply.

    ("<|im_start|>assistant\\n", "", "<|im_end|>\\n") for Qwen2-VL, ("Assistant:", " ",
    "<end_of_utterance>\\n") for SmolVLM.

    Raises:
        ValueError: the template writes a conversation with a reply differently from one without, so
            that it cannot be continued.
    """
    before, whole = user_prompt(processor, "?"), with_reply(processor, "?", _MARK)
    if not whole.startswith(before):
        # Some templates open the reply with white space that the generation prompt lacks, or the
        # reverse.
        before = before.rstrip()
    lead, mark, tail = whole.removeprefix(before).partition(_MARK)
    if not whole.startswith(before) or not mark or lead.strip():
        raise ValueError(
            f"the chat template does not continue its own prompt: {before[-40:]!r} is followed by"
            f" {whole[-60:]!r}"
        )
    # The pattern fits the empty text too.
    word = re.search(r"\S*\s*$", before)
    assert word is not None
    return word.group(), lead, tail
