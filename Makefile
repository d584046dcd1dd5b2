# SPDX-License-Identifier: GPL-2.0-only
#
# Makefile - for people; the kernel's build system reads Kbuild.
#
#	make			build ksmdev.ko for the running kernel (KDIR= for another;
#				ALLOW_UNKNOWN_KERNEL=1 for one newer than it was made for)
#	make tools		build ksmctl and libksm into build/tools
#	make demo		see memory come back, in a VM (KERNEL=)
#	make demo-guests	KVM guests in that VM share their memory (SCENE=, KERNEL=)
#	make check		build and test everything on the stock kernels that matter most
#	make module-NAME	build/NAME/ksmdev.ko for a kernel of scripts/kernels.list
#	make check-debug	the same tests on kernels with all their debugging on (KERNEL=debug-7.3: on
#				that alone)
#	make check-kernels	all tests on every kernel of scripts/kernels.list, and a table
#	make check-builds	the module for kernels in between, that cannot be booted
#	make check-neighbours	what one tenant can do to another, at length, on 6.1 and 6.12, and
#				a table (SECONDS=N: longer)
#	make check-guests	the long tests with KVM guests, on 6.1 and 6.12 (SECONDS=N: longer)
#	make bench		against the kernel's ksmd (QUICK=1: in four minutes; KERNEL=)
#	make static		the static checks alone
#	make install		module, tools, udev rule, man pages, DKMS source
#	make uninstall		all of that
#	make clean
#
# The demos, the checks and bench install what they need through apt: scripts/setup.

VERSION := $(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' dkms.conf)

# All of this makefile's paths are relative to it.
KDIR ?= /lib/modules/$(shell uname -r)/build
KMAKE ?= $(MAKE) -C $(KDIR)
# What KVM guests run on, and tenants.
GUESTS := 6.1 6.12
NEIGHBOURS := 6.1 6.12
# Off where the kernel has no static calls (User-Mode Linux): all calls are through pointers there.
CHECK_BRANCHES ?= scripts/check-branches
MODULE_SOURCES := Kbuild ksm.c ksm.h $(wildcard include/*.h mm/*.c mm/*.h engine/*.c)

PHONY := all
all: $(KDIR)/Makefile
	$(KMAKE) M=$(CURDIR) EXTRA_SYMBOL=$(EXTRA_SYMBOL) modules
	scripts/check-branches .

$(KDIR)/Makefile:
	@echo "No kernel headers in $(KDIR): apt-get install linux-headers-$(patsubst /lib/modules/%/build,%,$(KDIR))" >&2
	@exit 1

# The module for several kernels, side by side: make module KDIR=... OUT=build/NAME. KMAKE is how
# to run make in KDIR. Warnings are errors.
PHONY += module
module: $(KDIR)/Makefile
	@test -n "$(OUT)" || { echo "make module KDIR=DIR OUT=DIR: OUT= is missing" >&2; exit 1; }
	mkdir -p $(OUT)
	cp -pu --parents $(MODULE_SOURCES) $(OUT)/
	+$(KMAKE) M=$(abspath $(OUT)) W=1 KCFLAGS=-Werror EXTRA_SYMBOL=$(EXTRA_SYMBOL) FEW_BITS=$(FEW_BITS) RACE_DELAY=$(RACE_DELAY) \
		ALLOW_UNKNOWN_KERNEL=$(ALLOW_UNKNOWN_KERNEL) $(MODULE_FLAGS) modules
	$(CHECK_BRANCHES) $(OUT)

# For the kernels of make check
KERNELS := $(if $(filter modules,$(MAKECMDGOALS)),$(shell scripts/kernel gate))
# and of those that run all tests
FULL := $(foreach kernel,$(KERNELS),$(if $(filter part,$(shell scripts/kernel gate $(kernel))),,$(kernel)))
PHONY += modules
modules: $(KERNELS:%=module-%) $(FULL:%=missing-%) $(FULL:%=few-%) $(FULL:%=notifier-%) \
	 $(FULL:%=coherent-%) $(FULL:%=gup-%)

module-for = $(MAKE) --no-print-directory module KDIR=$$(scripts/kernel kdir $*) KMAKE='scripts/kernel make $*' \
	OUT=build/$* RACE_DELAY=$(filter debug debug-%,$*)

module-%: setup-%
	+@$(module-for)

# Wants a function that no kernel has: for the test that it is refused. One object differs: it is
# made in place of the real one, which comes back.
missing-%: module-%
	+@$(module-for) EXTRA_SYMBOL=ksmdev_no_such_function
	@mv build/$*/ksmdev.ko build/$*/ksmdev-missing.ko
	+@$(module-for)

# Fingerprints of so few bits that many contents have the same: for tests/collisions_test.c. After
# the one before, not beside it: both are made in the same place.
FEW := 13 16
few-%: missing-%
	+@for bits in $(FEW); do \
		$(module-for) FEW_BITS=$$bits && \
		mv build/$*/ksmdev.ko build/$*/ksmdev-few-$$bits.ko || exit 1; \
	done
	+@$(module-for)

# Modules that tests/notifier_test.c and tests/coherent_test.c load.
define device-module
	@mkdir -p build/$*-$(1)
	@cp -pu tests/$(1)/Kbuild tests/$(1)/$(1).c build/$*-$(1)/
	+@scripts/kernel make $* M=$(CURDIR)/build/$*-$(1) W=1 modules
endef

notifier-%: setup-%
	$(call device-module,notifier)

coherent-%: setup-%
	$(call device-module,coherent)

# The kernel's own, which tests/cow_test.c wants and Debian's kernels lack.
gup-%: setup-%
	@mkdir -p build/$*-gup
	@cp -pu tests/cow/Kbuild tests/cow/gup_test_module.c build/$*-gup/
	+@scripts/kernel make $* M=$(CURDIR)/build/$*-gup \
		GUP_TEST=$$(scripts/kernel cache)/linux-6.12/mm/gup_test.c modules

PHONY += setup
setup:
	@scripts/setup

# What one kernel wants, and no other
setup-%:
	@scripts/setup $*

PHONY += tools
tools:
	$(MAKE) -C tools

PHONY += demo
demo demo-guests bench: KERNEL ?= 6.12
demo:
	@scripts/setup $(KERNEL)
	@$(MAKE) --no-print-directory -s module-$(KERNEL)
	@$(MAKE) --no-print-directory -s -C tools ARCH=$$(scripts/kernel flavour $(KERNEL))
	@tests/demo $(KERNEL)

PHONY += demo-guests
demo-guests:
	@scripts/setup --guests $(KERNEL)
	@$(MAKE) --no-print-directory -s module-$(KERNEL) tools
	@$(MAKE) --no-print-directory -s -C tests guests
	@tests/guests/demo -k $(KERNEL) $(SCENE)

PHONY += check
check: setup
	@tests/check

# Hours where VMs are emulated.
PHONY += check-kernels
check-kernels: setup
	@tests/kernels

# Sources of 2 GB each.
PHONY += check-builds
check-builds:
	@scripts/setup $$(tests/builds --like)
	@tests/builds

PHONY += check-debug
check-debug: setup-debug
	@tests/debug/check $(KERNEL:%=-k %)

PHONY += check-neighbours
check-neighbours:
	@scripts/setup $(NEIGHBOURS)
	@$(MAKE) --no-print-directory -s $(NEIGHBOURS:%=module-%) tools
	@$(MAKE) --no-print-directory -s -C tests
	@tests/neighbours $(SECONDS:%=-t %) $(NEIGHBOURS)

# Both kernels side by side: an emulated VM for guests has one CPU.
PHONY += check-guests
check-guests:
	@scripts/setup $(GUESTS)
	@$(MAKE) --no-print-directory -s $(GUESTS:%=module-%) tools
	@$(MAKE) --no-print-directory -s -C tests
	@$(MAKE) --no-print-directory -s -k -j $(GUESTS:%=check-guests-%)

check-guests-%:
	@bash -o pipefail -c 'tests/guests/run -l $(SECONDS:%=-t %) $* | sed -u "s/^/$*: /"'

PHONY += bench
bench:
	@scripts/setup --bench $(KERNEL)
	@tests/bench/run $(if $(QUICK),-q) -k $(KERNEL)

PHONY += static
static: setup
	@scripts/check-static

# Where a DKMS package's source lies.
DKMS_DIR = $(DESTDIR)/usr/src/ksmdev-$(VERSION)

PHONY += install
install: all tools
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules_install
	# It leaves that out where it finds no System.map, and Debian 13 has none.
	export PATH=$$PATH:/usr/sbin:/sbin && depmod -a $$(modinfo -F vermagic ksmdev.ko | cut -d ' ' -f 1)
	$(MAKE) -C tools install
	rm -rf $(DKMS_DIR)
	mkdir -p $(DKMS_DIR)
	cp -p --parents Makefile dkms.conf scripts/check-branches $(MODULE_SOURCES) $(DKMS_DIR)/
	@echo "Now: modprobe ksm. To build for each new kernel: dkms add ksmdev/$(VERSION)"

PHONY += uninstall
uninstall:
	@test ! -e $(DESTDIR)/var/lib/dkms/ksmdev/$(VERSION) || \
		{ echo "DKMS needs its source. First: dkms remove ksmdev/$(VERSION) --all" >&2; exit 1; }
	$(MAKE) -C tools uninstall
	rm -rf $(DKMS_DIR)
	export PATH=$$PATH:/usr/sbin:/sbin; \
	for module in $(DESTDIR)/lib/modules/*/updates/ksmdev.ko* $(DESTDIR)/lib/modules/*/extra/ksmdev.ko*; do \
		test -e "$$module" || continue; \
		kernel=$${module%/*/*}; \
		rm "$$module" && depmod -b $(DESTDIR)/ -a "$${kernel##*/}" || exit 1; \
	done

PHONY += clean
clean:
	rm -rf build
	rm -f ksmdev.ko ksmdev.o ksmdev.mod* .module-common.o modules.order Module.symvers .*.cmd
	rm -f ksm.o mm/*.o engine/*.o mm/.*.cmd engine/.*.cmd

.PHONY: $(PHONY)
