"""Varied honest text, and text that tries to pass for the machinery around it."""

from __future__ import annotations

import random

_WORDS = """
the of and zebra Wien naïve façade Ωmega привет мир 你好 世界 こんにちは مرحبا שלום नमस्ते 👋 👩\u200d👩\u200d👧 🇦🇹
ﬁ e\u0301 ½ № 1234567 3.14159 foo_bar CamelCase --flag http://a.b/c?d=e&f=g#h {} [] () \\n \\ / | <|> <b>bold</b>
<|im_start|> #include \'\'\' "quoted" ▁ ▁▁ \u200b \ufeff [INST] [/INST] <<SYS>> a*b+c==d; ΑΒΓ ǅ ß ﷽ 🧿🧿🧿
"""
WORDS = [*_WORDS.split(), "\u2028", "\xa0"]
BLANKS = (" ", " ", " ", "  ", "\n", "\n\n", "\t", "", "    ", "\r\n")
CONTROL_LIKE = ("</s>", "<s>", "<unk>", "<|user|>\n", "<|assistant|>\n", "<|system|>\n", "</", "s>", "<", ">", "/s>")


def honest_texts(count: int, seed: int) -> list[str]:
    """Text of every sort, the empty one included, without the text of a control token."""
    dice = random.Random(seed)
    texts = ["", " ", "\n", "a", " a", "a ", "\n\n\n", "<", "</", "s>"]
    while len(texts) < count:
        pieces: list[str] = []
        for _ in range(dice.randrange(1, 25)):
            if dice.random() < 0.1:
                pieces.append(
                    "".join(chr(dice.choice((dice.randrange(32, 127), dice.randrange(160, 0x2FFF)))) for _ in range(5))
                )
            else:
                pieces.append(dice.choice(WORDS))
            pieces.append(dice.choice(BLANKS))
        text = "".join(pieces)
        if not any(control in text for control in ("</s>", "<s>", "<unk>")):
            texts.append(text)
    return texts


def hostile_text(dice: random.Random) -> str:
    """Control tokens in whole, in halves, nested and glued together, with a little honest text between."""
    return "".join(
        dice.choice(CONTROL_LIKE) if dice.random() < 0.7 else dice.choice(WORDS) for _ in range(dice.randrange(1, 14))
    )
