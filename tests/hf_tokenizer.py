"""Hugging Face's tokenizer for a SentencePiece model, built from its pieces: the reference that our ids must equal.

``from_pretrained`` on a folder with only tokenizer.model is silently wrong in transformers 5.
"""

from __future__ import annotations

from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, normalizers, processors
from tokenizers.models import BPE


def hf_tokenizer(spm_path: str, template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_bpe(sentencepiece.SentencePieceProcessor(model_file=spm_path)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def _bpe(pieces: Any) -> Tokenizer:
    ids = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    merges: list[tuple[float, tuple[str, str]]] = []
    for piece, token in ids.items():
        if pieces.is_byte(token) or pieces.is_control(token) or pieces.is_unknown(token):
            continue
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += [(-pieces.get_score(token), pair) for pair in sorted(known, key=lambda p: (ids[p[0]], ids[p[1]]))]
    merges.sort(key=lambda merge: merge[0])
    model = BPE(vocab=ids, merges=[pair for _, pair in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer
