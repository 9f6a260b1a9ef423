# `make demo` runs the main job, `make test` passes all tests; both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
# The interpreter of the peers: an environment with bench/requirements.txt installed.
PEERS_PYTHON ?= $(PYTHON)

.PHONY: demo test test-rust test-python test-memory test-slow lint test-s3 bench bench-cache bench-resize bench-keep bench-latency bench-sketch bench-samplers bench-profile bench-dedup bench-volumes bench-compact bench-jpeg bench-peers docs clean

demo:
	cargo run --release --locked -p tidegate -- demo

test: lint test-rust test-python test-memory

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check licenses bans sources; else echo "SKIPPED: cargo-deny is not installed"; fi
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

test-rust:
	cargo test --workspace --locked

$(VENV)/installed: python/pyproject.toml python/requirements-test.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r python/requirements-test.txt
	touch $@

# One profile for tests: the release build of the wheel is what users run.
.PHONY: install
install: $(VENV)/installed
	cd python && ../$(BIN)/maturin build --release --locked --quiet --out ../target/wheels --interpreter ../$(BIN)/python
	$(BIN)/pip install --quiet --no-deps --force-reinstall target/wheels/tidegate-*.whl

test-python: install
	$(BIN)/ruff check python bench examples
	$(BIN)/ruff format --check python bench examples
	$(BIN)/python -m mypy.stubtest tidegate._tidegate
	$(BIN)/python -m pytest -c python/pyproject.toml python/tests

test-memory: install
	$(BIN)/python bench/memory.py --ranks 64:4 --arrays 64

test-slow: install
	RUSTFLAGS="--cfg loom" cargo test -p tidegate-core --release --lib loom_ --target-dir target/loom
	TIDEGATE_VALUES=1000000000 cargo test -p tidegate-array --release --lib no_value_is_beyond
	$(BIN)/pip install --quiet tensorly
	PROPTEST_CASES=20000 cargo test --release -p tidegate-core -p tidegate-data --lib
	TIDEGATE_FUZZ_SECONDS=60 cargo test -p tidegate-data --release --test fuzz -- --nocapture
	$(BIN)/python -m pytest -c python/pyproject.toml python/tests --slow
	$(BIN)/python bench/memory.py --budgets 64,128,256,1024 --files 1000000 --ranks 256:4 --arrays 256

# An epoch from an S3 server on this machine; PEERS=mosaicml,webdataset beside it, with PEERS_PYTHON.
PEERS ?=
test-s3: install
	$(BIN)/python bench/s3.py --peers "$(PEERS)" --peers-python "$(PEERS_PYTHON)" --out bench/results/s3.json

bench:
	cargo bench -p tidegate-core
	cargo bench -p tidegate-data --bench cache
	cargo bench -p tidegate-data --bench order
	cargo bench -p tidegate-array
	@if [ -n "$(DATA)" ]; then cargo run --release --locked -p tidegate -- bench "$(DATA)" --decoder; else echo "give DATA=<folder of JPEGs> to measure the decoder"; fi

# What it takes to halve the budget in the middle of an epoch.
bench-resize: install
	$(BIN)/python bench/resize.py --out bench/results/resize.json

# What it gives to keep samples decoded.
bench-keep: install
	$(BIN)/python bench/keep.py --out bench/results/keep.json

# A store that is far away, by how many requests the budget allows.
bench-latency: install
	$(BIN)/python bench/latency.py --out bench/results/latency.json

# Sparse products, bounds and sparse training beside the Python packages that do the same; copies made small.
bench-compact: install
	$(BIN)/pip install --quiet scikit-learn pysz==1.1.0 zfpy==1.0.1
	$(BIN)/python bench/compact.py --out bench/results/compact.json

# Sketches on one core, beside the Python packages that do the same.
bench-sketch: install
	$(BIN)/pip install --quiet river==0.26.1 rensa==0.5.0
	$(BIN)/python bench/sketch.py --out bench/results/sketch.json

# Samplers over 10^8 ids: memory and time; torch's beside them where PEERS_PYTHON has it.
bench-samplers: install
	$(BIN)/python bench/samplers.py --peers-python "$(PEERS_PYTHON)" --out bench/results/samplers.json

# What a profile costs, of 2 GiB of pictures, text, labels and embeddings; and whether it is the same for any workers.
bench-profile: install
	$(BIN)/python bench/profiles.py --out bench/results/profile.json

# Duplicates planted in 10^5 documents; rensa and datatrove beside.
bench-dedup: install
	$(BIN)/pip install --quiet rensa==0.5.0 datatrove==0.10.1 tokenizers spacy xxhash==3.5.0
	$(BIN)/python bench/dedup.py --out bench/results/dedup.json

# Patches of a volume, beside TensorStore and zarr-python.
bench-volumes: install
	$(BIN)/pip install --quiet tensorstore==0.1.86
	$(BIN)/python bench/volumes.py --out bench/results/volumes.json

# What the plan caches, beside the policies of libCacheSim.
bench-cache: install
	$(BIN)/pip install --quiet libcachesim
	$(BIN)/python bench/cache.py --out bench/results/cache.json

# Builds libjpeg-turbo, which takes cmake and nasm.
bench-jpeg:
	@test -n "$(DATA)" || (echo "give DATA=<folder of JPEGs>; 'tidegate synth photos' makes one" && exit 2)
	cargo run --release --locked --manifest-path bench/jpeg/Cargo.toml --target-dir target/bench-jpeg -- "$(DATA)"

bench-peers:
	@test -n "$(DATA)" || (echo "give DATA=<folder of JPEGs, one folder a class>; 'tidegate synth photos' makes one" && exit 2)
	$(PEERS_PYTHON) bench/peers.py --data "$(DATA)"

docs:
	cargo doc --workspace --no-deps --locked

clean:
	cargo clean
	rm -rf $(VENV) demo
