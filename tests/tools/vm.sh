#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# vm.sh - test ksmctl, libksm, libksm-preload and fieldmap where /dev/ksm is, as root, in the VM
#
#	tests/vm/run --add build/tools --add build/tests/tools -- build/tests/tools/vm.sh
#
# busybox sh will do. Prints TAP. Unloads and loads the module, gives /dev/ksm
# other rights and adds a user: nothing for a machine that has other work.
# shellcheck disable=SC3043 # busybox sh has local
set -u

dir=$(cd "$(dirname "$0")" && pwd)
tools=$(cd "$dir/../../tools" && pwd)
ksmctl=$tools/ksmctl
sysfs=/sys/class/misc/ksm
# shellcheck source=tests/tools/tap.sh
. "$dir/tap.sh"

# values FILE...: of sysfs, in one line
values() {
	counted $sysfs "$@"
}

# as USER COMMAND...: arguments without spaces
as() {
	local user="$1"
	shift
	su -s /bin/sh "$user" -c "$*"
}

# wait_until NAME OPERATOR VALUE: a minute at most, until what sysfs says is so
wait_until() {
	local i=0
	until test "$(values "$1")" "$2" "$3" || [ $i -ge 60 ]; do
		sleep 1
		i=$((i + 1))
	done
}

# wait_for FILE NUMBER: until this is what sysfs says, a minute at most.
wait_for() {
	wait_until "$1" -eq "$2"
	equal "$1 becomes $2" "$2" "$(values "$1")"
}

# settings LINE LINE: what ksmctl info prints
settings() {
	printf '%s\n%s\n' "$1" "$2"
}

test_no_module() {
	rmmod ksmdev || exit 1
	runs 'ksmctl start: no module' 1 '' 'ksmctl: cannot open /dev/ksm: No such file or directory: *: modprobe ksm' \
		"$ksmctl" start 1 2 3
	runs 'ksmctl status: no module' 1 '' 'ksmctl: /sys/class/misc/ksm: No such file or directory: *: modprobe ksm' \
		"$ksmctl" status
	runs 'fieldmap: no module' 1 '*' '*: modprobe ksm*' "$tools/fieldmap" --shared 1 --private 0 -t 0
	run_tap "$dir/libksm-real"
	runs 'preload: no module' 0 '*' 'preload-test: libksm-preload: /dev/ksm: No such file*: *modprobe ksm (LIBKSM_QUIET=1*' \
		"$ksmctl" run "$dir/preload-test" kernel
	run_tap "$ksmctl" run --quiet "$dir/preload-test" kernel
	modprobe ksm
	runs 'modprobe ksm is what helps' 0 \
		"$(settings 'flags 0, pages_to_scan 0 npages_merge 0, sleep_time 0' 'threads 1, cpu_percent 0')" '' "$ksmctl" info
}

test_kthread() {
	runs 'ksmctl start: three numbers' 0 'created scanner' '' "$ksmctl" start 100 50 2000
	runs 'ksmctl info: as started' 0 \
		"$(settings 'flags 1, pages_to_scan 100 npages_merge 50, sleep_time 2000' 'threads 1, cpu_percent 0')" '' \
		"$ksmctl" info
	equal 'sysfs: as started' '1 100 50 2000' "$(values run pages_to_scan max_pages_to_merge sleep_us)"
	runs 'ksmctl start: two numbers' 0 'created scanner' '' "$ksmctl" start 200 3000
	equal 'sysfs: as started, no limit' '1 200 0 3000' "$(values run pages_to_scan max_pages_to_merge sleep_us)"
	runs 'ksmctl start: the largest numbers' 0 'created scanner' '' "$ksmctl" start 4294967295 4294967295 4294967295
	runs 'ksmctl info: the largest numbers' 0 \
		'flags 1, pages_to_scan 4294967295 npages_merge 4294967295, sleep_time 4294967295*' '' "$ksmctl" info
	runs 'ksmctl start: 0 is refused' 2 '' 'ksmctl: pages_to_scan: "0" *' "$ksmctl" start 0 0 0
	equal 'a refused start changes nothing' '1 4294967295' "$(values run pages_to_scan)"
	runs 'ksmctl stop' 0 'stopped scanner' '' "$ksmctl" sto
	equal 'sysfs: stopped, settings kept' '0 4294967295 4294967295 4294967295' \
		"$(values run pages_to_scan max_pages_to_merge sleep_us)"

	"$ksmctl" start 100 50 2000 >"$tmp/why"
	runs 'ksmctl start --cpu' 0 'created scanner' '' "$ksmctl" start --cpu=150 --threads=3
	equal 'sysfs: a budget, and the numbers of before' '1 3 150 100 50 2000' \
		"$(values run threads cpu_percent pages_to_scan max_pages_to_merge sleep_us)"
	runs 'ksmctl info: a budget' 0 \
		"$(settings 'flags 1, pages_to_scan 100 npages_merge 50, sleep_time 2000' 'threads 3, cpu_percent 150')" '' \
		"$ksmctl" info
	runs 'ksmctl start --cpu: too much for the threads that there are' 1 '' \
		'ksmctl: start: Invalid argument: *ksmctl(8)' "$ksmctl" start --cpu=301
	runs 'ksmctl start --cpu: threads stay' 0 'created scanner' '' "$ksmctl" start -c 20
	equal 'sysfs: another budget' '1 3 20' "$(values run threads cpu_percent)"
	runs 'ksmctl start: numbers end the budget' 0 'created scanner' '' "$ksmctl" start 10 1000 --threads=2
	equal 'sysfs: no budget' '1 2 0 10 0 1000' \
		"$(values run threads cpu_percent pages_to_scan max_pages_to_merge sleep_us)"
	"$ksmctl" stop >"$tmp/why"
	"$ksmctl" start -c 5 -t 1 >"$tmp/why"
	runs 'ksmctl stop: in budget mode' 0 'stopped scanner' '' "$ksmctl" stop
	equal 'sysfs: stopped, the budget is kept' '0 1 5' "$(values run threads cpu_percent)"
}

test_rights() {
	echo 'sim:x:1000:104:sim:/:/bin/sh' >>/etc/passwd
	equal 'the device is root'\''s' '600 0 0' "$(stat -c '%a %u %g' /dev/ksm)"
	runs 'nobody: no permission' 1 '' 'ksmctl: cannot open /dev/ksm: Permission denied: *usermod -aG kvm*' \
		as nobody "$ksmctl" info
	runs 'nobody: status works all the same' 0 'kksmd *stopped*' '' as nobody "$ksmctl" status
	# What the udev rule does
	chgrp kvm /dev/ksm
	chmod 660 /dev/ksm
	"$ksmctl" start 10 0 1000 >"$tmp/why"
	"$ksmctl" start --cpu=5 >"$tmp/why"
	runs 'group kvm: info' 0 'flags 1, pages_to_scan 10 *' '' as sim "$ksmctl" info
	runs 'group kvm: scan' 0 'scan done, *' '' as sim "$ksmctl" scan 10
	runs 'group kvm: may not start' 1 '' 'ksmctl: start: Operation not permitted: *CAP_SYS_ADMIN*root' \
		as sim "$ksmctl" start 20 0 1000
	runs 'group kvm: may not set the pace' 1 '' 'ksmctl: start: Operation not permitted: *CAP_SYS_ADMIN*root' \
		as sim "$ksmctl" start --cpu=7
	equal 'and nothing has changed by that' '1 10 5' "$(values run pages_to_scan cpu_percent)"
	runs 'group kvm: may not stop' 1 '' 'ksmctl: stop: Operation not permitted: *CAP_SYS_ADMIN*root' \
		as sim "$ksmctl" stop
	equal 'and nothing has changed' '1 10' "$(values run pages_to_scan)"
	runs 'nobody else' 1 '' '*Permission denied*' as nobody "$ksmctl" info
	"$ksmctl" stop >"$tmp/why"
}

# Text, JSON and sysfs say the same while nothing changes.
test_status() {
	runs "status $1: JSON" 0 '{*}' '' "$ksmctl" status --json
	"$dir/json-flat" <"$tmp/out" >"$tmp/flat"
	runs "status $1: text" 0 'kksmd *' '' "$ksmctl" status
	equal "status $1: text and JSON agree" "$(cut -d' ' -f2 "$tmp/flat")" \
		"$(cut -c23-42 "$tmp/out" | tr -d ' ' | sed -e s/running/true/ -e s/stopped/false/)"
	local name value
	while read -r name value; do
		case $name in
		saved_bytes)
			equal "status $1: saved_bytes is profit and metadata" "$value" \
				$(($(values profit_bytes) + $(values metadata_bytes)))
			;;
		run)
			equal "status $1: run" "$(values run)" "$([ "$value" = true ] && echo 1 || echo 0)"
			;;
		*)
			equal "status $1: $name" "$(values "$name")" "$value"
			;;
		esac
	done <"$tmp/flat"
}

# Three processes with 2 MiB of field map and 1 MiB of their own, shared by
# scanning by hand.
test_fieldmap() {
	local pages=2304 pid status=0
	"$tools/fieldmap" -n 3 --shared 2 --private 1 --seconds 600 --expect 99 --rewrite 50 >"$tmp/fieldmap" 2>&1 &
	pid=$!
	wait_for pages_registered $pages
	equal 'fieldmap has an area for each buffer' '6 6' "$(values areas regions)"
	equal 'nothing is shared without a scan' '0 0' "$(values pages_shared pages_sharing)"
	runs 'ksmctl scan: the first pass merges nothing' 0 'scan done, pages_shared 0, pages_sharing 0, zero_pages 0' '' \
		"$ksmctl" scan $pages
	runs 'ksmctl scan: with a limit' 0 'scan done, *' '' "$ksmctl" scan $((4 * pages)) 100
	values pages_sharing >"$tmp/why"
	[ "$(cat "$tmp/why")" -gt 0 ] && [ "$(cat "$tmp/why")" -lt 512 ]
	ok 'the limit ends it early' $?
	# Or it would see that all is shared, and end while we look.
	kill -STOP $pid
	runs 'ksmctl scan: the rest' 0 'scan done, pages_shared 512, pages_sharing 1024, zero_pages 0' '' \
		"$ksmctl" scan $((4 * pages))
	test_status 'while shared'
	kill -CONT $pid
	wait $pid || status=$?
	cp "$tmp/fieldmap" "$tmp/why"
	ok 'fieldmap sees it, and finds every byte right' $status
	matches 'fieldmap prints the verdict' \
		'*wrote to 50 %*saved 4.0 MiB of 4.0 MiB possible (100.0 %), every byte verified' "$(cat "$tmp/fieldmap")"
	wait_for pages_registered 0
	equal 'nothing is shared in the end' '0 0' "$(values pages_shared pages_sharing)"

	"$ksmctl" start 1000 0 1000 >"$tmp/why"
	runs 'fieldmap: by kksmd' 0 '*possible (100.0 %), every byte verified' '' \
		"$tools/fieldmap" -n 2 --shared 4 --private 2 --seconds 100 --expect 100
	"$ksmctl" stop >"$tmp/why"
	runs 'fieldmap: fails when nobody scans' 1 '*kksmd is stopped*saved 0.0 MiB of 4.0 MiB*' '*less than the expected 50 %*' \
		"$tools/fieldmap" -n 2 --shared 4 --private 2 --seconds 2 --expect 50
}

# Where system calls are forbidden.
test_preload_filtered() {
	local pid status=0
	if ! grep -q '^Seccomp_filters:' /proc/self/status; then
		ok 'preload: system calls may be forbidden # SKIP this kernel cannot forbid any' 0
		return
	fi
	run_tap "$ksmctl" run "$dir/preload-filter" no-scanner "$dir/preload-test" ranges
	"$ksmctl" run --auto=1 -- "$dir/preload-filter" sandbox >"$tmp/out" 2>&1 &
	pid=$!
	wait_until pages_registered -ge 8192
	values pages_registered >"$tmp/why"
	[ "$(cat "$tmp/why")" -ge 8192 ]
	ok 'preload, auto: what forbids itself all else shares 32 MiB' $?
	kill $pid
	wait $pid || status=$?
	equal 'preload, auto: and is not killed by that' 143 "$status"
	wait_for regions 0
}

# Two simulations that know nothing of the driver, each with the same 24 MiB.
test_preload() {
	run_tap "$ksmctl" run "$dir/preload-test"
	test_preload_filtered
	run_tap "$ksmctl" run --quiet "$dir/preload-test" few
	wait_for regions 0
	run_tap "$ksmctl" run --auto=1 "$dir/preload-test" auto
	runs 'preload: the main thread may leave' 0 'the last words' '' "$ksmctl" run "$dir/preload-test" leave
	wait_for regions 0
	"$ksmctl" start 20000 0 1000 >"$tmp/why"
	"$ksmctl" run --auto -- "$dir/preload-sim" 24 120 >"$tmp/first" 2>&1 &
	"$ksmctl" run --auto -- "$dir/preload-sim" 24 120 >"$tmp/second" 2>&1 &
	wait_until pages_sharing -ge 6144
	values pages_sharing >"$tmp/why"
	[ "$(cat "$tmp/why")" -ge 6144 ]
	ok 'preload, auto: two simulations share their arrays' $?
	# shellcheck disable=SC2046 # two words
	kill $(jobs -p)
	wait
	equal 'preload, auto: and find every byte right' '0 wrong 0 wrong' \
		"$(tail -q -n 1 "$tmp/first" "$tmp/second" | xargs)"
	wait_for regions 0
	"$ksmctl" stop >"$tmp/why"
}

if [ ! -e /dev/ksm ]; then
	echo 'not ok 1 - there is no /dev/ksm; load the module: modprobe ksm'
	exit 1
fi
test_no_module
test_kthread
test_rights
test_status 'when idle'
run_tap "$dir/libksm-real"
run_tap "$dir/libksm-real-c++"
test_fieldmap
test_preload
tap_done
