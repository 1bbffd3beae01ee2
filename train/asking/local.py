"""A local GGUF, asked through our own engine: several answers at once, in a process that may crash without harm."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Final

from zephyr_local.api import Zephyr
from zephyr_local.errors import ContextExceededError, EngineCrashed, ModelNotFoundError, TemplateError
from zephyr_local.settings import DEFAULT_N_CTX, MAX_N_CTX, MAX_PARALLEL, EngineSettings, Sampling
from zephyr_local.train.asking.models import BUNDLED, ModelSpec
from zephyr_local.train.asking.request import Answer, RefusedError, Request, TransientError

_HEADER_BYTES: Final = 16 << 20
_SAMPLED_BLOCKS: Final = 64
_BLOCK_BYTES: Final = 1 << 16


class LocalModel:
    """Loads when it is first asked; any thread may use it."""

    def __init__(self, spec: ModelSpec) -> None:
        """Raises ModelNotFoundError for a file that is not there."""
        self.spec = spec
        path = _bundled() if spec.gguf == BUNDLED else Path(spec.gguf)
        if not path.is_file():
            raise ModelNotFoundError(f"there is no file {path}", "Check the path")
        self.path = path
        self.identity = f"gguf:{fingerprint(path)}:{spec.template or ''}"
        self._zephyr: Zephyr | None = None
        self._loading = threading.Lock()

    def _loaded(self) -> Zephyr:
        """The model, loaded at the first call: where every answer is there already, it never is."""
        with self._loading:
            if self._zephyr is None:
                n_parallel = min(self.spec.concurrency, MAX_PARALLEL)
                n_ctx = self.spec.n_ctx or min(MAX_N_CTX, DEFAULT_N_CTX * n_parallel)
                settings = EngineSettings(n_ctx=n_ctx, n_parallel=n_parallel, n_gpu_layers=self.spec.n_gpu_layers)
                self._zephyr = Zephyr(self.path, settings, template=self.spec.template)
            return self._zephyr

    def ask(self, request: Request) -> Answer:
        """One try. Raises TransientError where the engine crashed, RefusedError for a chat that does not fit, and what
        Zephyr raises where the model cannot be loaded.
        """
        sampling = Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
        )
        try:
            reply = self._loaded().complete(request.messages, sampling)
        except EngineCrashed:
            raise TransientError("the engine crashed") from None
        except (ContextExceededError, TemplateError) as error:
            raise RefusedError(str(error)) from None
        return Answer(reply.text, reply.finish.reason, reply.finish.prompt_tokens, reply.finish.completion_tokens)

    def close(self) -> None:
        """Free the model; another question loads it again."""
        if self._zephyr is not None:
            self._zephyr.close()
            self._zephyr = None


def _bundled() -> Path:
    from zephyr_local.data import bundled_model_path

    return bundled_model_path()


def fingerprint(path: Path) -> str:
    """What tells one model file from another in a moment: its size, its beginning with all metadata, and blocks spread
    over the rest. A file that was trained on differs in every tensor, so in every block.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as stream:
        digest.update(stream.read(_HEADER_BYTES))
        for block in range(_SAMPLED_BLOCKS):
            stream.seek(block * max(0, size - _BLOCK_BYTES) // max(1, _SAMPLED_BLOCKS - 1))
            digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()[:32]
