"""Several questions at once with asyncio, each with a time limit. Give the path of a GGUF to ask that one."""

from __future__ import annotations

import asyncio
import sys

from zephyr_local import AsyncZephyr, Sampling

QUESTIONS = ("What is the capital of France?", "What is the capital of Japan?", "What does the cow say?", "7 times 8?")


async def answer(zephyr: AsyncZephyr, question: str) -> str:
    try:
        async with asyncio.timeout(60):  # leaving it cancels the answer
            reply = await zephyr.complete([{"role": "user", "content": question}], Sampling(temperature=0))
    except TimeoutError:
        return "(took too long)"
    return reply.text


async def main() -> None:
    async with AsyncZephyr(sys.argv[1] if len(sys.argv) > 1 else None) as zephyr:
        answers = await asyncio.gather(*(answer(zephyr, question) for question in QUESTIONS))
    for question, text in zip(QUESTIONS, answers, strict=True):
        print(f"{question} {text}")


asyncio.run(main())
