#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# run.sh - run the announcement's two programs where /dev/ksm is, as root
#
# Stands beside the programs, and beside ../tools/tap.sh. busybox sh will do.
# Prints TAP.
set -u

dir=$(cd "$(dirname "$0")" && pwd)
sysfs=/sys/class/misc/ksm
# shellcheck source=tests/tools/tap.sh
. "$dir/../tools/tap.sh"

if [ ! -e /dev/ksm ]; then
	echo "not ok 1 - announcement: there is no /dev/ksm; load the module: modprobe ksm"
	exit 1
fi

equal 'start' 'created scanner' "$("$dir/ksmctl" start 100 50 2000)"
equal 'info after start' 'flags 1, pages_to_scan 100 npages_merge 50, sleep_time 2000' "$("$dir/ksmctl" info)"
equal 'sysfs agrees' '1 100 50 2000' \
	"$(cat $sysfs/run $sysfs/pages_to_scan $sysfs/max_pages_to_merge $sysfs/sleep_us | xargs)"
equal 'a verb may be cut short' 'stopped scanner' "$("$dir/ksmctl" sto)"
equal 'info after stop' 'flags 0, pages_to_scan 100 npages_merge 50, sleep_time 2000' "$("$dir/ksmctl" in)"
equal 'nothing to scan is refused' 'KSM_START_KTHREAD failed' "$("$dir/ksmctl" start 0 0 0 2>&1)"

before=$(counted $sysfs pages_registered)
mkfifo "$tmp/in" "$tmp/out"
"$dir/qemu" <"$tmp/in" >"$tmp/out" &
pid=$!
exec 3>"$tmp/in" 4<"$tmp/out"
line=
read -r line <&4
equal 'qemu registers' 'registered 2048 pages' "$line"
equal 'the pages are registered' $((before + 2048)) "$(counted $sysfs pages_registered)"

# All of its pages are alike, but one page serves 256 mappings at most.
"$dir/ksmctl" start 4096 0 1000 >/dev/null
i=0
while [ $(($(cat $sysfs/pages_shared) + $(cat $sysfs/pages_sharing))) -lt 2048 ] && [ $i -lt 60 ]; do
	sleep 1
	i=$((i + 1))
done
"$dir/ksmctl" stop >/dev/null
shared=$(counted $sysfs pages_shared)
equal 'its pages are all shared' 2048 $((shared + $(counted $sysfs pages_sharing)))
equal 'by few copies' yes "$([ "$shared" -ge 8 ] && [ "$shared" -le 20 ] && echo yes || echo "$shared copies")"

echo >&3
exec 3>&- 4<&-
status=0
wait $pid || status=$?
equal 'qemu finds its memory unchanged' 0 $status
equal 'nothing stays registered' "$before" "$(counted $sysfs pages_registered)"

tap_done
