"""A model in the configuration: which one, what serves it, what it runs on; and what a model behind
an API has beside that.
"""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from mpa_ray.config import locations
from mpa_ray.config.engines import ENGINES, EngineKind, engine_kind
from mpa_ray.config.section import MayChange, Section

Price = Annotated[float, Field(ge=0)] | None


def _known_engine(name: str) -> str:
    if name not in ENGINES and not re.fullmatch(
        r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name
    ):
        raise ValueError(
            f"{name!r} is no engine; give one of {', '.join(ENGINES)}, or one of your own as"
            " module:function"
        )
    return name


class LocalModelSection(Section):
    """A vision-language model whose weights are here, and what it runs on."""

    model: str = ""
    """A hub name (`Qwen/Qwen2-VL-7B-Instruct`), or a folder or an s3:// or gs:// prefix in the
    Hugging Face layout.
    """
    revision: str | None = None
    """The hub revision: a branch, tag or commit. Without it the newest is taken, which may change
    between runs.
    """
    trust_remote_code: str | None = None
    """Run the Python code that comes with a checkpoint: `name@commit`, this model's name and the 40
    digits of the commit whose code you have read. Weights are then taken from the same commit.
    Without it such code never runs.
    """
    engine: Annotated[str, AfterValidator(_known_engine)] = "vllm"
    """What serves the model: `vllm` (its async engine), `transformers` (its `generate`, slower,
    where vLLM cannot load), `openai` (an API compatible with OpenAI's), or `module:function`, which
    is your own, takes this section and gives an `mpa_ray.engines.Engine`. Any function that can be
    imported is called, so a configuration file is code.
    """
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The precision of the weights while serving; `auto` takes the checkpoint's."""
    max_pixels: PositiveInt = 512 * 28 * 28
    """Images with more pixels are shrunk to this many before the model sees them (512 x 28 x 28:
    512 visual tokens of Qwen2-VL).
    """
    processor_options: dict[str, Any] = {}
    """What the model's image processor does differently, by its own names, while serving and
    training alike (SmolVLM: `{size: {longest_edge: 1024}}`, four tiles where the default has 16;
    InternVL: `{max_patches: 4}`). The trained model keeps them.
    """
    chat_template: str | None = None
    """A chat template (Jinja) in place of the checkpoint's, or where it has none."""
    max_model_len: PositiveInt = 4096
    """The longest prompt and reply together, in tokens; the model's own context, where that is
    shorter. A request over it is quarantined, never cut.
    """
    images_in_flight: Annotated[PositiveInt | None, MayChange()] = None
    """Images a replica works on at the same time; vLLM runs as many requests (`max_num_seqs`). More
    fill a large GPU better; few keep an image's encoding cached until its second question. Without
    it, half of what the KV cache of its GPUs holds, from 32 to 128; on the CPU, and where its size
    is not known, 32. Above twice `images_per_part` it is never reached.
    """
    min_replicas: Annotated[PositiveInt, MayChange()] = 1
    """Engine actors kept while the stage runs."""
    max_replicas: Annotated[PositiveInt | None, MayChange()] = None
    """Engine actors the stage may grow to when the cluster has room. Without it, what its share of
    the GPUs holds; on the CPU `min_replicas`.
    """
    gpus_per_replica: Annotated[float | None, Field(ge=0), MayChange()] = None
    """GPUs of a replica: a whole number above one is the tensor parallel size, a fraction shares a
    GPU, 0 runs on the CPU. Without it, what the model's size asks for.
    """
    cpus_per_replica: Annotated[PositiveFloat | None, MayChange()] = None
    """CPU cores of a replica, which decode and prepare its images. Without it, its share of a
    node's, where one stays free, or nothing reads and writes; on the CPU 1, or less where the
    cluster has too few for all models.
    """
    engine_options: dict[str, Any] = {}
    """Further arguments of vLLM's `AsyncEngineArgs`, as they are (`{gpu_memory_utilization: 0.9,
    quantization: fp8}`). With engine=openai, further fields of the request (`{reasoning_effort:
    low, temperature: null}`); null leaves one of ours out.
    """

    @property
    def kind(self) -> EngineKind:
        """What its engine can do."""
        return engine_kind(self.engine)

    @property
    def gpus(self) -> float:
        """GPUs of a replica, 1 where neither the configuration nor a run's placement says; none
        behind an API.
        """
        return (
            0.0
            if self.kind.is_api
            else 1.0
            if self.gpus_per_replica is None
            else self.gpus_per_replica
        )

    @property
    def cpus(self) -> float:
        """CPU cores of a replica, 1 where neither the configuration nor a run's placement says."""
        return self.cpus_per_replica or 1.0

    @property
    def in_flight(self) -> int:
        """Images in flight, 32 where neither the configuration nor a run's placement says."""
        return self.images_in_flight or 32

    @property
    def most_replicas(self) -> int | None:
        """Engine actors a stage may grow to; None: as many as the cluster gives."""
        return self.max_replicas or (None if self.gpus else self.min_replicas)

    @model_validator(mode="before")
    @classmethod
    def _at_its_place(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(name := given.get("model"), str):
            return given
        # What a name means behind an API, or to an engine of one's own, is not ours to say; but a
        # folder is one by any engine here.
        kind = engine_kind(str(given.get("engine", "vllm")))
        is_place = kind.loads_checkpoint or (not kind.is_api and locations.is_model_folder(name))
        return given | {"model": locations.of_model(name)} if is_place else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is below min_replicas={self.min_replicas};"
                " raise the first or lower the second"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(
                f"gpus_per_replica={self.gpus_per_replica}: above one GPU it must be a whole"
                " number (the tensor parallel size)"
            )
        if self.engine_options and not self.kind.takes_options:
            raise ValueError(
                f"engine={self.engine!r} takes no engine_options={self.engine_options!r}; remove"
                " them or set engine=vllm"
            )
        if self.engine == "vllm":
            for name in self.engine_options.keys() & VLLM_ARGUMENTS.keys():
                setting = VLLM_ARGUMENTS[name]
                fix = f"give it as the setting {setting}" if setting else "remove it"
                raise ValueError(
                    f"engine_options={{{name}: ...}}: mpa_ray sets this argument of vLLM; {fix}"
                )
        if self.trust_remote_code is not None:
            self._check_trust(self.trust_remote_code)
        return self

    def _check_trust(self, trusted: str) -> None:
        name, _, commit = trusted.rpartition("@")
        if locations.of_model(name) != self.model or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise ValueError(
                f"trust_remote_code={trusted!r} must name this model and a whole commit:"
                f" {self.model or 'model'}@ and 40 hexadecimal digits"
                " (a branch or tag can be moved to other code); write it so, or remove it"
            )
        if self.revision not in (None, commit):
            raise ValueError(
                f"revision={self.revision!r} and trust_remote_code={trusted!r} exclude each other:"
                " the code of one commit is"
                " trusted; remove revision"
            )


class ModelSection(LocalModelSection):
    """A vision-language model and what it runs on, which may be an API."""

    base_url: Annotated[str | None, MayChange()] = None
    """engine=openai: where the API is (`http://host:8000/v1`). Without it, OpenAI's own."""
    api_key_env: Annotated[str, MayChange()] = "OPENAI_API_KEY"
    """engine=openai: the name of the environment variable that holds the key, where Ray's workers
    run. The key itself is never given.
    """
    requests_per_minute: Annotated[PositiveFloat | None, MayChange()] = None
    """engine=openai: requests that go out in a minute, over the whole stage. Without it, as fast as
    `images_in_flight` allows.
    """
    tokens_per_minute: Annotated[PositiveFloat | None, MayChange()] = None
    """engine=openai: tokens in a minute, prompts and replies together: estimated before a request,
    corrected by its reply.
    """
    usd_per_million_input_tokens: Annotated[Price, MayChange()] = None
    """engine=openai: the price of a million prompt tokens, in US dollars. With it and the price of
    output, a run says what it cost.
    """
    usd_per_million_cached_tokens: Annotated[Price, MayChange()] = None
    """engine=openai: the price of prompt tokens that the API had cached. Without it, they cost as
    the others.
    """
    usd_per_million_output_tokens: Annotated[Price, MayChange()] = None
    """engine=openai: the price of a million tokens of replies."""
    max_cost_usd: Annotated[PositiveFloat | None, MayChange()] = None
    """engine=openai: the run ends before its requests to this model cost more, over all calls on
    one output; raise it to continue.
    """
    request_timeout_s: Annotated[PositiveFloat, MayChange()] = 120
    """engine=openai: a request without a whole reply after so many seconds is given up and tried
    again.
    """

    @model_validator(mode="after")
    def _check_where_it_runs(self) -> Self:
        if self.kind.is_api:
            self._check_api()
        else:
            self._refuse_api_settings()
        return self

    def _refuse_api_settings(self) -> None:
        for name in API_SETTINGS:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={value!r} is for models behind an API and engine={self.engine!r} runs"
                    " the model itself;"
                    " remove it or set engine=openai"
                )

    def _check_api(self) -> None:
        if (self.max_replicas or self.min_replicas) != 1:
            raise ValueError(
                f"max_replicas={self.max_replicas} and engine='openai' exclude each other: rate"
                " limits and budget hold because one actor"
                " asks for the whole stage, and images_in_flight sets how much it asks at a time;"
                " set max_replicas=1"
            )
        on_the_server = {
            "revision": "versions are part of its model's name",
            "dtype": "its precision is the server's",
            "trust_remote_code": "its code is the server's",
            "processor_options": "its processor is the server's",
            "chat_template": "its chat template is the server's",
        }
        for name, what in on_the_server.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} cannot be asked of an API ({what}); remove"
                    f" {name}"
                )
        if self.base_url is not None:
            _check_base_url(self.base_url)
        # Not repeated in the message: what is no name may well be the key.
        if not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise ValueError(
                "api_key_env takes the name of an environment variable, never the key; export"
                " OPENAI_API_KEY and leave it out"
            )
        for name in self.engine_options.keys() & {"model", "messages", "n", "stream"}:
            raise ValueError(
                f"engine_options={{{name}: ...}}: this field of a request is set by mpa_ray;"
                " remove it"
            )
        self._check_prices()

    def _check_prices(self) -> None:
        prices = (self.usd_per_million_input_tokens, self.usd_per_million_output_tokens)
        if (prices[0] is None) != (prices[1] is None) or (
            self.usd_per_million_cached_tokens is not None and None in prices
        ):
            raise ValueError(
                "a cost needs the prices of input and of output; set usd_per_million_input_tokens"
                " and usd_per_million_output_tokens, or no price"
            )
        if self.max_cost_usd is None:
            return
        if None in prices:
            raise ValueError(
                f"max_cost_usd={self.max_cost_usd} cannot be kept without prices; set"
                " usd_per_million_input_tokens and"
                " usd_per_million_output_tokens"
            )
        if self.engine_options.get("max_tokens", 1) is None and not self.engine_options.get(
            "max_completion_tokens"
        ):
            raise ValueError(
                f"max_cost_usd={self.max_cost_usd} and engine_options={{max_tokens: null}} exclude"
                " each other: the cost of a reply would"
                " have no bound; set max_completion_tokens in engine_options"
            )


# The arguments of vLLM that its engine here sets, and the setting that each follows.
VLLM_ARGUMENTS = {
    "model": "model",
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "revision": "revision",
    "code_revision": "trust_remote_code",
    "trust_remote_code": "trust_remote_code",
    "mm_processor_kwargs": "processor_options",
    "limit_mm_per_prompt": None,
    "enable_prefix_caching": None,
    "enable_log_requests": None,
    "disable_log_stats": None,
}

# What only a model behind an API has. None of it changes what comes out.
API_SETTINGS = tuple(
    name for name in ModelSection.model_fields if name not in LocalModelSection.model_fields
)


def _check_base_url(url: str) -> None:
    parts = urlsplit(url)
    # Not repeated in the message: what is refused here may be a secret, and the configuration is
    # written into the output.
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            f"base_url holds a user, password or query (host {parts.hostname!r}); a key belongs"
            " into the environment variable that"
            " api_key_env names"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"base_url={url!r} is no address of an API; write it as http://host:8000/v1 or"
            " https://host/v1"
        )
