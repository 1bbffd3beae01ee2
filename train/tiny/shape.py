"""What the base stage makes zephyr-tiny from: its shape and its vocabulary."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_local.train.tiny.dialogues import dialogues
from zephyr_local.train.tiny.text import paragraphs

if TYPE_CHECKING:
    from transformers import MistralConfig


@dataclass(frozen=True, slots=True)
class TinyShape:
    """Mistral's architecture in small. Row lengths are multiples of 256, so that every matrix takes a K-quant."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 4
    n_ctx: int = 1024

    def config(self) -> MistralConfig:
        """As transformers takes it: ``MistralForCausalLM(shape.config())`` is a random model in float32."""
        from transformers import MistralConfig

        from zephyr_local.train.tiny.tokenizer import BOS_ID, EOS_ID

        return MistralConfig(
            dtype="float32",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_kv_heads,
            head_dim=self.hidden_size // self.n_heads,
            max_position_embeddings=self.n_ctx,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            sliding_window=None,
            tie_word_embeddings=False,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            pad_token_id=None,
        )


@dataclass(frozen=True, slots=True)
class VocabularySample:
    """What the vocabulary is trained on."""

    n_dialogues: int = 15_000
    n_paragraphs: int = 15_000
    seed: int = 18
    """Not the stages' own: the vocabulary need not see the very texts that training starts with."""

    def texts(self) -> Iterator[str]:
        """The sample, chats as they are rendered."""
        from zephyr_local.train.tiny.tokenizer import chat_parts

        for dialogue in itertools.islice(dialogues(self.seed), self.n_dialogues):
            yield from chat_parts(dialogue.messages)
        yield from itertools.islice(paragraphs(self.seed), self.n_paragraphs)


def new_tokenizer(folder: Path, shape: TinyShape = TinyShape(), sample: VocabularySample = VocabularySample()) -> None:
    """Train the vocabulary and write its files into a folder: tokenizer.model and what transformers reads.

    The same bytes each time, on any number of threads: SentencePiece trains on one.
    """
    from zephyr_local.train.tiny.tokenizer import train_vocabulary, write_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, train_vocabulary(sample.texts(), shape.vocab_size), shape.n_ctx)
