"""A user's models, and what a name of theirs comes to: what the tests of the library share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gguf_builder import tiny_model
from tests.model_store import store_fixtures as stores
from tests.model_store.store_fixtures import put
from zephyr_local.errors import ModelNotFoundError
from zephyr_local.model_store.catalogue import catalogue_path
from zephyr_local.model_store.library import resolve, store_folder

SMALL, MIDDLE, LARGE = (tiny_model(n_block=n).build() for n in (1, 2, 3))
OTHER = tiny_model(n_block=1, seed=1).build()  # of SMALL's size
DAMAGED = LARGE[:-1000]
BETA = "TheBloke/zephyr-7B-beta-GGUF"
LONG = "x" * 10_000

OF_A_USER = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_network", "empty_current_folder")]
"""Marks of a module whose tests are of a user who has nothing but what the test gives."""


def store(file: str, model: bytes = SMALL, repository: str = BETA) -> Path:
    return stores.put_in_store(store_folder(), model, repository, file)


def ollama(home: Path, name: str, tag: str, model: bytes = SMALL, **where: str) -> Path:
    return stores.put_in_ollama(home / ".ollama" / "models", model, name, tag, **where)


def hub_cache(home: Path, file: str, model: bytes = SMALL, **where: str) -> Path:
    return stores.put_in_hub_cache(home / ".cache/huggingface/hub", model, where.pop("repository", BETA), file, **where)


def user_file(text: str) -> None:
    put(catalogue_path(), text.encode())


def refused(name: str) -> ModelNotFoundError:
    with pytest.raises(ModelNotFoundError) as error:
        resolve(name)
    assert len(str(error.value)) < 2000
    return error.value
