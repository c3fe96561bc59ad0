# `make` lists the targets. Each one first installs into .venv what it needs and lacks; an interrupted set-up
# continues when make is run again, because the stamp is written last.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
FOR_DEMO = .venv/.demo
FOR_USE = .venv/.use
FOR_WORK = .venv/.work
HOOKS = .ci/pre-commit-config.yaml

.PHONY: help setup demo test test-milvus bench docs quality hooks style clean

help:
	@echo "make setup    install into .venv what searching, fine-tuning and the page need"
	@echo "make demo     draw a small PAB, fine-tune on it, evaluate, and write outputs/demo/index.html"
	@echo "make test     run the tests"
	@echo "make test-milvus  run those of Milvus again on a real server, where its wheel can be had"
	@echo "make bench    time the engines and measure memory at full size: a table, and JSON in outputs/bench"
	@echo "make docs     write the pages of docs/ and the public names as a site, outputs/docs/index.html"
	@echo "make quality  check style, imports and types (changes nothing)"
	@echo "make hooks    do so before every commit"
	@echo "make style    repair style and order imports"
	@echo "make clean    remove .venv, the demo's, benchmarks' and docs' output and every cache"
	@echo "Each target first installs what it needs. The versions are those of constraints.txt; PYTHON=... chooses the interpreter."

$(FOR_DEMO): extras = demo
$(FOR_USE): extras = demo,app
$(FOR_WORK): extras = demo,dev
$(FOR_DEMO) $(FOR_USE) $(FOR_WORK): constraints.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "tpas needs Python 3.11 or newer, found: '$(PYTHON)'. Install it, or name one: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --no-compile --constraint constraints.txt --editable '.[$(extras)]'
	.venv/bin/python -m compileall -qq -j 0 .venv/lib || true # which pip would do on one processor
	.venv/bin/python -m pip check
	@touch $@

setup: $(FOR_USE)

demo: $(FOR_DEMO)
	.venv/bin/tpas demo --output_dir outputs/demo

test: $(FOR_WORK)
	.venv/bin/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-milvus: $(FOR_WORK)
	.venv/bin/python .ci/test_milvus.py

bench: $(FOR_WORK)
	.venv/bin/python benchmarks/speed_and_memory.py --output_dir outputs/bench

docs: $(FOR_WORK)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --config-file .ci/mkdocs.yml
	.venv/bin/pdoc --docformat google --output-directory outputs/docs/reference tpas
	@echo "The site: outputs/docs/index.html"

quality: $(FOR_WORK)
	.venv/bin/pre-commit run --all-files --config $(HOOKS)

hooks: $(FOR_WORK)
	.venv/bin/pre-commit install --config $(HOOKS)

style: $(FOR_WORK)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv outputs/demo outputs/bench outputs/docs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
