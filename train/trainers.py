"""TRL's trainers, fed with ids of ours; TRL's parser reads the YAML, and the model loads as in TRL's own scripts."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from datasets import Dataset
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    SFTConfig,
    SFTTrainer,
    get_peft_config,
    get_quantization_config,
)

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.recipe import Stage
from zephyr_local.train.stage_plan import trl_arguments

MIN_KEPT_CHECKPOINTS = 2
"""The older one is whole while the newer one is being written."""


@dataclass(frozen=True, slots=True)
class StageArguments:
    """A stage's YAML as TRL understands it."""

    stage: Stage
    training: SFTConfig | DPOConfig
    model: ModelConfig
    assistant_only_loss: bool
    """Labels are ours, so TRL is not told."""


def parse_stage(stage: Stage, keys: Mapping[str, Any], output: Path) -> StageArguments:
    """Read a stage's keys by TRL's own parser; the trainer writes its checkpoints to `output`.

    Raises InvalidInputError with what TRL or transformers objects to.
    """
    if importlib.util.find_spec("tensorboard") is not None:
        keys = {"report_to": "tensorboard", **keys}
    # Without a GPU transformers would refuse bf16 before the guard can say what to set.
    use_cpu = keys.get("use_cpu") is True or not torch.cuda.is_available()
    training, model = trl_arguments(stage, {**keys, "output_dir": str(output)}, use_cpu=use_cpu)
    for key in ("push_to_hub", "load_best_model_at_end", "save_only_model"):
        if getattr(training, key):
            raise InvalidInputError(f"{stage}.yaml sets {key}", "Remove it: runs stay local and go on after a kill")
    training.disable_tqdm = True
    if training.save_total_limit is not None:
        training.save_total_limit = max(training.save_total_limit, MIN_KEPT_CHECKPOINTS)
    assistant_only = bool(getattr(training, "assistant_only_loss", False))
    if assistant_only:
        training.assistant_only_loss = False
    return StageArguments(stage, training, model, assistant_only)


def keep_outputs_whole(plugin: FullyShardedDataParallelPlugin) -> None:
    """Have FSDP2 leave a model's outputs as they are.

    accelerate has them cast to the computing type, and TRL's models put out log probabilities: summed over an answer
    in bfloat16 they are off by whole nats, and DPO's margins are zero until they jump. FSDP1 casts no outputs.
    """
    policy = plugin.mixed_precision_policy
    if isinstance(policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


class _WholeOutputs:
    """What is mixed into a trainer of TRL's for it to keep a model's outputs whole under FSDP2."""

    is_fsdp_enabled: bool
    accelerator: Any

    def create_accelerator_and_postprocess(self) -> None:
        """Called by the trainer's initialiser, before anything is sharded."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        if self.is_fsdp_enabled:
            keep_outputs_whole(self.accelerator.state.fsdp_plugin)


class WholeSFTTrainer(_WholeOutputs, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer, which says its loss in float32 under FSDP2, too."""


class IdsDPOTrainer(_WholeOutputs, DPOTrainer):  # type: ignore[misc]
    """A DPOTrainer that takes ``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` as they are."""

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any) -> Dataset:  # noqa: ANN401 — TRL's own signature
        return dataset


@dataclass(frozen=True, slots=True)
class StageData:
    """A stage's ids: ``input_ids`` and ``labels``, or ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``."""

    train: Dataset
    test: Dataset | None


def make_trainer(
    arguments: StageArguments,
    base: Path,
    tokenizer: PreTrainedTokenizerFast,
    data: StageData,
    callbacks: Sequence[TrainerCallback],
) -> SFTTrainer | DPOTrainer:
    """TRL's trainer for a stage that starts from the checkpoint in `base`."""
    training, model = arguments.training, arguments.model
    training.model_init_kwargs = {
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        **(training.model_init_kwargs or {}),
    }
    kind = IdsDPOTrainer if arguments.stage == "ddpo" else WholeSFTTrainer
    return kind(
        model=str(base),
        args=training,
        train_dataset=data.train,
        eval_dataset=data.test if training.eval_strategy != "no" else None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        callbacks=list(callbacks),
    )
