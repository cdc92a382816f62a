.DEFAULT_GOAL := help
.PHONY: help setup test fuzz lint types check run bench faults soak dist lock matrix vm-test

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## what is missing of packages (apt) and Python environment (.venv)
	@.ci/setup

test: setup ## all tests; some of them: make test ARGS="-k reload"
	.venv/bin/python -m pytest -n 6 --dist loadfile --no-loadscope-reorder $(ARGS)

MINUTES = 15
fuzz: setup ## tests/properties with new examples for MINUTES=15; some of them: ARGS="-k config"
	FUZZ_MINUTES=$(MINUTES) .venv/bin/python -m pytest tests/properties -n 2 --timeout 0 $(ARGS)

VM_TESTS = tests/vm
vm-test: ## as root: Ansible's role on Debian 12 and 13 guests, and a rollout on ten of them
	@.ci/setup vm
	.venv/bin/python -m pytest -m vm -n 2 --dist loadfile $(VM_TESTS)

matrix: setup ## lowest and newest dependencies on each Python; one cell: make matrix ARGS=3.12-lowest
	.ci/matrix $(ARGS)

lint: setup ## style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: setup ## static types
	.venv/bin/mypy

check: lint types ## lint and types

run: ## serve the exporters of this host, or a demo exporter, on 127.0.0.1:9099
	@.ci/setup run
	.venv/bin/exporter_proxy serve --discover

bench: setup ## CPU per scrape beside nginx and others
	.venv/bin/python -m tests.bench

faults: setup ## who holds what a scrape proxy owes to each message, beside nginx and others
	.venv/bin/python -m tests.faults

soak: setup ## an hour of everything going wrong, each scrape accounted for; shorter: make soak ARGS="--minutes 10"
	.venv/bin/python -m tests.soak $(ARGS)

dist: setup ## wheel, sdist, wheelhouse and Debian packages, into dist/
	rm -rf dist
	.venv/bin/python packaging/dist.py

lock: setup ## pin the newest versions that pyproject.toml allows
	.venv/bin/python packaging/lock.py
