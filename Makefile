# Everything a fresh checkout needs: `make demo` and `make test` set up their own environment.
PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
BIN := $(VENV)/bin
DIGITS := models/digits
BENCHED := $(BUILD)/bench
NETWORKS := $(foreach network,alexnet vgg16 resnet20,$(BENCHED)/$(network).onnx)
# How images are normalised, as of torchvision's networks.
MEAN ?= 0.485,0.456,0.406
STD ?= 0.229,0.224,0.225
BENCHMARK := PYTHONPATH=. $(BIN)/python benchmarks

.PHONY: demo test lint matrix matrix-full bench compatibility clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[distributed]" --group dev
	touch $@

# Hardens the bundled model, then measures original and hardened file under the same faults.
demo: $(VENV)/.installed
	mkdir -p $(BUILD)/demo
	$(BIN)/proact-onnx harden --config $(DIGITS)/proact.toml --force \
		--output $(BUILD)/demo/digits.hardened.onnx
	$(BIN)/proact-onnx inject $(DIGITS)/digits.onnx $(BUILD)/demo/digits.hardened.onnx \
		--config $(DIGITS)/proact.toml --force \
		--output-folder $(BUILD)/demo --plot $(BUILD)/demo/accuracy.png

# The other runtimes that deployed files are tried in.
$(VENV)/.runtimes: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[runtimes]"
	touch $@

test: lint $(VENV)/.runtimes
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Every form of the bound in every runtime that is installed. Given MODEL and TRAIN (images it was
# trained on), for that model, normalised with MEAN and STD.
MATRIX := PYTHONPATH=. $(BIN)/python benchmarks/matrix.py
matrix: $(VENV)/.runtimes
ifdef MODEL
	$(MATRIX) $(MODEL) $(TRAIN) --mean $(MEAN) --std $(STD)
else
	$(MATRIX) $(DIGITS)/digits.onnx $(DIGITS)/calibration.npz --scale 0.0625
endif

# The same with compilers for networks, which take minutes and an environment of their own.
matrix-full:
	$(MAKE) VENV=$(VENV)-full $(VENV)-full/.runtimes
	$(VENV)-full/bin/python -m pip install --quiet --constraint constraints.txt --group compilers
	$(MAKE) VENV=$(VENV)-full matrix

# What trials cost beside plain inference and beside PyTorch, and what prefix reuse saves, on the
# paper's kind of networks. Given TRAIN and TEST (labelled images, 32x32 pixels in three colours),
# also how long a campaign takes to the confidence of the paper's protocol; given MODEL, a network
# trained for these images, also how many images it evaluates, how often intervals hold, and how
# campaigns scale with workers.
MEAN ?= 0.485,0.456,0.406
STD ?= 0.229,0.224,0.225
bench: $(VENV)/.installed
	mkdir -p $(BENCHED)/trained
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	for network in alexnet vgg16 resnet20; do \
		test -f $(BENCHED)/$$network.onnx || $(BIN)/python -m models.export $$network \
			--output $(BENCHED)/$$network.onnx; \
	done
	$(BENCHMARK)/trials.py $(NETWORKS)
	$(BENCHMARK)/against_references.py
	$(BENCHMARK)/prefix.py $(NETWORKS)
ifdef TRAIN
	test -f $(BENCHED)/trained/alexnet.onnx || $(BENCHMARK)/train.py $(TRAIN) \
		--mean $(MEAN) --std $(STD) --output $(BENCHED)/trained/alexnet.onnx
	$(BENCHMARK)/protocol.py $(BENCHED)/trained/alexnet.onnx $(TEST) --mean $(MEAN) --std $(STD)
endif
ifdef MODEL
	$(BENCHMARK)/campaigns.py $(MODEL) $(TEST) --mean $(MEAN) --std $(STD)
	$(BENCHMARK)/scaling.py $(MODEL) $(TEST) --mean $(MEAN) --std $(STD)
endif

# Hardens every .onnx file of FOLDERS and of the onnx package's light models, and writes down what
# came of each.
compatibility: $(VENV)/.installed
	$(BENCHMARK)/compatibility.py $(FOLDERS) --output docs/compatibility.md

clean:
	rm -rf $(BUILD)
