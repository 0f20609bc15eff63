# Dotgraft's commands. All but `check` and most `mutants` need root (namespaces, loop devices, btrfs); they say what they install first.
#
#   make check     what a contributor runs before each commit: format, lints, unit tests, generated files; no root, no Go
#   make demo      a Dot's life on a real API server with two real agents     KEEP=1 leaves it running
#   make test      everything CI checks                                       CASES="1- crd" runs only these e2e cases
#   make bench     side by side with btrfs send | receive and rsync
#   make conformance  Kubernetes' own storage tests (External.Storage); the report is in conformance-report/
#   make measure   volumes under real pods: 100 claims, a drain of 30 pods, five minutes without API server, a move of 1 GiB
#   make cluster   three real nodes with operator and agents, to play with    make down ends it
#   make soak      what is long and random, with new seeds until the time is over    MINUTES=60 SEED=1
#   make mutants   takes out one guard at a time, and says which test misses it
#   make release-dry-run  all of a release that one machine can make; says what it can't
#
# What is built stays in DOTGRAFT_CACHE (default ~/.cache/dotgraft): bin/ (etcd, Kubernetes, cargo-deny), target/ (ours).

SHELL := /bin/bash
.DEFAULT_GOAL := help

export DOTGRAFT_CACHE ?= $(HOME)/.cache/dotgraft
export CARGO_TARGET_DIR ?= $(DOTGRAFT_CACHE)/target
export DOTGRAFT_TOOLS_DIR ?= $(DOTGRAFT_CACHE)/bin

.PHONY: help check demo test bench measure cluster conformance soak mutants release-dry-run down

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

check:
	@e2e/make.sh check

demo:
	@e2e/make.sh demo

test:
	@e2e/make.sh test

bench:
	@e2e/make.sh bench

conformance:
	@e2e/make.sh conformance

measure:
	@e2e/make.sh measure

cluster:
	@e2e/make.sh cluster

soak:
	@e2e/make.sh soak

mutants:
	@e2e/make.sh mutants

release-dry-run:
	@e2e/make.sh release-dry-run

down:
	@e2e/make.sh down
