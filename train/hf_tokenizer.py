"""A checkpoint's SentencePiece vocabulary as Hugging Face's fast tokenizer, with the same ids.

transformers' own import of a tokenizer.model is silently wrong where tokenizer.json is missing; this one gives
SentencePiece's ids on every text that was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from zephyr_local.convert.vocabulary import TokenKind, Vocabulary
from zephyr_local.train.chat_ids import ChatIds

_SPACE = "\u2581"


def tokenizer_from_pieces(chats: ChatIds) -> PreTrainedTokenizerFast:
    """The vocabulary of `chats`, with the template that its models are served with."""
    vocabulary = chats.vocabulary
    return fast_tokenizer(vocabulary.source, add_bos=vocabulary.add_bos, template=chats.served_template)


def fast_tokenizer(
    vocabulary: Vocabulary, *, add_bos: bool, template: str, max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """A checkpoint's vocabulary as transformers has it; `max_length` is its ``model_max_length``."""
    assert vocabulary.bos_id is not None
    assert vocabulary.eos_id is not None
    bos, eos = vocabulary.tokens[vocabulary.bos_id], vocabulary.tokens[vocabulary.eos_id]
    tokenizer = Tokenizer(_model(vocabulary))
    if vocabulary.add_space_prefix is not False:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
        strip = [decoders.Strip(" ", 1, 0)]
    else:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        strip = []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = (TokenKind.CONTROL, TokenKind.UNKNOWN)
    tokenizer.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
            if kind in special
        ]
    )
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary.bos_id)]
        )
    limit = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token=vocabulary.tokens[vocabulary.unk_id or 0],
        pad_token=eos,  # a label of -100 stands over it; Mistral's vocabulary has none of its own
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=template,
        **limit,
    )


def _model(vocabulary: Vocabulary) -> BPE:
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    unknown = vocabulary.tokens[vocabulary.unk_id or 0]
    return BPE(vocab=ids, merges=_merges(vocabulary, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two pieces, best score first: the order in which SentencePiece merges."""
    scored: list[tuple[float, str, str]] = []
    for text, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.kinds, strict=True):
        if kind is TokenKind.NORMAL:
            halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
            known: Sequence[tuple[int, int, str, str]] = sorted(
                (ids[left], ids[right], left, right) for left, right in halves if left in ids and right in ids
            )
            scored += [(score, left, right) for _, _, left, right in known]
    scored.sort(key=lambda merge: -merge[0])  # stable: equal scores stay in the order of the halves
    return [(left, right) for _, left, right in scored]
