"""Writes adapter_digests.json: what llama.cpp's own `convert_lora_to_gguf.py` makes of small PEFT adapters.

    python benchmarks/reference/build.py --only converter
    python -m tests.reference.make_adapter_digests --reference build/reference

The adapters are those whose every factor has the scaling alpha / rank: that converter knows no other. What becomes of
the others is shown by llama.cpp's logits (tests/convert/test_lora_gguf.py).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.reference.build import DEFAULT_FOLDER, NotBuiltError, ReferenceConverter, reference_converter
from tests.adapter_builder import ALL_LINEAR, build_adapter, change_tensors
from tests.checkpoint_builder import ModelShape, as_stored, write_json
from tests.reference.cases import Case
from tests.reference.digests import CONVERTER_TYPES, CaseDigests, digest_file, digest_inputs, dump_fixture

FIXTURE = Path(__file__).with_name("adapter_digests.json")
MAKE = "python -m tests.reference.make_adapter_digests --reference build/reference"


@dataclass(frozen=True, slots=True)
class AdapterCase(Case):
    """An adapter for a base of the case's shape, of which the converters only read config.json."""

    targets: Iterable[str] = ("q_proj", "v_proj")
    rank: int = 8
    settings: Mapping[str, object] = field(default_factory=dict)
    """Entries of adapter_config.json."""

    def build(self, parent: Path) -> Path:
        """Write the adapter into the folder `parent` / name, its base beside it, and return the adapter's folder."""
        assert isinstance(self.dtype, str), self.dtype
        base, folder = self.base(parent), parent / self.name
        base.mkdir(parents=True)
        write_json(base / "config.json", self.shape.config())
        build_adapter(folder, self.shape, targets=self.targets, rank=self.rank, dtype=self.dtype, **self.settings)
        self.change(folder)
        return folder

    def base(self, parent: Path) -> Path:
        """The base's folder."""
        return parent / f"{self.name}-base"


def _model_card(folder: Path) -> None:
    """As PEFT and trl write it."""
    (folder / "README.md").write_text(
        "---\nbase_model: HuggingFaceH4/zephyr-7b-beta\nlibrary_name: peft\npipeline_tag: text-generation\n"
        "license: mit\nlanguage: en\ndatasets:\n- someone/words-v1.0\n"
        "tags:\n- base_model:adapter:HuggingFaceH4/zephyr-7b-beta\n- lora\n- sft\n- trl\n---\n# Model Card\n",
        encoding="utf-8",
    )


def _two_types(folder: Path) -> None:
    """A stays float32, B becomes bfloat16."""

    def change(tensors: dict[str, tuple[str, object]]) -> None:
        for name, (_, values) in tensors.items():
            if ".lora_B" in name:
                tensors[name] = ("BF16", as_stored(values, "BF16"))

    change_tensors(folder, change)


_ONE_LAYER = ModelShape(n_layers=1)

CASES: tuple[AdapterCase, ...] = (
    AdapterCase("all-linear", ModelShape(n_layers=2), "F32", targets=ALL_LINEAR),
    AdapterCase("rank-32", _ONE_LAYER, "F16", targets=ALL_LINEAR, rank=32),
    AdapterCase("rank-33", _ONE_LAYER, "BF16", rank=33, settings={"lora_alpha": 7.3}),
    AdapterCase("embedding-and-output", _ONE_LAYER, "BF16", targets=("embed_tokens", "lm_head", "k_proj"), rank=32),
    AdapterCase("wide-heads", ModelShape(n_layers=1, n_heads=4, n_kv_heads=1, head_dim=128), "F32", targets=ALL_LINEAR),
    AdapterCase("tied-llama", ModelShape(n_layers=1, tied=True, architecture="LlamaForCausalLM"), "F32"),
    AdapterCase("some-chat-7b-lora-v0.2", _ONE_LAYER, "F32", change=_model_card),
    AdapterCase("two-types", _ONE_LAYER, "F32", change=_two_types),
)


def make_case(case: AdapterCase, folder: Path, converter: ReferenceConverter) -> CaseDigests:
    """Digests of one case, which the reference converts in `folder`."""
    adapter = case.build(folder)
    files = {}
    for file_type in CONVERTER_TYPES:
        target = folder / f"{case.name}-{file_type}.gguf"
        command = converter.lora_command(adapter, case.base(folder), target, file_type.lower())
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        files[file_type] = digest_file(target)
    return CaseDigests(digest_inputs(adapter), files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=DEFAULT_FOLDER, help="what build.py made")
    given = parser.parse_args()
    try:
        converter = reference_converter(given.reference.absolute())
    except NotBuiltError as error:
        raise SystemExit(str(error)) from None
    made_with = {
        "converter": asdict(converter.stamp),
        "adapters": {"numpy": importlib.metadata.version("numpy"), "python": platform.python_version()},
    }
    with tempfile.TemporaryDirectory(prefix="reference-") as name:
        digests = {case.name: make_case(case, Path(name), converter) for case in CASES}
    FIXTURE.write_text(dump_fixture(made_with, digests), encoding="utf-8")


if __name__ == "__main__":
    main()
