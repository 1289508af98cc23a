# `make serve` and `make test` do all the set-up themselves, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BROWSER := $(VENV)/.browser
# Ray has an environment of its own, because its packages are many and the service needs none.
RAY     := $(VENV)-ray

.PHONY: help setup serve browser test lint format types tests compose-test ray-test bench-engine bench-peers bench-capacity \
    screenshots lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## the virtual environment, with everything in requirements.lock

serve: $(READY)  ## serve the default model on http://localhost:8000
	@$(BIN)/maskserve serve

# The types are checked while the first tests run: mypy keeps one core busy for half a minute, and tests wait at times.
test: lint $(BROWSER)  ## everything that a contributor needs before a commit
	@types=$$(mktemp); $(BIN)/mypy >$$types 2>&1 & mypy=$$!; \
	trap 'kill $$mypy 2>/dev/null; rm -f $$types; exit 130' INT TERM; \
	$(TESTS); tests=$$?; wait $$mypy; failed=$$?; echo "$(BIN)/mypy"; cat $$types; rm -f $$types; \
	exit $$((tests | failed))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

# Two files at a time, with one thread each: threads of two processes on two cores would wait for each other. Three at a time
# took 7 % less on two cores, and tests of behaviour under time failed.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
tests: $(READY) $(BROWSER)
	$(TESTS)

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compose-test: $(READY)  ## build the image, and break replicas behind the gateway: 10 minutes, with Docker, or as root on Debian 12
	$(BIN)/python deploy/tests/compose.py

ray-test: $(RAY)/.ready  ## the service on a Ray cluster of four nodes, which it breaks: 4 GB of memory, and nginx
	$(RAY)/bin/python deploy/tests/cluster.py

bench-engine: $(READY)  ## the engine against torchvision's eager model: minutes, and nothing else may run
	$(BIN)/python bench/engine.py --model v1 --precision float32
	$(BIN)/python bench/engine.py --model v1 --precision auto
	$(BIN)/python bench/engine.py --model v2 --precision auto
	$(BIN)/python bench/engine.py --model v1 --precision auto --megapixels 12 --detections 100 --encode --rounds 3
	$(BIN)/python bench/engine.py --model shapes --precision auto --rounds 15
	$(BIN)/python bench/engine.py --model shapes --precision int8 --rounds 15
	$(BIN)/python bench/engine.py --model v1 --precision int8

screenshots: $(READY) $(BROWSER)  ## take the pictures of the page in docs/images
	$(BIN)/python docs/screenshots.py

bench-peers: $(READY)  ## the engine and the service against others, docs/benchmarks.md: an hour or more, and nothing else may run
	$(BIN)/python bench/peers

bench-capacity: $(READY)  ## what one replica answers a second, and its memory: minutes, and nothing else may run
	$(BIN)/python bench/capacity.py --model shapes
	$(BIN)/python bench/capacity.py --model v1
	$(BIN)/python bench/capacity.py --model v2

LOCK := --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -q -o

lock: $(READY)  ## write the lock files, requirements*.lock, from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra serve --extra train --extra tracing --group dev \
	    $(LOCK) requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra ray --constraint requirements.lock $(LOCK) requirements-ray.lock
	$(BIN)/uv pip compile --group build $(LOCK) requirements-build.lock

# uv is fetched by pip because it installs torch's wheels in seconds where pip takes minutes; a pip that is there already
# saves three seconds. Bytecode is compiled once: where PYTHONDONTWRITEBYTECODE is set, every start would compile torch
# again, which took 9 seconds instead of 5.
$(READY): requirements.lock requirements-build.lock pyproject.toml hatch_build.py $(wildcard model/kernels/*.c)
	@command -v $(PYTHON) >/dev/null || { echo "maskserve needs Python 3.11 or newer: $(PYTHON) was not found"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "maskserve needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/uv || { $(PYTHON) -m venv --without-pip $(VENV) \
	    && awk '/^[^ ]/ {uv = /^uv==/} uv' requirements-build.lock > $(VENV)/uv.lock \
	    && if $(PYTHON) -m pip --python $(BIN)/python --version >/dev/null 2>&1; then pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	    else pip="$(BIN)/python -m pip"; $(BIN)/python -m ensurepip >/dev/null; fi \
	    && $$pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock; }
	@echo "installing dependencies into $(VENV) …"
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --build-constraints requirements-build.lock --editable .
	@touch $@

$(RAY)/.ready: requirements-ray.lock | $(READY)
	@echo "installing Ray into $(RAY) …"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(RAY)
	@VIRTUAL_ENV=$(RAY) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements-ray.lock
	@VIRTUAL_ENV=$(RAY) $(BIN)/uv pip install --quiet --no-deps --build-constraints requirements-build.lock --editable .
	@touch $@

# Chromium, for the tests of the page; they are skipped, and say so, without it.
browser: $(BROWSER)  ## install Chromium for the tests of the page, with apt-get as root, else from Playwright

CHROMIUM ?= install
$(BROWSER): | $(READY)
ifeq ($(CHROMIUM),skip)
	@echo "Chromium is not looked for: without it the tests of the page are skipped"
else
	@command -v chromium-headless-shell >/dev/null \
	    || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	        && echo "installing the package chromium-headless-shell with apt-get, for the tests of the page …" \
	        && apt-get update -qq >/dev/null 2>&1 \
	        && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium-headless-shell >/dev/null 2>&1; } \
	    || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	    || { echo "the tests of the page need Chromium, which is not installed; 'make test CHROMIUM=skip' does without"; \
	        test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing the package chromium with apt-get …" \
	        && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium >/dev/null 2>&1; } \
	    || { echo "installing Playwright's Chromium in your home folder …" && $(BIN)/playwright install chromium; } \
	    || { echo "no Chromium: the tests of the page will be skipped"; exit 0; } \
	    && touch $@
endif

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(RAY) .venv-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
