# Everything runs in .venv, which these targets make and keep up to date with pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
BUNDLE := models/pocketvlm_models/iota
PRESET ?= cpu
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check docs page fuzz bench compare train native test-native test-vulkan test-aarch64 wheels test-wheels clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter, ARGS=... is passed on by test, test-all, fuzz, compare, train and wheels."

demo: .venv/.demo ## ask the model in the box about a picture
	$(BIN)/pocketvlm chat "What is in the picture?" -i docs/sample.png
	$(BIN)/pocketvlm chat "How many shapes are there?" -i docs/sample.png

test: .venv/.dev ## the fast tests, on all cores, with the network blocked
	$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/.dev ## all tests
	$(PYTEST) $(ARGS)

check: .venv/.dev ## lint, format, types on three systems, imports on every Python that is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	printf '%s\n' linux win32 darwin | xargs -P 3 -I SYSTEM $(BIN)/mypy --platform SYSTEM --cache-dir .mypy_cache/SYSTEM
	@for python in python3.10 $(BIN)/python python3.12 python3.13 python3.14; do \
		! command -v $$python > /dev/null || ! $$python -c "" 2> /dev/null || $$python scripts/import_check.py || exit 1; \
	done
	$(BIN)/python -m pytest -q tests/test_architecture.py

# The variable turns off a notice of mkdocs-material about its successor.
docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/.dev ## the documentation as a site in build/site, without warnings
	$(BIN)/mkdocs build --strict

page: page/node_modules/.package-lock.json ## the page of the server, from page/ (needs node)
	cd page && npm run -s check && npm run -s build

page/node_modules/.package-lock.json: page/package-lock.json
	cd page && npm ci --no-audit --no-fund

fuzz: .venv/.dev ## damaged files and requests; ARGS="--minutes 60", ARGS="pictures --cases 1000", ARGS=--help
	PYTHONPATH=tests:models nice $(BIN)/python -m fuzz $(ARGS)

bench: .venv/.bench ## side-by-side measurements
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

compare: .venv/.bench ## one chat beside llama-cpp-python and llama-server
	$(BIN)/python benchmarks/compare.py $(ARGS)

train: .venv/.dev ## train iota; stop and resume at any step
	PYTHONPATH=models $(BIN)/python -m iota.train $(ARGS)
	@echo "To convert it: $(BIN)/pocketvlm convert models/iota/checkpoint -o $(BUNDLE) --quantize Q4_K_M --mmproj q8_0"
	@echo "Then, for its scope: PYTHONPATH=models $(BIN)/python -m iota.certainty --write"

native: .venv/.demo ## build llama.cpp for PRESET (cpu, cpu-native, metal, cuda, vulkan) and use it from now on
	cmake --preset $(PRESET) $(CMAKE_ARGS)
	cmake --build --preset $(PRESET) --target install

test-native: .venv/.dev ## build it for PRESET; iota's answers with it and with llama-cpp-python's own
	cmake --preset $(PRESET) $(CMAKE_ARGS)
	cmake --build --preset $(PRESET)
	ctest --preset $(PRESET)

# Unless told otherwise the first device, even where it is a driver that computes on the CPU, which ggml would skip.
test-vulkan: export GGML_VK_VISIBLE_DEVICES ?= 0
test-vulkan: ## the same for Vulkan, with everything on the device; builds for 20 minutes
	$(MAKE) test-native PRESET=vulkan CMAKE_ARGS="$$(scripts/vulkan_headers.sh) $(CMAKE_ARGS)"

test-aarch64: .venv/.dev ## cross-build for arm64, and ask iota in an arm64 root under qemu-user (as root)
	scripts/test_aarch64.sh

wheels: ## a folder of wheels for machines without compiler and network; ARGS="--architecture aarch64"
	$(PYTHON) scripts/wheels.py $(ARGS)

test-wheels: ## install them in fresh Debian 12 and 11, on emulated CPUs, and as a container and a service (as root)
	scripts/test_wheels.sh

clean: ## remove caches and build outputs, not .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.demo .venv/.dev .venv/.bench: pyproject.toml scripts/build_hook.py $(wildcard runtime/native/*)
	@$(PYTHON) scripts/setup_venv.py $(@F:.%=%)
