"""`adapter_config.json`: what a LoRA adapter is, and whether merging it is the plain arithmetic that we do.

PEFT (0.3 to 0.21) writes the file from its LoraConfig. Whatever in it changes the merged weights, and is not done here,
is refused by name; so is every entry that we do not know, unless it is empty.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from zephyr_local.convert.model_config import Json, read_json, shown
from zephyr_local.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
MERGE_WITH_PEFT = (
    "Merge it with peft (merge_and_unload, save_pretrained) and convert the result, or take another adapter"
)

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")
_CORRECT = f"Correct {ADAPTER_CONFIG}, or copy the adapter again"
_MAX_RANK = 1 << 16
_MAX_PATTERNS = 1 << 12  # more than a model of 512 layers has modules
_MAX_PATTERN_LENGTH = 10_000
_MAX_NAME = 48  # characters; "model.layers.511.post_attention_layernorm" has 41
_MAX_WAYS = 30_000_000  # under a second for the worst pattern and name; for what people write, far below a millisecond
_SKIPPED_WORDS = 8  # that take the matcher as long as one way
_PATTERN_PARTS = re.compile(
    r"\((?:\?:)?(?P<words>\w+(?:\|\w+)*)\)|(?P<open>\((?!\?)|\(\?(?::|<?[=!]|>|P<\w+>))|(?P<close>\))|(?P<bar>\|)"
    r"|(?P<strange>\(\?|\\[1-9])"
    r"|(?P<many>(?:[*+]|\{\d*,?\d*\})[?+]?)|(?P<maybe>\?[?+]?)"
    r"|\\.|\[\^?\]?(?:\\.|[^\\\]])*\]|.",
    re.DOTALL,
)
_DEFAULT_TARGETS = ("q_proj", "v_proj")  # PEFT's for Llama and Mistral
_ALL_LINEAR = "all-linear"
_NOT_ALL_LINEAR = ("lm_head", "embed_tokens")

_HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_type", "peft_version", "task_type",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights",
    "eva_config", "corda_config", "lora_ga_config", "loftq_config",  # read where init_lora_weights names them
    "megatron_core", "qalora_group_size",  # read where megatron_config and use_qalora are set
    "ensure_weight_tying",  # a tied base with a touched embedding is refused whatever it says
    "runtime_config",
})  # fmt: skip

_REFUSED = {
    "use_dora": "DoRA scales every merged row by a magnitude that it learned",
    "fan_in_fan_out": "it is for layers that store their matrix the other way around",
    "lora_bias": "a bias of the adapter has no place in a model without biases",
    "layer_replication": "it repeats layers of the base",
    "trainable_token_indices": "it replaces single rows of the embedding",
    "target_parameters": "it adapts parameters that are no layers",
    "alora_invocation_tokens": "an activated LoRA works from certain tokens on, and cannot be merged",
    "use_qalora": "QALoRA pools the inputs of its adapter",
    "arrow_config": "Arrow chooses among adapters for each token, and cannot be merged",
    "use_bdlora": "BD-LoRA stores block-diagonal matrices",
    "kasa_config": "KaSA truncates the base and scales the adapter by singular values",
    "monteclora_config": "MonteCLoRA samples its adapter",
    "velora_config": "VeLoRA is a variant of LoRA that is not merged here",
    "megatron_config": "Megatron's layers are not those of a checkpoint of transformers",
}

# What sets A and B up and leaves the base as it is (LoraLayer.update_layer of PEFT 0.21): the file's A and B are all.
# The others subtract their first B·A from the base or quantize it (pissa, corda, olora, loftq, lora_ga), or freeze a
# factor that the file may lack (mica).
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The entries of adapter_config.json that steer a merge."""

    base_model: str | None
    revision: str | None
    rank: int
    alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)  # by module name or regular expression
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_modules: tuple[str, ...] | str = _DEFAULT_TARGETS  # names or their ends; a text is a regular expression
    exclude_modules: tuple[str, ...] | str = ()
    modules_to_save: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None  # the only ones with an adapter; None: all
    layers_pattern: tuple[str, ...] = ()

    def scaling(self, module: str) -> tuple[int, float]:
        """Rank of the adapter of a module such as "model.layers.0.self_attn.q_proj", and what scales its B·A."""
        _require_short(module)
        rank = self.rank_pattern.get(_pattern_key(self.rank_pattern, module), self.rank)
        alpha = self.alpha_pattern.get(_pattern_key(self.alpha_pattern, module), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether PEFT puts a LoRA on a linear or embedding module of this name (its check_target_module_exists)."""
        _require_short(module)
        if self._excludes(module):
            return False
        wanted = self.target_modules
        if isinstance(wanted, str):
            if wanted.lower() == _ALL_LINEAR:
                return not _ends_with(module, _NOT_ALL_LINEAR)
            return _compiled(wanted).fullmatch(module) is not None
        if module in wanted:  # no word about layers then, as in PEFT
            return True
        return _ends_with(module, wanted) and (self.layers is None or self._layer(module) in self.layers)

    def saves(self, module: str) -> bool:
        """Whether PEFT stores a module of this name anew and whole (modules_to_save; it compares ends of names)."""
        _require_short(module)
        parts = module.split(".")
        outer = (".".join(parts[: n + 1]) for n in range(len(parts)))
        return any(name.endswith(self.modules_to_save) for name in outer)

    def _excludes(self, module: str) -> bool:
        excluded = self.exclude_modules
        if isinstance(excluded, str):
            if _compiled(excluded).fullmatch(module):
                return True
        elif module in excluded or _ends_with(module, excluded):
            return True
        return any(_compiled(_saved(name)).match(module) for name in self.modules_to_save)

    def _layer(self, module: str) -> int | None:
        patterns = [_numbered(name) for name in self.layers_pattern]
        for pattern in patterns or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            if match := _compiled(pattern).match(module):
                return int(match["idx"])
        return None


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter's configuration and no weights of a model."""
    return (folder / ADAPTER_CONFIG).is_file() and not any(
        path.is_file() for pattern in _WEIGHTS for path in folder.glob(pattern)
    )


def require_unambiguous(folder: Path) -> None:
    """Refuses a folder with an adapter's configuration and a model: transformers would load the adapter as well."""
    config = folder / ADAPTER_CONFIG
    if config.is_file() and not is_adapter(folder):
        raise CheckpointError(
            f"{folder} holds both a model and an adapter ({ADAPTER_CONFIG})",
            f"Move {ADAPTER_CONFIG} away to convert the model, or put the adapter into a folder of its own",
        )


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Reads and checks `adapter_config.json`."""
    config = read_json(folder / ADAPTER_CONFIG)
    _require_mergeable(config)
    return AdapterConfig(
        base_model=_text(config, "base_model_name_or_path"),
        revision=_text(config, "revision"),
        rank=_rank("r", config.get("r", 8)),
        alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
        use_rslora=_flag(config, "use_rslora"),
        rank_pattern={
            key: _rank(f"rank_pattern[{shown(key)}]", n) for key, n in _patterns(config, "rank_pattern").items()
        },
        alpha_pattern={
            key: _number(f"alpha_pattern[{shown(key)}]", n) for key, n in _patterns(config, "alpha_pattern").items()
        },
        target_modules=_DEFAULT_TARGETS if config.get("target_modules") is None else _names(config, "target_modules"),
        exclude_modules=_names(config, "exclude_modules"),
        modules_to_save=_saved_modules(config),
        layers=_layers(config),
        layers_pattern=_pattern_list(config, "layers_pattern"),
    )


def _require_mergeable(config: Json) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise _refused("peft_type", kind, "only LORA is merged here")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise _refused(key, config[key], why)
    init = config.get("init_lora_weights", True)
    if not any(init is known or (isinstance(init, str) and init == known) for known in _INITS):
        raise _refused(
            "init_lora_weights", init, "the adapter belongs to a base that this start of the training changed"
        )
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise _refused("task_type", task, "only an adapter for text generation (CAUSAL_LM) can be converted")
    if (bias := config.get("bias", "none")) not in (None, "none", "all", "lora_only"):
        raise _refused("bias", bias, "it is none of PEFT's values")
    if isinstance(config.get("target_modules"), str) and config.get("layers_to_transform") is not None:
        raise _refused("layers_to_transform", config["layers_to_transform"], "PEFT allows none beside a pattern")
    for key, value in config.items():
        if key not in _HARMLESS and key not in _REFUSED and value:
            raise _refused(key, value, "this entry is not known here, and may change what merging means")


def _refused(key: str, value: object, why: str) -> CheckpointError:
    return CheckpointError(f"{ADAPTER_CONFIG}: {key} is {shown(value)}, and {why}", MERGE_WITH_PEFT)


def _wrong(key: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"{ADAPTER_CONFIG}: {key} is {shown(value)}, not {wanted}", _CORRECT)


def _rank(key: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_RANK:
        raise _wrong(key, value, f"a whole number from 1 to {_MAX_RANK}")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:
        raise _wrong(key, value, "a number")
    return float(value)


def _flag(config: Json, key: str) -> bool:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise _wrong(key, value, "true or false")
    return bool(value)


def _text(config: Json, key: str) -> str | None:
    value = config.get(key)
    if not isinstance(value, str | None):
        raise _wrong(key, value, "a text")
    return value or None


def _patterns(config: Json, key: str) -> dict[str, object]:
    value = config.get(key) or {}
    if not isinstance(value, dict) or len(value) > _MAX_PATTERNS:
        raise _wrong(key, value, f"an object of at most {_MAX_PATTERNS} patterns")
    _require_patterns(key, value, _ending)
    return value


def _list(config: Json, key: str) -> tuple[str, ...]:
    value = config.get(key) or []
    if not isinstance(value, list) or len(value) > _MAX_PATTERNS or not all(isinstance(name, str) for name in value):
        raise _wrong(key, value, "a list of names")
    return tuple(value)


def _names(config: Json, key: str) -> tuple[str, ...] | str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        return _list(config, key)
    _require_patterns(key, [value])
    return value


def _pattern_list(config: Json, key: str) -> tuple[str, ...]:
    value = config.get(key)
    names = (value,) if isinstance(value, str) and value else _list(config, key)
    _require_patterns(key, names, _numbered)
    return names


def _saved_modules(config: Json) -> tuple[str, ...]:
    names = _list(config, "modules_to_save")
    _require_patterns("modules_to_save", names, _saved)
    return names


def _layers(config: Json) -> tuple[int, ...] | None:
    value = config.get("layers_to_transform")
    layers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(layer) is int for layer in layers):
        raise _wrong("layers_to_transform", value, "a layer's number or a list of them")
    return tuple(layers) or None


def _require_short(module: str) -> None:
    if len(module) > _MAX_NAME:
        raise CheckpointError(
            f"the adapter has a module {shown(module)}, whose name has {len(module)} characters, above the limit of "
            f"{_MAX_NAME}: no Llama or Mistral has such a module",
            "Take an adapter for a model of text alone, or copy or download this one again",
        )


def _require_patterns(key: str, patterns: Iterable[str], framed: Callable[[str], str] = str) -> None:
    """Refuses what is no regular expression, and patterns that Python's matcher could take for ever over.

    `framed`: the pattern inside the one that it is matched in.
    """
    ways = 0.0
    for pattern in patterns:
        if len(pattern) <= _MAX_PATTERN_LENGTH:
            try:
                _compiled(pattern)
                _compiled(f"(?P<idx>)({pattern})")  # its groups must not clash with those around it
            except (re.error, RecursionError, OverflowError) as error:
                raise _wrong(key, pattern, f"a regular expression ({error})") from error
            ways += _ways(framed(pattern))
        else:
            ways = math.inf
        if ways > _MAX_WAYS:
            raise CheckpointError(
                f"{ADAPTER_CONFIG}: {key} holds a pattern that is too costly to match: {shown(pattern)}",
                MERGE_WITH_PEFT,
            )


def _ways(pattern: str) -> float:
    """In how many ways the pattern may be laid over a name of _MAX_NAME characters, at most: what backtracking tries.

    With r repeats one after the other there are C(_MAX_NAME + r, r) places for their ends; an optional part doubles
    the ways, branches add up, and what follows each other multiplies. Of words that do not begin with one another, one
    at most fits a place. Infinite for repeated groups, references to groups and flags, which no module's name needs.
    """
    outer: list[tuple[int, int, int, int]] = []
    others, most = 0, 0  # the branches of this group that are through: ways without repeats, and most repeats
    ways, repeats = 1, 0  # the branch that is being read
    n_skipped = 0
    before = None
    for part in _PATTERN_PARTS.finditer(pattern):
        kind = part.lastgroup
        if kind == "strange" or (kind == "many" and before in ("close", "words")):
            return math.inf
        if kind == "words":
            words = sorted(part["words"].split("|"))
            n_skipped = max(n_skipped, len(words))
            ways *= len(words) if any(b.startswith(a) for a, b in pairwise(words)) else 1
        elif kind == "open":
            outer.append((others, most, ways, repeats))
            others, most, ways, repeats = 0, 0, 1, 0
        elif kind == "close" and outer:
            group_ways, group_repeats = others + ways, max(most, repeats)
            others, most, ways, repeats = outer.pop()
            ways, repeats = ways * group_ways, repeats + group_repeats
        elif kind == "bar":
            others, most, ways, repeats = others + ways, max(most, repeats), 1, 0
        elif kind == "maybe":
            ways *= 2
        elif kind == "many":
            repeats += 1
        before = kind
    repeats = max(most, repeats)
    return (others + ways) * math.comb(_MAX_NAME + repeats, repeats) * (1 + n_skipped // _SKIPPED_WORDS)


@functools.lru_cache(maxsize=1 << 16)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _ending(pattern: str) -> str:
    """PEFT's get_pattern_key."""
    return rf"(.*\.)?({pattern})$"


def _saved(pattern: str) -> str:
    return rf"(^|.*\.){pattern}($|\..*)"


def _numbered(pattern: str) -> str:
    return rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."


def _pattern_key(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that the module's name, or its end after a dot, matches."""
    return next((key for key in patterns if _compiled(_ending(key)).match(module)), module)


def _ends_with(module: str, names: tuple[str, ...]) -> bool:
    return module in names or any(module.endswith(f".{name}") for name in names)
