PYTHON ?= python3
ifdef VIRTUAL_ENV              # an active environment is used as it is, with the torch it has
VENV := $(VIRTUAL_ENV)
else                           # ours: the versions that tests run with; users are not bound by them
VENV := .venv
PINS := -c constraints.txt
endif
BIN := $(VENV)/bin

train: $(VENV)/.agentgym ; $(BIN)/agentgym train $(ENV) $(ARGS)
test: $(VENV)/.agentgym ; $(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)
prove: $(VENV)/.agentgym ; PYTHONPATH=tests $(BIN)/pytest -q -p prove $(ARGS)
lint: $(VENV)/.agentgym
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright && $(BIN)/lint-imports
acceptance: $(VENV)/.agentgym ; $(BIN)/pytest -m acceptance -s $(ARGS)

$(VENV)/.agentgym: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PINS) -e '.[train,docker,math,parquet,lora,reasoning,search,sql,dev]'
	$(BIN)/python -m pip install $(PINS) --no-deps bfcl-eval==2026.3.23  # its dependencies weigh gigabytes
	touch $@

.PHONY: train test prove lint acceptance
