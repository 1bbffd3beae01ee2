# The two commands of the README:  make chat  and  make test.  Everything else is for those who work on zephyr-local.
PYTHON  ?= python3
VENV    := .venv
PIP     := $(VENV)/bin/python -m pip
WHEELS  := .wheelhouse
RUNTIME := $(VENV)/.runtime-installed
DEV     := $(VENV)/.dev-installed
# Tests run in two processes, a file's in one of them. WORKERS=0 runs them in one, as plain pytest does.
WORKERS ?= 2
PYTEST  := $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile

ifneq ($(words $(CURDIR)),1)
$(error The path of this folder has a space in it, which llama.cpp's build cannot take. Move the folder)
endif

# Build libllama and ggml alone: neither the multimodal library nor the command-line tools' shared code, which the Python
# binding never loads (cmake/llama_only.cmake says how). What you set yourself (CMAKE_ARGS="-DGGML_CUDA=on") is kept.
export CMAKE_ARGS := -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/cmake/llama_only.cmake $(CMAKE_ARGS)

.PHONY: chat test test-all check format tiny clean

chat: $(RUNTIME)
	$(VENV)/bin/zephyr-local chat

test: $(DEV) $(WHEELS)/.complete
	$(PYTEST)

test-all: $(DEV) $(WHEELS)/.complete
	$(PYTEST) -m "not gpu and not network"

check: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(DEV)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Trains a zephyr-tiny from nothing by the recipe `tiny`, and has it take its exam. Given again, it goes on.
tiny: $(DEV)
	$(VENV)/bin/zephyr-local train run tiny -o build/zephyr-tiny
	$(VENV)/bin/python -m zephyr_local.train.tiny.examine build/zephyr-tiny

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUNTIME): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing zephyr-local into $(VENV). The first time, llama.cpp is compiled: a few minutes."
	$(PIP) install --disable-pip-version-check -q -c constraints.txt -e ".[hub]"
	@$(PIP) install --disable-pip-version-check -q -c constraints.txt --only-binary numba,llvmlite -e ".[fast]" || \
	    echo "numba cannot be had for this Python or platform: quantizing will take ggml's slower encoders."
	touch $@

$(DEV): $(RUNTIME)
	$(PIP) install --disable-pip-version-check -q -c constraints.txt -e ".[dev,fast]"
	@# Its setup imports torch, which an isolated build would fetch anew.
	@$(PIP) install --disable-pip-version-check -q -c constraints.txt --no-build-isolation "deepspeed>=0.19" || \
	    echo "deepspeed cannot be had here: the tests of ZeRO-3 will be skipped."
	touch $@

# Wheels of the base dependencies, so that the packaging test installs into an empty environment without a network.
$(WHEELS)/.complete: $(RUNTIME)
	$(PIP) wheel --disable-pip-version-check -q -c constraints.txt -w $(WHEELS) -r tests/base-requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(WHEELS) build dist *.egg-info
