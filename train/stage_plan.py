"""What of a stage's settings decides its hardware, memory and time: the forecast's and the guard's common ground."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.launch import Layout
from zephyr_local.train.model_shape import LINEAR_MODULES
from zephyr_local.train.recipe import Recipe, Stage


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage as TRL understands it, with how it is launched."""

    stage: Stage
    layout: Layout = "one"
    n_processes: int = 1
    sequences_a_step: int | None = None
    """What the recipe asserts; None: nothing."""
    per_device: int = 1
    """Sequences, or pairs, in a forward pass of one process."""
    accumulation: int = 1
    max_length: int | None = None
    epochs: float = 1.0
    max_steps: int | None = None
    """None: the epochs decide."""
    dtype: str = "float32"
    """Of the weights as they are loaded: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (the checkpoint's)."""
    bf16: bool = False
    """Mixed precision: matrices are multiplied in bfloat16."""
    fp16: bool = False
    use_cpu: bool = False
    checkpointing: bool = True
    attention: str | None = None
    optimizer: str = "adamw_torch"
    lora_rank: int | None = None
    """None: all parameters train."""
    lora_modules: tuple[str, ...] = LINEAR_MODULES
    lora_dropout: float = 0.0
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    double_quantised: bool = False
    precomputed_reference: bool = False
    packed: bool = False

    @property
    def is_dpo(self) -> bool:
        return self.stage == "ddpo"

    @property
    def product(self) -> int:
        """Sequences, or pairs, of a step."""
        return self.per_device * self.accumulation * self.n_processes

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number that matrices are multiplied in."""
        return 2 if self.bf16 or self.fp16 else self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight as it is loaded; the released bases are bfloat16, so ``auto`` is too."""
        return 4 if self.dtype == "float32" else 2


def plan_stage(recipe: Recipe, stage: Stage, layout: Layout, n_processes: int) -> StagePlan:
    """A stage's plan from its recipe, read by TRL's own parser on whatever machine this is.

    Raises InvalidInputError, naming the key, for one that TRL does not know or a value that it refuses.
    """
    training, model = trl_arguments(stage, recipe.trl[stage])
    return plan_from_arguments(recipe, stage, training, model, (layout, n_processes))


def trl_arguments(stage: Stage, keys: Mapping[str, Any], *, use_cpu: bool = True) -> tuple[Any, Any]:
    """A stage's keys as TRL's (SFTConfig or DPOConfig, ModelConfig), read by TRL's own parser.

    transformers refuses bf16 where there is no GPU unless `use_cpu` is set, so it is set unless a stage is to run; what
    the recipe says of it is in its keys. Raises InvalidInputError for a key that TRL does not know, and for what it or
    transformers refuses.
    """
    from trl import DPOConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    parser = TrlParser((ScriptArguments, DPOConfig if stage == "ddpo" else SFTConfig, ModelConfig))
    given = {"output_dir": tempfile.gettempdir(), **keys, "use_cpu": use_cpu}
    unknown = parser.set_defaults_with_config(**given)
    if unknown:
        names = ", ".join(name.removeprefix("--") for name in unknown[::2])
        raise InvalidInputError(f"TRL does not know {names} of {stage}.yaml", "Remove the key, or mend its name")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _, training, model = parser.parse_args_into_dataclasses(args=[])
    except (ValueError, TypeError, ImportError) as error:
        raise InvalidInputError(f"{stage}.yaml is refused by TRL: {error}", "Mend the key") from None
    except SystemExit:  # argparse says which key, after its usage
        problem = said.getvalue().rpartition("error: ")[2].strip()
        raise InvalidInputError(f"{stage}.yaml is refused by TRL: {problem}", "Mend the key") from None
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(training, key) < 1:
            raise InvalidInputError(f"{key} of {stage}.yaml is {getattr(training, key)}", "Give 1 or more")
    return training, model


def plan_from_arguments(
    recipe: Recipe,
    stage: Stage,
    training: Any,  # noqa: ANN401 — TRL's configs, which are imported late
    model: Any,  # noqa: ANN401
    processes: tuple[Layout, int],
) -> StagePlan:
    """A stage's plan from TRL's arguments; `processes` are what they share, and how many they are."""
    layout, n_processes = processes
    lora = model.lora_r if model.use_peft else None
    return StagePlan(
        stage=stage,
        layout=layout,
        n_processes=n_processes,
        sequences_a_step=recipe.sequences_a_step.get(stage),
        per_device=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        max_length=training.max_length,
        epochs=float(training.num_train_epochs),
        max_steps=training.max_steps if training.max_steps > 0 else None,
        dtype=model.dtype or "float32",
        bf16=training.bf16,
        fp16=training.fp16,
        use_cpu=recipe.trl[stage].get("use_cpu") is True,
        checkpointing=bool(training.activation_checkpointing),
        attention=model.attn_implementation,
        optimizer=str(getattr(training.optim, "value", training.optim)),
        lora_rank=lora,
        lora_modules=_lora_modules(model.lora_target_modules),
        lora_dropout=0.0 if stage == "ddpo" and training.disable_dropout else model.lora_dropout,
        load_in_4bit=model.load_in_4bit,
        load_in_8bit=model.load_in_8bit,
        double_quantised=model.use_bnb_nested_quant,
        precomputed_reference=stage == "ddpo" and training.precompute_ref_log_probs,
        packed=bool(getattr(training, "packing", False)),
    )


def _lora_modules(names: str | list[str] | None) -> tuple[str, ...]:
    """The modules that peft gives adapters: it takes names, a pattern, ``all-linear``, or nothing (its default)."""
    if names is None:
        return ("q_proj", "v_proj")  # peft's default for Mistral and Llama
    if names == "all-linear":
        return LINEAR_MODULES
    if isinstance(names, str):
        matched = tuple(name for name in LINEAR_MODULES if re.fullmatch(names, name))
        return matched or (names,)
    return tuple(names)
