"""What `--search thorough` gains a model: its answers' distributions beside those of the float model, by either search.

    make tiny                                              # trains build/zephyr-tiny
    python benchmarks/search_quality.py build/zephyr-tiny/ddpo

For a checkpoint of zephyr-tiny, whose dialogues can be made without end: every matrix is encoded and decoded as the
mix of a file type says, and transformers computes the logits in float32 for assistants' turns of dialogues that were
not trained on (another seed). Told are the squared error of all matrices, the Kullback-Leibler divergence from the
float model (mean and median over tokens), the loss, and how often the likeliest token is the float model's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor
from transformers import MistralForCausalLM

from zephyr_local.convert.hf_to_gguf import ConvertOptions, EncoderOptions, OutputRequest, Search, open_source
from zephyr_local.quantize.encoders import open_encoder
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.output_plan import encoded_kinds, plan_outputs
from zephyr_local.quantize.types import FileType
from zephyr_local.train.chat_ids import NOT_LEARNED, ChatIds, DialogueIds
from zephyr_local.train.tiny.dialogues import dialogues

SEED = 4242  # of the dialogues; training has another


@dataclass(frozen=True, slots=True)
class Said:
    """Of every token that an assistant says: the model's log-probabilities, and the token."""

    log_probabilities: Tensor  # (n_tokens, vocab), float64
    tokens: Tensor  # (n_tokens,)

    @property
    def loss(self) -> float:
        return float(-self.log_probabilities.gather(1, self.tokens.unsqueeze(1)).mean())


def listen(model: MistralForCausalLM, chats: list[DialogueIds]) -> Said:
    found, tokens = [], []
    with torch.inference_mode():
        for chat in chats:
            targets = torch.tensor(chat.labels(assistant_only=True)[1:])
            said = targets != NOT_LEARNED
            logits = model(input_ids=torch.tensor([chat.ids]), use_cache=False).logits[0, :-1][said]
            found.append(torch.log_softmax(logits.double(), dim=-1))
            tokens.append(targets[said])
    return Said(torch.cat(found), torch.cat(tokens))


def quantized(
    model: MistralForCausalLM, checkpoint: Path, file_type: FileType, search: Search
) -> tuple[MistralForCausalLM, float]:
    """The model with every matrix encoded and decoded, and the squared error of all.

    The order of a matrix's rows, which the conversion changes, does not matter: they are encoded one by one.
    """
    source = open_source(checkpoint, ConvertOptions())
    (plan,) = plan_outputs(source, [OutputRequest(Path("x.gguf"), file_type)], allow_requantize=False)
    encoder = open_encoder(EncoderOptions(search=search), encoded_kinds([plan]))
    kinds = {planned.tensor.source_name: planned.kind for planned in plan.tensors if planned.kind.is_quantized}
    other, error = copy.deepcopy(model), 0.0
    for name, weights in other.state_dict().items():
        if name in kinds:
            rows = np.array(weights.numpy(), dtype=np.float32)
            decoded = ggml.decode(kinds[name], encoder.encode(kinds[name], rows, None), rows.shape[1])
            error += float(((decoded - rows) ** 2).sum(dtype=np.float64))
            weights.copy_(torch.from_numpy(decoded))
    return other, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="such as Q4_K_M; else Q4_K_M, Q5_K_M and Q6_K")
    parser.add_argument("--dialogues", type=int, default=1000, help="of some 80 tokens, questions included")
    given = parser.parse_args()
    checkpoint = given.checkpoint.absolute()
    rule = ChatIds(checkpoint)
    chats = [rule.dialogue_ids(made.messages) for made in itertools.islice(dialogues(SEED), given.dialogues)]
    model = MistralForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    exact = listen(model, chats)
    print(f"{len(exact.tokens):,} tokens; the float model's loss is {exact.loss:.5f}")
    print(f"{'type':8}{'search':>10}{'sq. error':>12}{'KL mean':>12}{'KL median':>12}{'loss':>10}{'same token':>12}")
    for name in given.types or ["Q4_K_M", "Q5_K_M", "Q6_K"]:
        for search in Search:
            other, error = quantized(model, checkpoint, FileType[name], search)
            said = listen(other, chats)
            apart = exact.log_probabilities - said.log_probabilities
            divergence = (exact.log_probabilities.exp() * apart).sum(dim=1)
            same = exact.log_probabilities.argmax(dim=1) == said.log_probabilities.argmax(dim=1)
            print(
                f"{name:8}{search.value:>10}{error:12.4f}{divergence.mean():12.3e}{divergence.median():12.3e}"
                f"{said.loss:10.5f}{same.double().mean():12.4%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
