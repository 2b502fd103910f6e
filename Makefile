# The environment is made once and again whenever the dependencies change.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
EXAMPLE := examples/tiny-gemma4-e
DEMO := .demo

.PHONY: demo test lint format types wheel clean
demo: $(INSTALLED)
	@mkdir -p $(DEMO)
	$(BIN)/gemma4-quant convert $(EXAMPLE) --outfile $(DEMO)/tiny-BF16.gguf --outtype bf16
	$(BIN)/gemma4-quant calibrate $(DEMO)/tiny-BF16.gguf -f $(EXAMPLE)/calibration.txt -o $(DEMO)/imatrix.gguf
	$(BIN)/gemma4-quant quantize $(DEMO)/tiny-BF16.gguf $(DEMO)/tiny-Q4_K_M.gguf --type q4_k_m --imatrix $(DEMO)/imatrix.gguf
	$(BIN)/gemma4-quant bench $(DEMO)/tiny-BF16.gguf $(DEMO)/tiny-Q4_K_M.gguf --reference $(DEMO)/tiny-BF16.gguf -f $(EXAMPLE)/evaluation.txt

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The folders converters/ and calibration/ are packages below gemma4_quant only once installed; mypy needs them there.
types: $(INSTALLED)
	@rm -rf .stage && mkdir -p .stage/gemma4_quant
	@ln -s $(CURDIR)/gemma4_quant/* $(CURDIR)/converters $(CURDIR)/calibration .stage/gemma4_quant/
	MYPYPATH=.stage $(BIN)/mypy -p gemma4_quant

wheel: $(INSTALLED)
	@rm -rf build dist
	$(BIN)/python -m build --wheel
	$(BIN)/python .ci/check_wheel.py dist/*.whl

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --editable . --group dev
	@touch $@

clean:
	rm -rf .venv .stage .demo build dist *.egg-info
