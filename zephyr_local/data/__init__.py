"""What is shipped with the package: the tiny model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from zephyr_local.errors import ModelNotFoundError

BUNDLED_MODEL = "zephyr-tiny-Q4_K_M.gguf"


def bundled_model_path() -> Path:
    """The path of the bundled model. Raises ModelNotFoundError where this installation has none."""
    # llama.cpp maps a file; a package imported out of a zip has none, and then says so like one without the model.
    path = Path(str(files(__name__) / BUNDLED_MODEL))
    if not path.is_file():
        raise ModelNotFoundError(
            f"this installation lacks the bundled model {BUNDLED_MODEL}",
            "Reinstall zephyr-local, or give the path of a .gguf file",
        )
    return path
