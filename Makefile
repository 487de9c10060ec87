# Builds, checks, tests and installs spiderweb. `make help` lists the targets.
SHELL       := /bin/bash
CARGO       ?= cargo
PREFIX      ?= /usr/local
DESTDIR     ?=
PROVIDER    ?= echo
MODEL       ?=

bindir      := $(DESTDIR)$(PREFIX)/bin
sbindir     := $(DESTDIR)$(PREFIX)/sbin
mandir      := $(DESTDIR)$(PREFIX)/share/man
docdir      := $(DESTDIR)$(PREFIX)/share/doc/spiderweb
servicedir  := $(DESTDIR)$(PREFIX)/share/spiderweb/services
driverdir   := $(DESTDIR)$(PREFIX)/libexec/spiderweb
PROGRAMS    := spiderweb spiderweb-config spiderweb-control spiderweb-fs-node spiderweb-fs-mount

.DEFAULT_GOAL := build
.PHONY: build release check test bench soak demo install uninstall setup setup-check setup-demo clean help

build: ## Build all programs with debug assertions
	$(CARGO) build --locked

release: ## Build all programs as they are installed
	$(CARGO) build --locked --release

setup-check:
	@tests/setup 'cc:gcc libc6-dev' mandoc:mandoc

setup: ## Install the Debian packages that building and testing need
	@tests/setup 'cc:gcc libc6-dev' mandoc:mandoc fusermount3:fuse3 git:git \
		rsync:rsync sqlite3:sqlite3 vim:vim

setup-demo:
	@tests/setup 'cc:gcc libc6-dev' fusermount3:fuse3

check: setup-check ## Check formatting, lints, manual pages and the order of the rooms
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	mandoc -T lint -W warning man/*.[1-8]
	$(CARGO) test --locked --test suite tidy::

test: setup ## Run all tests
	$(CARGO) build --locked
	$(CARGO) test --locked

bench: setup ## Measure, beside the peers that are installed
	$(CARGO) build --locked --release --bins --example bench --example echo
	tests/bench/run

soak: setup ## Test a mount at length with pjdfstest and fsx, and a gateway with kills (as root)
	$(CARGO) build --locked --release
	tests/soak/run

demo: setup-demo ## Show an agent at work: gateway, two nodes, a mount, a failover
	$(CARGO) build --locked --release
	PROVIDER='$(PROVIDER)' MODEL='$(MODEL)' tests/demo target/release

install: release ## Install below $(DESTDIR)$(PREFIX)
	$(CARGO) build --locked --release --example echo-driver
	install -d $(bindir) $(sbindir) $(mandir)/man1 $(mandir)/man5 $(mandir)/man7 $(mandir)/man8 $(docdir)
	install -d $(servicedir) $(driverdir)
	install -m 0755 $(addprefix target/release/,$(PROGRAMS)) $(bindir)
	ln -sf ../bin/spiderweb-fs-mount $(sbindir)/mount.spiderweb
	for page in man/*.[1-8]; do install -m 0644 $$page $(mandir)/man$${page##*.}/ || exit 1; done
	install -m 0644 README.md ARCHITECTURE.md CHANGELOG.md LICENSE $(docdir)
	install -m 0755 target/release/examples/echo-driver $(driverdir)
	sed 's|/usr/local/|$(PREFIX)/|' examples/echo.json > $(servicedir)/echo.json
	chmod 0644 $(servicedir)/echo.json

uninstall: ## Remove what install installed
	rm -f $(addprefix $(bindir)/,$(PROGRAMS)) $(sbindir)/mount.spiderweb
	for page in man/*.[1-8]; do rm -f $(mandir)/man$${page##*.}/$${page##*/}; done
	rm -rf $(docdir)
	rm -f $(driverdir)/echo-driver $(servicedir)/echo.json
	-rmdir $(servicedir) $(DESTDIR)$(PREFIX)/share/spiderweb $(driverdir)

clean: ## Remove what was built
	$(CARGO) clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
