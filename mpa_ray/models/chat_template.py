"""The conversation as the model's own chat template writes it, what its processor makes of an
image, and what ends a reply.

Families differ in nothing else that we have to know; nothing here or in training names one.
"""

from typing import Any

from mpa_ray.config import LocalModelSection
from mpa_ray.errors import ConfigurationError
from mpa_ray.models import checkpoint


def load_processor(model: LocalModelSection) -> Any:
    """The model's processor, with `processor_options` and `chat_template` in it. Where a checkpoint
    has no processor it is the tokenizer.

    Raises:
        ConfigurationError: its image processor has no option of a given name, or no chat template
            says how it is asked about an image.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(
        checkpoint.local(model.model), **checkpoint.arguments(model)
    )
    if model.processor_options and hasattr(processor, "image_processor"):
        processor.image_processor = _with_options(
            processor.image_processor, model.processor_options
        )
    processor.chat_template = (
        model.chat_template
        or processor.chat_template
        or getattr(tokenizer_of(processor), "chat_template", None)
    )
    if not processor.chat_template:
        raise ConfigurationError(
            f"{model.model} has no chat template, so how it is asked is not known; give it as"
            " chat_template"
        )
    image_token = getattr(processor, "image_token", None)
    if image_token and not (takes_parts(processor) and image_token in user_prompt(processor, "?")):
        raise ConfigurationError(
            f"the chat template of {model.model} writes no image ({image_token}); give one that"
            " does as chat_template"
        )
    return processor


def _with_options(image_processor: Any, options: dict[str, Any]) -> Any:
    kind = type(image_processor)
    known = sorted(kind.valid_kwargs.__annotations__)
    for name in options.keys() - set(known):
        raise ConfigurationError(
            f"processor_options={{{name}: ...}}: {kind.__name__} has no such option; it has"
            f" {', '.join(known)}"
        )
    return kind.from_dict(image_processor.to_dict() | options)


def takes_parts(processor: Any) -> bool:
    """Whether the chat template takes a message in parts (image, text). Older ones (InternVL2's)
    take text: the image is a word.
    """
    try:
        written = processor.apply_chat_template([_user("?")], tokenize=False)
    except TypeError:
        # The template joins the message to a text: "can only concatenate str (not "list") to str".
        return False
    return "'type'" not in written


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor; a checkpoint without a processor gives the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def image_arguments(model: LocalModelSection) -> dict[str, Any]:
    """Arguments for a call of the processor: some classes (InternVL's) have defaults for calls that
    go before what they hold.
    """
    return {"images_kwargs": model.processor_options} if model.processor_options else {}


def user_prompt(processor: Any, text: str, *, image_word: str | None = None) -> str:
    """The text of a conversation of one user message, the image first and then `text`, up to where
    the model begins to speak.

    Args:
        processor: the model's.
        text: the message.
        image_word: what stands for the image, for a template that takes plain text.
    """
    message = {"role": "user", "content": f"{image_word}\n{text}"} if image_word else _user(text)
    return _one_start(
        processor,
        processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False),
    )


def with_reply(processor: Any, text: str, reply: str) -> str:
    """`user_prompt` with the model's reply after it, as the template writes a conversation that has
    one.
    """
    assistant = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
    return _one_start(
        processor, processor.apply_chat_template([_user(text), assistant], tokenize=False)
    )


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def _one_start(processor: Any, conversation: str) -> str:
    """`conversation` without a start token of the template's where the tokenizer puts one in front
    of any text: two derail a model.
    """
    tokenizer = tokenizer_of(processor)
    start = tokenizer.bos_token
    if (
        start
        and conversation.startswith(start)
        and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    ):
        return conversation.removeprefix(start)
    return conversation


def settle_generation(model: Any, processor: Any) -> None:
    """Make a transformers model's generation settings whole: they say where replies end and are
    saved with the trained model.

    A published file may lack the end token (then it is the tokenizer's), and may hold settings of
    sampling without saying that it samples, which transformers loads but refuses to save.
    """
    settings = model.generation_config
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer_of(processor).eos_token_id
    if not settings.do_sample:
        settings.temperature = settings.top_p = settings.top_k = settings.min_p = (
            settings.typical_p
        ) = None


def end_tokens(model: Any) -> set[int]:
    """The ids with which a transformers model ends a reply."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}
