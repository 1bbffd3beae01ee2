"""Keeps out what tqdm can draw its bars in: notebooks, plots, frames. huggingface_hub imports it."""
# ruff: noqa: N999

from __future__ import annotations

excludedimports = ["IPython", "dask", "ipywidgets", "keras", "matplotlib", "pandas", "rich", "tensorflow"]
