"""Ask the bundled tiny model, or the GGUF named on the command line, and print the answer as it comes."""

from __future__ import annotations

import sys

from zephyr_local import Sampling, Zephyr

with Zephyr(sys.argv[1] if len(sys.argv) > 1 else None) as zephyr:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    for piece in zephyr.stream(messages, Sampling(temperature=0)):
        print(piece.text, end="", flush=True)
print()
