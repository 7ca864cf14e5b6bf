# make demo   sets up, makes the default data set and gallery, serves the demo      (PORT=7860)
# make test   sets up with the test tools and Chromium, builds the documentation, runs every test
# make check  format, lint, types, the documentation and all tests but the browser's
# make milvus-test  runs the tests of galleries in Milvus on a real server, which it installs beside
# make docs   builds the documentation site into site/; open site/index.html
PYTHON ?= python3
PORT ?= 7860
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test check lint docs setup setup-test chromium axe clean milvus-test

demo: setup
	@$(BIN)/python demo/app.py --port $(PORT)

test: setup-test chromium axe docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: setup-test lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not browser"

# The wheel of the server needs an environment of its own.
milvus-test: setup-test $(VENV)-milvus/.installed
	REID_MILVUS_PYTHON=$(CURDIR)/$(VENV)-milvus/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -k milvus \
		tests/unit/retrieval/stores

$(VENV)-milvus/.installed:
	$(PYTHON) -m venv $(VENV)-milvus
	$(VENV)-milvus/bin/python -m pip install --quiet --disable-pip-version-check milvus==2.3.5
	@touch $@

lint: setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A broken link, an address that a page would load from elsewhere, or a docstring that does not fit its function fails.
docs: $(VENV)/.installed-docs
	@$(BIN)/python docs/site/prepare.py build/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build
	@$(BIN)/python docs/site/check_site.py site

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or later, got $$($(PYTHON) -V); run: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@ $(VENV)/.installed

# The browser tests drive Debian's Chromium; CHROMIUM may name another one.
chromium:
	@if [ -n "$$CHROMIUM" ] || command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Chromium for the browser tests" >&2; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium >/dev/null; \
	else \
		echo "the browser tests need Chromium: install the package 'chromium' or set CHROMIUM=/path/to/it" >&2; exit 1; \
	fi

# The browser tests apply the rules of axe-core, which npm installs beside them.
axe: tests/browser/node_modules/.package-lock.json

tests/browser/node_modules/.package-lock.json: tests/browser/package-lock.json
	@command -v npm >/dev/null || { echo "the browser tests need axe-core: install npm" >&2; exit 1; }
	npm ci --no-audit --no-fund --prefix tests/browser
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-milvus data galleries build site tests/browser/node_modules .mypy_cache .ruff_cache .pytest_cache
