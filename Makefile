# make : la liste des commandes. Il ne faut que make et Python ≥ 3.11.

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
ENV := .venv/.pret

.DEFAULT_GOAL := aide
.PHONY: aide livre zip test endurance lab exercices notebooks installation bench propre

aide:
	@echo "make livre      construit le livre et dit où l'ouvrir"
	@echo "make zip        range le livre dans un fichier, à lire hors ligne"
	@echo "make test       vérifie tout : style, types, paquet, carnets (nbval), livre"
	@echo "make endurance  rejoue les carnets six fois (sur un fil, puis sur deux), puis tire 5 000 instances : 40 minutes"
	@echo "make lab        ouvre les carnets dans JupyterLab"
	@echo "make exercices  copie les carnets dans exercices/, sans leurs sorties, pour y travailler"
	@echo "make notebooks  réexécute tous les carnets sur place"
	@echo "make bench      mesure lrq à côté de ses références (une heure, machine au repos)"
	@echo "make installation  met en tête des carnets de quoi marcher dans Colab, d'après _config.yml"
	@echo "make propre     efface le livre construit et les caches (ni .venv, ni exercices/)"
	@echo
	@echo "PYTHON=python3.12           choisit l'interpréteur (3.11 au moins)"
	@echo "TORCH_INDEX=<adresse>       prend PyTorch à cette adresse, par exemple sa version sans GPU :"
	@echo "                            https://download.pytorch.org/whl/cpu"

# L'environnement : refait quand les versions changent.
$(ENV): requirements.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || \
	  { echo "$(PYTHON) est introuvable : installez Python 3.11 ou plus récent, ou donnez PYTHON=<chemin>."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Il faut Python 3.11 ou plus récent ; $(PYTHON) est $$($(PYTHON) -V 2>&1). Donnez PYTHON=<chemin>."; exit 1; }
	@echo "Préparation de l'environnement dans .venv : quelques minutes la première fois (PyTorch est lourd)…"
	@$(PYTHON) -m venv .venv || \
	  { echo "Le module venv manque à $(PYTHON) (sous Debian : apt install python3-venv)."; exit 1; }
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  echo "PyTorch, depuis $(TORCH_INDEX)…"; \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps \
	    --index-url "$(TORCH_INDEX)" "$$(grep '^torch==' requirements.txt)"; \
	fi
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
	@echo "Environnement prêt."

# Sur une machine chargée, des fils de calcul qui attendent en tournant à vide ralentissent tout. Pas pour les
# mesures : la réponse des fils y compte.
livre test endurance notebooks: export OMP_WAIT_POLICY := PASSIVE

# Le cache des carnets ne regarde que leur texte : quand lrq change, tout est à refaire.
_build/.lrq: $(shell find lrq -type f -not -path '*/__pycache__/*')
	@rm -rf _build/.jupyter_cache
	@mkdir -p _build && touch $@

# Rien à refaire tant que rien n'a changé de ce que le livre montre.
# --all : sans lui, une seconde construction oublie les avertissements de la première, et -W n'arrête plus rien.
BOOK := _config.yml _toc.yml $(shell find book notebooks -type f -not -path '*/__pycache__/*' -not -path '*/.*')
_build/.livre: $(ENV) _build/.lrq $(BOOK)
	@echo "Exécution des carnets, plusieurs à la fois : quelques minutes la première fois…"
	@$(BIN)/python notebooks/carnets.py cache
	@echo "Construction du livre…"
	@$(BIN)/jupyter-book build . --all -W --keep-going
	@touch $@

livre: _build/.livre
	@echo
	@echo "Le livre est prêt : $(CURDIR)/_build/html/index.html"
	@echo "Pour l'ouvrir     : $(PYTHON) -m webbrowser \"file://$(CURDIR)/_build/html/index.html\""

zip: livre
	@$(BIN)/python book/paquet.py

# Un ouvrier par cœur : voir tests/conftest.py. Plus de quatre ne se partageraient que la mémoire.
test: $(ENV)
	@$(BIN)/pytest -n logical --maxprocesses 4 --nbval tests notebooks

# CARNETS=notebooks/11_00_introduction.ipynb ne rejoue que celui-là.
CARNETS ?= notebooks
endurance: $(ENV)
	@$(BIN)/python tests/endurance.py $(CARNETS)

lab: $(ENV)
	@$(BIN)/jupyter lab

exercices: $(ENV)
	@$(BIN)/python notebooks/carnets.py exercices

notebooks: $(ENV)
	@$(BIN)/python notebooks/carnets.py executer

installation: $(ENV)
	@$(BIN)/python notebooks/carnets.py installation

bench: $(ENV)
	@$(BIN)/python -m benchmarks

propre:
	@rm -rf _build .hypothesis .pytest_cache .mypy_cache .ruff_cache .jupyter_cache
	@find lrq tests book notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Effacé : le livre construit et les caches."
