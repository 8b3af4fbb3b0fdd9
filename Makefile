# Two commands for a newcomer: `make demo` and `make test`. Python 3.11 or newer; PYTHON=python3.12 chooses another.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= demo-artifact

.PHONY: demo test test-all test-clients test-bare test-comfyui lint clean

$(BIN)/saeuron-export: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; give PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[export,cpu]'
	@touch $@

demo: $(BIN)/saeuron-export
	@echo "Removing the style Stripes and the object Heart from the embedded demo model …"
	$(BIN)/saeuron-export --concepts Stripes,Heart --format checkpoint,onnx --output $(OUT) --overwrite
	@TRANSFORMERS_VERBOSITY=error $(BIN)/python -W ignore -m saeuron.validation.page.before_after $(OUT) --model demo -o $(OUT)-before-after.png \
	  --prompt "An image of Star in Stripes style." --prompt "An image of Boat in Stripes style." \
	  --prompt "An image of Heart." --prompt "An image of Heart in Sepia style." \
	  --prompt "An image of Star." --prompt "An image of Boat in Sunset style." \
	  --prompt "An image of Mushroom in Blueprint style." --prompt "An image of House in Neon style."
	@echo
	@echo "The artifact lies in $(OUT)/ (README.md tells how to open it)."
	@echo "Look at $(OUT)-before-after.png: the top row is the original model, the bottom row the edited one (first four: removed; last four: kept)."

$(VENV)/.test: pyproject.toml $(BIN)/saeuron-export
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[export,cpu,rtx,test]'
	@touch $@

# As many workers as cores, four at most: each loads torch. A file's tests stay together, since they share what they built;
# in the order of their names the light ones come last.
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test
	$(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-clients: $(BIN)/saeuron-export
	bash tests/clients/run.sh $(BIN)

test-bare: $(BIN)/saeuron-export
	bash tests/clients/run_bare.sh $(BIN)

# Needs COMFYUI_DIR=/a/checkout, else one line says that it was skipped; CONTRIBUTING.md says how to get one.
test-comfyui: $(VENV)/.test
	$(BIN)/python -m pytest -rs -s tests/comfyui

clean:
	rm -rf $(VENV) build dist *.egg-info $(OUT) $(OUT)-before-after.png
