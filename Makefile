# Everything a fresh checkout needs: `make demo` and `make test` set up their own environment.
PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
BIN := $(VENV)/bin
DIGITS := models/digits

.PHONY: demo test lint bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

# Hardens the bundled model, then measures original and hardened file under the same faults.
demo: $(VENV)/.installed
	mkdir -p $(BUILD)/demo
	$(BIN)/proact-onnx harden --config $(DIGITS)/proact.toml --force \
		--output $(BUILD)/demo/digits.hardened.onnx
	$(BIN)/proact-onnx inject $(DIGITS)/digits.onnx $(BUILD)/demo/digits.hardened.onnx \
		--config $(DIGITS)/proact.toml --force \
		--output-folder $(BUILD)/demo --plot $(BUILD)/demo/accuracy.png

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# What a trial costs beside the inference it does, on the paper's kind of networks.
bench: $(VENV)/.installed
	mkdir -p $(BUILD)/bench
	for network in alexnet vgg16 resnet20; do \
		test -f $(BUILD)/bench/$$network.onnx || $(BIN)/python -m models.export $$network \
			--output $(BUILD)/bench/$$network.onnx; \
	done
	$(BIN)/python benchmarks/trials.py $(BUILD)/bench/*.onnx

clean:
	rm -rf $(BUILD)
