.PHONY: install demo test bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	.venv/bin/quiet demo

test: install
	.venv/bin/python -m pytest -n 2

bench: install
	.venv/bin/python benchmarks/startup.py
	.venv/bin/python benchmarks/loop_overhead.py

clean:
	rm -rf .venv build dist src/*.egg-info
