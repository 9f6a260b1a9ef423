# Two commands to know: `make demo` runs the main job, `make test` is what CI runs.
# `make` alone lists the others. All of them install what they need into .venv.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Which torch the tests are run with.
TORCH := python/requirements-torch.txt
# The Pythons of `make test-pythons`.
PYTHONS ?= 3.10 3.11 3.12 3.13
# What `make py`, `make rs` and `make bench` hand on; the crate of `make rs`.
T :=
P :=
TARGET := help

# What the extension is compiled from, and what the wheel holds as well.
RUST := Cargo.toml Cargo.lock $(wildcard crates/*/Cargo.toml) python/Cargo.toml \
	$(shell find crates/*/src python/src -name '*.rs')
WHEEL := python/pyproject.toml python/README.md \
	$(shell find python/tidegate -type f -not -name '*.so' -not -name '*.pyc')
PYTEST := $(BIN)/python -m pytest -c python/pyproject.toml python/tests

.PHONY: help demo dev py rs test lint test-rust test-python test-memory test-slow test-attack test-pythons \
	install lint-features test-loom fuzz suite test-torch oldest-torch test-wild wild bench test-s3 docs clean

help:
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

# The demo reads JPEGs from tar shards: without Parquet, object stores, Zarr and tensor trains it
# compiles a third of the crates. It shares profile and folder with the wheel, which needs the rest.
demo: ## Make photo-like JPEG shards, stream them under 64 MiB, write demo/report.html
	cargo run --release --locked -p tidegate --no-default-features --bin tidegate -- demo

dev: $(VENV)/dev ## Build the extension for debugging into .venv, with the Python files in place

py: $(VENV)/dev ## Run Python tests on that build: make py T="-k state"
	$(PYTEST) $(T)

rs: ## Run Rust tests by a part of their names, and by crate: make rs T=ledger P=tidegate-core
	@if command -v cargo-nextest >/dev/null; \
	then cargo nextest run $(if $(P),-p $(P),--workspace) --locked $(T); \
	else cargo test $(if $(P),-p $(P),--workspace) --locked $(T); fi

test: lint test-rust test-python test-wild test-memory ## Run what CI runs: lint, Rust, Python, data in the wild, memory

test-slow: ## Run what takes hours: loom, fuzzing, attacks, a soak, other Pythons, large budgets
test-slow: lint-features test-loom fuzz test-pythons test-torch install test-attack
	$(BIN)/pip install --quiet tensorly
	$(PYTEST) --slow
	$(BIN)/python bench/memory.py --budgets 64,128,256,1024 --files 1000000 --ranks 256:4 --arrays 256
	$(BIN)/python bench/memory_formats.py --workers 1,2,4,8,16
	$(BIN)/python bench/memory_training.py
	$(BIN)/python python/tests/attack/runs.py --count 1000
	$(BIN)/python python/tests/attack/soak.py --seconds 7200

test-attack: install ## Read changed files, changed indexes and a hostile server
	$(BIN)/python python/tests/attack/mutants.py --count 20000 --index 2000
	$(BIN)/python python/tests/attack/flips.py --count 200
	$(BIN)/python python/tests/attack/hostile.py

test-pythons: $(PYTHONS:%=test-python-%) ## Run the Python tests on each of 3.10 to 3.13

test-wild: install ## Compare with the peers' own readers on made datasets
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; \
	then $(MAKE) --no-print-directory wild; \
	else echo "SKIPPED: the peers of test-wild need Python 3.11"; fi

wild: $(VENV)/peers
	$(BIN)/python -m pytest -c python/pyproject.toml python/tests/wild $(T)

bench: ## Run a benchmark: make bench TARGET=volumes; without TARGET it lists them
	@$(MAKE) --no-print-directory -C bench $(TARGET)

# `make bench-volumes` is `make bench TARGET=volumes`; `make bench-builds BASE=COMMIT` compares two
# builds.
bench-%:
	@$(MAKE) --no-print-directory -C bench $*

test-s3: bench-s3

docs:
	cargo doc --workspace --no-deps --locked

clean:
	cargo clean
	rm -rf .venv .venv-* demo python/tidegate/_tidegate.*.so

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; \
	then cargo deny --offline check licenses bans sources; \
	else echo "SKIPPED: cargo-deny is not installed"; fi
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

# Every feature alone, and none: each has to compile without a warning.
lint-features:
	for features in "" parquet remote tensor-train zarr; do \
		cargo clippy -p tidegate --no-default-features --features "$$features" --locked -- -D warnings || exit 1; \
	done

test-rust:
	cargo test --workspace --locked

test-python: install
	$(BIN)/ruff check python bench examples
	$(BIN)/ruff format --check python bench examples
	cd python && $(abspath $(BIN))/python -m mypy
	$(BIN)/python -m mypy.stubtest tidegate._tidegate
	$(PYTEST)

test-memory: install
	$(BIN)/python bench/memory.py --ranks 64:4 --arrays 64
	$(BIN)/python bench/memory_formats.py
	$(BIN)/python bench/memory_training.py --models lstm --steps 16

# Every schedule of up to three preemptions. Without link-time optimization, which would take longer
# than the checks.
test-loom:
	CARGO_PROFILE_RELEASE_LTO=off RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 \
		cargo test -p tidegate-core --release --lib loom_ --target-dir target/loom

fuzz:
	TIDEGATE_VALUES=1000000000 cargo test -p tidegate-array --release --lib no_value_is_beyond
	PROPTEST_CASES=20000 cargo test --release --workspace --lib
	TIDEGATE_FUZZ_SECONDS=60 cargo test --release --workspace --test fuzz -- --nocapture

# One Python: an environment of its own, a wheel built for it, the tests. A Python that is missing
# is an error only where CI=true.
test-python-%:
	@for python in python$* ~/.pyenv/versions/$*.*/bin/python$*; do \
		if "$$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$*")' 2>/dev/null; then \
			exec $(MAKE) --no-print-directory suite PYTHON="$$python" VENV=.venv-$*; \
		fi; \
	done; \
	echo "MISSING: Python $* is neither on PATH nor in ~/.pyenv/versions: its tests did not run" >&2; \
	[ "$$CI" != true ]

test-torch: ## Run the tests of training steps on the oldest torch that they work with
	@$(MAKE) --no-print-directory oldest-torch VENV=.venv-torch TORCH=python/requirements-torch-oldest.txt

# Its own checkpoints warn of its own names.
oldest-torch: install
	$(BIN)/python -m pytest -c python/pyproject.toml -W ignore::FutureWarning python/tests/test_train_*.py

suite: install
	@echo "== $$($(BIN)/python --version)"
	$(PYTEST)

# The stamps below are files in the environment: removing it removes them.
$(VENV)/requirements: python/requirements-test.txt $(TORCH)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r python/requirements-test.txt
	$(BIN)/pip install --quiet --no-deps -r $(TORCH)
	@touch $@

$(VENV)/peers: $(VENV)/requirements python/tests/wild/requirements.txt
	$(BIN)/pip install --quiet --no-deps -r python/tests/wild/requirements.txt
	@touch $@

# The wheel that users get. It is built again only where one of its files has changed, or where
# `make dev` has put its own build in its place.
install: $(VENV)/wheel
$(VENV)/wheel: $(VENV)/requirements $(RUST) $(WHEEL)
	rm -rf target/wheels/$(VENV)
	cd python && $(abspath $(BIN))/maturin build --release --locked --quiet \
		--out ../target/wheels/$(VENV) --interpreter $(abspath $(BIN))/python
	$(BIN)/pip install --quiet --no-deps --force-reinstall target/wheels/$(VENV)/*.whl
	@rm -f $(VENV)/dev python/tidegate/_tidegate.*.so
	@touch $@

# Only Rust is compiled: Python files are used in place.
$(VENV)/dev: $(VENV)/requirements $(RUST) python/pyproject.toml
	cd python && VIRTUAL_ENV=$(abspath $(VENV)) $(abspath $(BIN))/maturin develop --profile dev --locked --quiet
	@rm -f $(VENV)/wheel
	@touch $@
