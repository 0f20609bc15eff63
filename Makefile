# Dotgraft's commands. All need root (namespaces, loop devices, btrfs); they say what they install before they do.
#
#   make demo      a Dot's life on a real API server with two real agents     KEEP=1 leaves it running
#   make test      everything CI checks                                       CASES="1- crd" runs only these e2e cases
#   make bench     side by side with btrfs send | receive and rsync
#   make conformance  Kubernetes' own storage tests (External.Storage); the report is in conformance-report/
#   make measure   volumes under real pods: 100 claims, a drain of 30 pods, five minutes without API server, a move of 1 GiB
#   make cluster   three real nodes with operator and agents, to play with    make down ends it
#
# What is built stays in DOTGRAFT_CACHE (default ~/.cache/dotgraft): bin/ (etcd, Kubernetes, cargo-deny), target/ (ours).

SHELL := /bin/bash
.DEFAULT_GOAL := help

export DOTGRAFT_CACHE ?= $(HOME)/.cache/dotgraft
export CARGO_TARGET_DIR ?= $(DOTGRAFT_CACHE)/target
export DOTGRAFT_TOOLS_DIR ?= $(DOTGRAFT_CACHE)/bin

.PHONY: help demo test bench measure cluster conformance down

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -12

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

down:
	@e2e/make.sh down
