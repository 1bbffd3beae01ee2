"""Keeps out what huggingface_hub can work with, and what pull_model does not use."""
# ruff: noqa: N999

from __future__ import annotations

excludedimports = [
    "huggingface_hub.cli",
    *("fsspec", "hf_xet"),  # file systems, and its own way of fetching: pull_model has one of its own
    *("IPython", "PIL", "fastai", "gradio", "keras", "numpy", "pydantic", "safetensors", "tensorboard", "tensorboardX"),
    *("tensorflow", "torch"),
]
