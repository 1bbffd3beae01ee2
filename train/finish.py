"""A trained stage made into a checkpoint's folder like any other: merged, with its tokenizer, fit for serving.

``python -m zephyr_local.train.finish OUT STAGE`` runs after the stage, in a process that knows of no launcher: under
ZeRO-3 a model that is loaded by one process alone waits for the others for ever.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from zephyr_local.convert.model_config import read_json
from zephyr_local.train.card import write_card
from zephyr_local.train.chat_ids import ChatIds
from zephyr_local.train.child import run_child
from zephyr_local.train.data.records import write_whole
from zephyr_local.train.recipe import Recipe, Stage
from zephyr_local.train.run_folder import RunFolder, stage_base

ADAPTER_FOLDER: Final = "adapter"
_TOKENIZER_FILES: Final = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_NOT_KEPT: Final = ("training_args.bin", "README.md", "chat_template.jinja", *_TOKENIZER_FILES)


def finish_stage(run: RunFolder, recipe: Recipe, stage: Stage, *, keep_checkpoints: bool) -> None:
    """Complete a stage that has been trained; doing it again after a kill does no harm."""
    folder = run.stage(stage)
    base = stage_base(run, recipe, stage)
    chats = ChatIds(base, recipe.template, recipe.system_turn)
    finish_model(folder.saved, folder.folder, base, chats)
    write_card(run, stage)
    steps = json.loads(folder.results.read_bytes())["n_steps"]
    write_whole(folder.done, json.dumps({"stage": stage, "steps": steps}).encode() + b"\n")
    if not keep_checkpoints:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    for path in folder.data.glob("cache-*.arrow"):  # what TRL derived from the ids
        path.unlink()


def finish_model(saved: Path, target: Path, base: Path, chats: ChatIds) -> None:
    """Move what the trainer saved into `target`: a full model as it is, an adapter merged into `base` and kept beside.

    `base` is the full-precision checkpoint that the stage began with, also where it was trained on in 4 bits: merging
    into the 4-bit weights would bake their error in.
    """
    target.mkdir(parents=True, exist_ok=True)
    if (saved / "adapter_config.json").is_file():
        _name_base(saved / "adapter_config.json", base)
        _move(saved, target / ADAPTER_FOLDER)
    if (target / ADAPTER_FOLDER).is_dir():
        saved = saved.with_name(".merged.part")
        shutil.rmtree(saved, ignore_errors=True)
        merge_adapter(target / ADAPTER_FOLDER, base, saved)
    for path in sorted(saved.iterdir()) if saved.is_dir() else ():
        if path.name not in _NOT_KEPT:
            path.replace(target / path.name)
    shutil.rmtree(saved, ignore_errors=True)
    copy_tokenizer(base, target, chats)
    _fit_config(target / "config.json", base)


def _move(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def _name_base(config: Path, base: Path) -> None:
    # PEFT writes what the model was loaded from; an adapter without a base is of no use to anybody.
    entries = read_json(config)
    entries["base_model_name_or_path"] = str(base)
    write_whole(config, json.dumps(entries, indent=2).encode() + b"\n")


def merge_adapter(adapter: Path, base: Path, target: Path) -> None:
    """Merge a PEFT adapter into its full-precision base, on the CPU, in the type that the base is stored in."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", device_map={"": "cpu"})
    with torch.no_grad():
        merged: Any = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    merged.save_pretrained(target)


def copy_tokenizer(base: Path, target: Path, chats: ChatIds) -> None:
    """The base's tokenizer files, with the template that the model was trained with; a tokenizer.json in any case.

    transformers' ``save_pretrained`` never writes tokenizer.model, without which conversion has to guess scores.
    """
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    config_path = target / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    config.pop("chat_template", None)  # chat_template.jinja says it
    if not (target / "tokenizer.json").is_file():
        from zephyr_local.train.hf_tokenizer import tokenizer_from_pieces

        tokenizer = tokenizer_from_pieces(chats)
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
        config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if config.get("tokenizer_class") in (None, "LlamaTokenizer", "TokenizersBackend"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # what reads tokenizer.json as it is
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if not config.get("eos_token") else {}
    write_whole(config_path, json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")
    write_whole(target / "chat_template.jinja", chats.served_template.encode())


def _fit_config(path: Path, base: Path) -> None:
    """What training switched off and serving needs, and what TRL set for padding its batches."""
    config, before = read_json(path), read_json(base / "config.json")
    config["use_cache"] = True
    config["pad_token_id"] = before.get("pad_token_id")
    config.pop("quantization_config", None)
    write_whole(path, json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")
    generation = path.with_name("generation_config.json")
    if generation.is_file():
        entries = read_json(generation)
        entries.pop("pad_token_id", None)
        entries["use_cache"] = True
        write_whole(generation, json.dumps(entries, indent=2).encode() + b"\n")


def main() -> int:
    """The process's entry point; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m zephyr_local.train.finish")
    parser.add_argument("out", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep-checkpoints", action="store_true")
    given = parser.parse_args()
    run = RunFolder(given.out)
    return run_child(
        lambda: finish_stage(run, Recipe.read(run.recipe), given.stage, keep_checkpoints=given.keep_checkpoints),
        threads=given.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
