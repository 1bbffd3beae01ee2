"""Which models are asked: named in a TOML file, or given as a GGUF, an endpoint's address or a file of answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError, ModelNotFoundError
from zephyr_local.model_store.library import resolve
from zephyr_local.offline import is_loopback, require_online
from zephyr_local.train.asking.request import Price, Request
from zephyr_local.train.asking.toml_file import read_toml
from zephyr_local.train.data.records import SUFFIXES

Kind = Literal["endpoint", "gguf", "file"]

OPENAI_HOST: Final = "api.openai.com"
OPENAI_KEY: Final = "OPENAI_API_KEY"
BUNDLED: Final = "bundled"
"""The tiny model that comes with the package."""
_NAMELESS: Final = ("model_outputs", "annotations")
_WORDS: Final = {str: "text, in quotes", int: "whole number", float: "number", bool: "true or false", dict: "table"}
_FORMS: Final = (
    "a GGUF's path or a model's name, 'bundled', http(s)://HOST/v1#MODEL, a .jsonl, .json or .parquet file of answers, "
    "or a name in the --models file"
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to ask. Keys of a models file have these names."""

    name: str
    """What outputs call it."""
    url: str = ""
    """An OpenAI-compatible endpoint's base, such as ``https://api.openai.com/v1``; ``/chat/completions`` follows."""
    model: str = ""
    """The model's name there."""
    api_key_env: str = ""
    """The environment variable that holds the key; the key itself is never written anywhere. Without a name no key is
    sent, but to OpenAI's own host that of OPENAI_API_KEY."""
    gguf: str = ""
    """A local model, run by our engine; ``bundled`` is the tiny one."""
    file: str = ""
    """Answers that are there already."""
    price: Price | None = None
    """None: not known, and counted as nothing; two zeros are a price."""
    concurrency: int = 4
    """Requests under way at once."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Prompt and max_tokens of the requests sent in a minute at most, counted high."""
    timeout_s: float = 300.0
    """For a whole answer."""
    attempts: int = 8
    """Tries of a request that fails for a reason that may pass."""
    retry_wait_s: float = 1.0
    """Before the second try; it doubles up to a minute. A Retry-After of the endpoint's comes first."""
    stream: bool = False
    """Have the answer sent as it is made: for servers behind a proxy that cuts silent connections."""
    seed: bool = True
    """Whether the endpoint takes a seed."""
    max_tokens_key: str = "max_tokens"
    """What the endpoint calls the limit of an answer; newer models of OpenAI's want ``max_completion_tokens``."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    system: str | None = None
    """A system turn for prompts that have none."""
    n_ctx: int | None = None
    """Of a local model: tokens of context that its answers under way share; None: 4,096 for each of them."""
    n_gpu_layers: int | None = None
    """Of a local model; None: as many as fit."""
    template: str | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in ("url", "gguf", "file") if getattr(self, kind)]
        if len(given) != 1:
            what = " and ".join(given) or "neither url nor gguf nor file"
            raise InvalidInputError(f"the model {self.name} has {what}", "Give one of url, gguf and file")
        if self.url:
            try:
                parts = urlsplit(self.url)
            except ValueError:  # brackets that do not close
                parts = urlsplit("")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InvalidInputError(f"the model {self.name} has the url {self.url!r}", "Write https://HOST/v1")
            if parts.query or parts.fragment:
                raise InvalidInputError(
                    f"the url of the model {self.name} has more than a path", "Write https://HOST/v1, without ? and #"
                )
            if parts.username is not None or parts.password is not None:
                raise InvalidInputError(
                    f"the url of the model {self.name} holds a name or a password",
                    "Put the key in a variable: api_key_env",
                )
            if not self.model:
                raise InvalidInputError(f"the model {self.name} has a url and no model", "Name the endpoint's model")
        if not 1 <= self.concurrency <= 256:
            raise InvalidInputError(f"concurrency is {self.concurrency} for {self.name}", "Give 1 to 256")
        if not 1 <= self.attempts <= 100:
            raise InvalidInputError(f"attempts is {self.attempts} for {self.name}", "Give 1 to 100")
        for name in ("requests_per_minute", "tokens_per_minute", "timeout_s", "retry_wait_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidInputError(f"{name} is {value} for {self.name}", "Give a number above 0")
        for name in ("max_tokens", "n_ctx"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InvalidInputError(f"{name} is {count} for {self.name}", "Give 1 or more")
        for name, most in (("temperature", 100.0), ("top_p", 1.0)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise InvalidInputError(f"{name} is {value} for {self.name}", f"Give a number from 0 to {most:g}")

    @property
    def kind(self) -> Kind:
        return "endpoint" if self.url else "gguf" if self.gguf else "file"

    def request(
        self, messages: tuple[Message, ...], *, temperature: float, max_tokens: int, sample: int = 0
    ) -> Request:
        """A question to this model: what its table says of system turn and sampling, else what the caller does."""
        if self.system and messages[0].role != "system":
            messages = (Message("system", self.system), *messages)
        return Request(
            messages,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_tokens=self.max_tokens or max_tokens,
            sample=sample,
        )

    def require_reachable(self) -> None:
        """Raises OfflineError for an endpoint beyond this machine, where no connection may leave it."""
        if self.url and not self.is_on_this_machine:
            require_online(f"asking {self.name} at {self.url}")

    @property
    def is_on_this_machine(self) -> bool:
        """Whether asking it needs no network."""
        return not self.url or is_loopback(self.url)

    def require_judge(self) -> None:
        """Raises InvalidInputError for a model that cannot judge."""
        if self.kind == "file":
            raise InvalidInputError("a file of answers cannot judge", "Give an endpoint or a GGUF as the judge")

    @property
    def key_variable(self) -> str:
        """The environment variable that the key is read from; empty: none is sent."""
        if self.api_key_env:
            return self.api_key_env
        return OPENAI_KEY if urlsplit(self.url).hostname == OPENAI_HOST else ""

    @property
    def api_key(self) -> str | None:
        """The endpoint's key, where the environment has one. Raises InvalidInputError for one that cannot be sent."""
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if self.key_variable and not key:
            raise InvalidInputError(
                f"the variable {self.key_variable} of {self.name} is not set", f"export {self.key_variable}=…"
            )
        if not key.isascii() or not key.isprintable():
            raise InvalidInputError(
                f"the key in {self.key_variable} has characters that a key cannot have", "Set the variable anew"
            )
        return key or None


_KEYS_OF: Final[Mapping[tuple[type, ...], tuple[str, ...]]] = {
    (str,): ("url", "model", "api_key_env", "gguf", "file", "system", "template", "max_tokens_key"),
    (int,): ("concurrency", "attempts", "max_tokens", "n_ctx", "n_gpu_layers"),
    (int, float): ("requests_per_minute", "tokens_per_minute", "timeout_s", "retry_wait_s", "temperature", "top_p"),
    (bool,): ("stream", "seed"),
    (dict,): ("price",),
}
_TYPES: Final = {key: kinds for kinds, keys in _KEYS_OF.items() for key in keys}
assert set(_TYPES) == {entry.name for entry in fields(ModelSpec)} - {"name"}


@dataclass(frozen=True, slots=True)
class ModelsFile:
    """A TOML file with a table for each model; see docs/feedback.md."""

    path: Path | None = None
    specs: Mapping[str, ModelSpec] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Relative paths in it are relative to it. Raises InvalidInputError, naming the table and key."""
        if path is None:
            return cls()
        return cls(path, {name: _spec(name, table, path) for name, table in read_toml(path, "file").items()})

    def find(self, text: str) -> ModelSpec:
        """The model that a command names: an entry of the file, a path, an address, ``bundled``, or a name of
        ``zephyr_local.model_store``'s."""
        if text in self.specs:
            return self.specs[text]
        if text == BUNDLED:
            return ModelSpec(name="zephyr-tiny", gguf=BUNDLED)
        if text.startswith(("http://", "https://")):
            url, _, model = text.partition("#")
            if not model:
                raise InvalidInputError(f"{text} names no model", "Write http://HOST/v1#MODEL")
            return ModelSpec(name=model.rpartition("/")[2], url=url, model=model)
        path = Path(text)
        if path.suffix == ".gguf":
            return ModelSpec(name=path.stem, gguf=text)
        if path.suffix in SUFFIXES:
            # AlpacaEval keeps NAME/model_outputs.json.
            return ModelSpec(name=path.absolute().parent.name if path.stem in _NAMELESS else path.stem, file=text)
        known = f"; {self.path} has {', '.join(self.specs)}" if self.specs else ""
        if path.is_dir():
            raise InvalidInputError(
                f"{text} is a folder", "Make a GGUF of the checkpoint first: zephyr-local quantize FOLDER --q8_0"
            )
        try:
            found = resolve(text)
        except (ModelNotFoundError, InvalidInputError) as error:
            raise InvalidInputError(
                f"there is no model {text!r}{known}: {error.problem}", f"Give {_FORMS}. {error.remedy}"
            ) from None
        return ModelSpec(name=found.model.name if found.model else found.path.stem, gguf=str(found.path))


def _spec(name: str, table: object, path: Path) -> ModelSpec:
    where = f"[{name}] in {path}"
    if not isinstance(table, dict):
        raise InvalidInputError(f"{name} in {path} is no table", f"Write [{name}] and its keys below")
    for key, value in table.items():
        if key not in _TYPES:
            raise InvalidInputError(f"{where} has the unknown key {key}", f"Known: {', '.join(sorted(_TYPES))}")
        if not isinstance(value, _TYPES[key]) or (isinstance(value, bool) and bool not in _TYPES[key]):
            raise InvalidInputError(f"{key} is {value!r} in {where}", f"Give a {_WORDS[_TYPES[key][-1]]}")
    given: dict[str, Any] = dict(table)
    if "price" in given:
        given["price"] = _price(given["price"], where)
    for key in ("gguf", "file", "template"):
        if key in given and given[key] not in (BUNDLED, "zephyr"):
            given[key] = str(path.parent / given[key])
    return ModelSpec(name=name, **given)


def _price(table: Mapping[str, Any], where: str) -> Price:
    for key, value in table.items():
        if key not in ("input", "output") or not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InvalidInputError(f"price.{key} is {value!r} in {where}", "Write price = {input = 2.5, output = 10}")
    if set(table) != {"input", "output"}:
        raise InvalidInputError(
            f"price has {', '.join(table) or 'nothing'} in {where}", "Write price = {input = 2.5, output = 10}"
        )
    return Price(**table)
