.PHONY: install demo test bench clean teacher worker kd cross proc answer qat memory

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	.venv/bin/quiet demo

test: install
	.venv/bin/python -m pytest -n 2 --dist worksteal

bench: install
	.venv/bin/python benchmarks/startup.py
	.venv/bin/python benchmarks/loop_overhead.py

# Distillation (docs/distillation.md): make kd CONFIG="a.yaml b.yaml" ARGS="train.steps=100". The recipes are those
# for a laptop, which train what they need first; SIZE= takes the large ones, whose models and rows ARGS must name.
SIZE ?= -tiny
QUIET = .venv/bin/quiet
DISTIL = $(QUIET) train distill/$(1)$(SIZE) $(foreach file,$(CONFIG),--config $(file)) $(ARGS)
SMALL = $(if $(SIZE),$(1))
STUDENT = test -d runs/distill-kd-tiny-0 || $(QUIET) train distill/kd-tiny

runs/teacher: | install
	$(QUIET) train distill/teacher-tiny
	$(QUIET) export runs/distill-teacher-tiny-0 $@

runs/student: | install runs/teacher
	$(STUDENT)
	$(QUIET) export runs/distill-kd-tiny-0 $@

teacher: install
	$(call DISTIL,teacher)

worker: install | $(call SMALL,runs/teacher)
	$(call DISTIL,worker)

kd: install | $(call SMALL,runs/teacher)
	$(call DISTIL,kd)

cross: install | $(call SMALL,runs/teacher)
	$(call DISTIL,cross)

proc: install | $(call SMALL,runs/teacher)
	$(call SMALL,$(STUDENT))
	$(call DISTIL,process)

answer: install
	$(call DISTIL,answer)

qat: install | $(call SMALL,runs/student)
	$(call DISTIL,qat)

# Memory (docs/methods/recall.md): a model of the embedded encyclopaedia, its stores, and the reading of both.
BOOK = runs/plain-encyclopaedia-0
STORES = runs/encyclopaedia

$(BOOK): | install
	$(QUIET) train plain/encyclopaedia

$(STORES)/knn.index: | $(BOOK)
	$(QUIET) index episodic --run $(BOOK) --output $(STORES)/events --backend flat --ttl-days 36500
	$(QUIET) index keys $(BOOK) --out $(STORES)/keys --rows-per-shard 4096 --batch-size 256
	$(QUIET) index knn --keys $(STORES)/keys --values $(STORES)/keys --output $@ --dim 64 --factory IVF256,Flat

memory: install | $(STORES)/knn.index
	$(QUIET) train recall/encyclopaedia $(ARGS)

clean:
	rm -rf .venv build dist src/*.egg-info
