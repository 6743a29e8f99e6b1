# `make demo` trains, measures and shows a small model; `make test` is what CI runs. Each sets up everything it needs, in .venv, with pip alone.
# uv is used for the installation when it can be had, because it is several times faster.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: demo test lint setup clean

demo: .venv/ready
	rm -rf runs/demo
	$(BIN)/plait train configs/theworld/demo.yaml
	$(BIN)/plait eval runs/demo --bench accuracy --samples 500 --batch 100 --show 3

test: .venv/ready-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/ready-dev

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: pyproject.toml constraints.txt | .venv/bin/python
	source scripts/install.sh && install_plait .
	touch $@

.venv/ready-dev: pyproject.toml constraints.txt | .venv/bin/python
	source scripts/install.sh && install_plait '.[dev]'
	touch $@ .venv/ready
