# The same few words on every machine: `make help` lists them. Needs Python 3.11 or newer; everything else goes to .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := encoder,plots,tensorboard,sentence-transformers,onnx,openvino,lora,search,serve,demo,notebooks,docs,test,dev
OUT ?= outputs/space
# Two processes of one thread each; the tests of a file stay together, so that they share its fixtures and ports.
PYTEST_ARGS ?= -n 2 --dist loadfile

.PHONY: help install quickstart example-data lint fix test test-all bench compare serve demo space notebooks docs clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install the project with the pinned versions of constraints.txt

# The stamp is older than these files only after they changed: then pip runs again, otherwise nothing does.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) came: make install PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

quickstart: $(INSTALLED) ## train, evaluate and save a model on the built-in example data: outputs/quickstart
	$(BIN)/python train_hf.py recipes/quickstart.yaml --output_dir outputs/quickstart --overwrite_output

example-data: $(INSTALLED) ## write the example data as files in each format: outputs/example_data
	$(BIN)/python example_data.py outputs/example_data

lint: $(INSTALLED) ## ruff (rules and format), mypy, and the container's files against their rules and schemas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/kubernetes-validate --strict --quiet docker/kubernetes.yaml

fix: $(INSTALLED) ## let ruff mend and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## lint and the default tests: offline, on the CPU, at most five minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: lint ## lint and all tests; those on published data read the folder MULTITASK_DATA
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "" -rs --timeout 3600

bench: $(INSTALLED) ## train the published recipes on the folder MULTITASK_DATA (hours) and write benchmarks/results
	@test -n "$(MULTITASK_DATA)" || { echo "Name the folder of the data sets: make bench MULTITASK_DATA=/path"; exit 1; }
	set -e; for recipe in news_entities sentiment_entities six_tasks; do \
		$(BIN)/python benchmarks/recipe_results.py recipes/$$recipe.yaml --data_root "$(MULTITASK_DATA)"; done

compare: $(INSTALLED) ## train the tasks alone and together (hours), from the folder MULTITASK_DATA: docs/fine_tuning_report.md
	@test -n "$(MULTITASK_DATA)" || { echo "Name the folder of the data sets: make compare MULTITASK_DATA=/path"; exit 1; }
	$(BIN)/python compare_hf.py recipes/news_entities.yaml --seeds 3 --data_root "$(MULTITASK_DATA)" \
		--report docs/fine_tuning_report.md --num_train_epochs 2 --tasks.ner.max_rows.train 9600
	$(BIN)/python compare_hf.py recipes/six_tasks.yaml --seeds 3 --data_root "$(MULTITASK_DATA)" \
		--report docs/fine_tuning_report.md --num_train_epochs 2 $(foreach task,\
		topic sentiment question ner pos similarity,--tasks.$(task).max_rows.train 9600)

serve: $(INSTALLED) ## serve the model in the folder DIR at http://127.0.0.1:8000
	@test -n "$(DIR)" || { echo "Name the folder of a model: make serve DIR=outputs/quickstart"; exit 1; }
	$(BIN)/python serve_hf.py "$(DIR)"

notebooks: $(INSTALLED) ## run the notebooks and keep what they print
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute_notebooks.py

# Strict: a broken link or anchor, or a docstring that cannot be read, is an error. mkdocs.yml says why the notice is off.
docs: $(INSTALLED) ## build the site of the guides and the docstrings: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo: $(INSTALLED) ## show the model in the folder DIR in a browser: http://127.0.0.1:7860
	@test -n "$(DIR)" || { echo "Name the folder of a model: make demo DIR=outputs/quickstart"; exit 1; }
	$(BIN)/python -m serving.app "$(DIR)"

space: ## put the web demo together as a Hub Space, in the folder OUT (outputs/space)
	mkdir -p $(OUT)/serving
	cp *.py model_card.md native_card.md serving/space/README.md serving/space/requirements.txt $(OUT)
	cp serving/*.py $(OUT)/serving
	cp serving/app.py $(OUT)/app.py

clean: ## remove caches and build products; .venv and outputs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
