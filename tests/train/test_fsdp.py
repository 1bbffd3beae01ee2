"""Under FSDP2 a token's log probability keeps float32: rounded to bfloat16, an answer's sum is off by whole nats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard
from transformers import MistralConfig, MistralForCausalLM, Trainer
from trl.trainer.utils import add_fused_lm_head

from zephyr_local.train.trainers import IdsDPOTrainer, WholeSFTTrainer, keep_outputs_whole


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", world_size=1, rank=0)
    yield
    torch.distributed.destroy_process_group()


def policy_of_accelerate() -> FullyShardedDataParallelPlugin:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    plugin.set_mixed_precision("bf16")  # as accelerate's state does on GPUs; on CPUs it has no FSDP
    return plugin


def sharded_log_probs(plugin: FullyShardedDataParallelPlugin) -> tuple[torch.Tensor, torch.Tensor]:
    """A sharded model's log probabilities by TRL's head, and those of the same model in float32: (2, 63) each."""
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    model = MistralForCausalLM(config)
    add_fused_lm_head(model)
    ids = torch.randint(3, 512, (2, 64))
    exact = model(ids, labels=ids, fused_lm_head=True).log_probs.detach()
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=plugin.mixed_precision_policy)
    fully_shard(model, mp_policy=plugin.mixed_precision_policy)
    return model(ids, labels=ids, fused_lm_head=True).log_probs, exact


@pytest.mark.usefixtures("one_process")
def test_log_probabilities_stay_float32() -> None:
    plugin = policy_of_accelerate()
    keep_outputs_whole(plugin)
    log_probs, exact = sharded_log_probs(plugin)
    assert log_probs.dtype == torch.float32
    assert (log_probs.sum(dim=1) - exact.sum(dim=1)).abs().max() < 0.2  # the weights' rounding
    log_probs.sum().backward()  # through the shards


@pytest.mark.usefixtures("one_process")
def test_accelerate_s_own_policy_rounds_them() -> None:
    """Why ours is there. Where this fails, accelerate no longer rounds and ours can go."""
    log_probs, exact = sharded_log_probs(policy_of_accelerate())
    assert log_probs.dtype == torch.bfloat16
    sums = log_probs.sum(dim=1)
    assert sums.dtype == torch.bfloat16  # 63 tokens of some -6.2 nats: only every second nat has a number there
    assert exact.sum(dim=1).abs().min() > 256


@pytest.mark.parametrize("kind", [IdsDPOTrainer, WholeSFTTrainer])
def test_trainers_set_it_before_anything_is_sharded(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = policy_of_accelerate()

    def create(trainer: Trainer) -> None:
        trainer.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", create)
    kind.create_accelerator_and_postprocess(object.__new__(kind))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.output_dtype) == (torch.bfloat16, None)
