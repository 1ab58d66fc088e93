"""The conversation as the model's own chat template writes it, and what ends a reply. Families differ in nothing else that we have to know."""

from typing import Any


def user_prompt(processor: Any, text: str) -> str:
    """The text of a conversation of one user message, the image first and then `text`, up to where the model begins to speak."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def end_tokens(model: Any) -> set[int]:
    """The ids with which a transformers model ends a reply."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}
