# make demo         start the example application
# make test         check, and run the quick tests: no browser, no database server
# make test-all     check and test everything
# make test-lowest  all but the browser tests with the oldest versions that pyproject.toml allows
# make release      build and check what is released, with its bill of materials, in dist
# make audit        ask the package index whether a version in use is known to be unsafe
# make bench        measure what it costs, beside peers, and write docs/benchmark.json
# make fuzz         ten thousand odd forms, addresses and answers
# make storm        the long storm: real processes killed at random, five seeds, three databases
# make docs         build the documentation into build/docs
# make generated    write the pages and pictures that are made from the code
# make words        gather the texts that can be translated, and compile the translations
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?= -n auto --dist worksteal

LOWEST := .venv-lowest/bin
LOWEST_ARGS ?= -n auto --dist worksteal
AUDIT := .venv-audit/bin
RELEASE := .venv-release/bin

# What hosts may import. The rest may change in any version.
PUBLIC := ^flask_credly\.(signals|catalog\.[A-Z]|extension\.Credly|errors|jobs\.drain|testing\.(simulator|organization))

QUICK := not browser and not database and not slow

.PHONY: demo test test-all test-lowest audit release check bench fuzz storm docs generated words format clean

demo: .venv/ready
	@exec $(BIN)/python -m example_app $(DEMO_ARGS)

test: check
	$(BIN)/pytest -m "$(QUICK)" $(PYTEST_ARGS)

test-all: check
	$(BIN)/pytest $(PYTEST_ARGS)

# A real browser drives the same server code once more; what it adds are scripts. Old
# packages leave sockets open.
test-lowest: .venv-lowest/ready
	$(LOWEST)/python -m pytest -m "not browser" -W default::pytest.PytestUnraisableExceptionWarning $(LOWEST_ARGS)

audit: .venv-audit/ready
	$(AUDIT)/pip-audit --strict --no-deps --disable-pip -r requirements-dev.txt

# The same commit gives the same files, byte for byte.
release: .venv-release/ready
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(RELEASE)/python -m build --no-isolation --outdir dist
	$(RELEASE)/twine check --strict dist/*
	$(PYTHON) -m venv --clear --without-pip build/released
	$(RELEASE)/python -m pip --python build/released/bin/python install --quiet --disable-pip-version-check dist/*.whl
	$(RELEASE)/cyclonedx-py environment --output-reproducible --output-file dist/sbom.json build/released/bin/python
	cd build/released && PATH="$$PWD/bin:$$PATH" ../../$(RELEASE)/basedpyright --verifytypes flask_credly --ignoreexternal > ../types.txt || true
	grep -q 'exported by "flask_credly": [1-9]' build/types.txt
	! grep -E '$(PUBLIC)' build/types.txt
	cd dist && sha256sum *

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/djlint --lint --quiet templates example_app/templates
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

bench: .venv/ready
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Fourteen tests; some run fixed examples besides.
fuzz: .venv/ready
	CREDLY_TEST_EXAMPLES=720 $(BIN)/pytest $(PYTEST_ARGS) tests/test_fuzz.py $(FUZZ_ARGS)

storm: .venv/ready
	$(BIN)/python -m tests.storm --system both --database sqlite,postgresql,mariadb --seeds 5 $(STORM_ARGS)

docs: .venv/ready
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "Open build/docs/index.html"

generated: .venv/ready
	$(BIN)/python -m tests.decisions > docs/decisions.md
	CREDLY_TEST_SCREENSHOTS=docs $(BIN)/pytest -q tests/test_browser.py -k for_the_readme

words: .venv/ready
	$(BIN)/python -m tests.catalogue

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest .venv-audit .venv-release build dist

.venv/ready: pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Flask-Credly needs Python 3.11 or newer. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "This Python cannot make a virtual environment. On Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# As .venv, then each dependency at its lower bound.
.venv-lowest/ready: pyproject.toml requirements-dev.txt
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	sed -n 's/^    "\(.*\)>=\(.*\)",$$/\1==\2/p' pyproject.toml > .venv-lowest/bounds.txt
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check --no-deps -r .venv-lowest/bounds.txt
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(LOWEST)/python -m pip check
	@touch $@

.venv-audit/ready: Makefile
	$(PYTHON) -m venv .venv-audit
	$(AUDIT)/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@touch $@

.venv-release/ready: Makefile
	$(PYTHON) -m venv .venv-release
	$(RELEASE)/python -m pip install --quiet --disable-pip-version-check build==1.6.1 twine==7.0.0 cyclonedx-bom==7.5.0 basedpyright==1.40.2 hatchling==1.33.0
	@touch $@
