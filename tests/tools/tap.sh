# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh disable=SC3043 # bash and busybox sh both have local
#
# tap.sh - what the shell tests of the tools have in common: checks that print TAP
#
# Sourced by bash and by busybox sh. $tmp is a directory that is removed at the end.

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
tap_n=0
tap_failed=0

# The time in hundredths of a second since the machine was booted.
hundredths() {
	local now
	read -r now _ </proc/uptime
	echo "${now%.*}${now#*.}"
}

# counted DIRECTORY FILE...: what statistics of the driver say, in one line. They are counted now
# and then, and soon after somebody has asked: what is younger than we have waited is of after that.
counted() {
	local dir="$1" i=0 asked waited
	shift
	asked=$(hundredths)
	while [ $i -lt 600 ]; do
		# Asked may have been up to a hundredth later.
		waited=$((($(hundredths) - asked - 1) * 10))
		[ "$(cat "$dir/stats_age_ms")" -ge $waited ] || break
		sleep 0.1
		i=$((i + 1))
	done
	(cd "$dir" && cat "$@" | xargs)
}

# ok WHAT STATUS: one line of TAP; what a failed check wrote is in $tmp/why.
ok() {
	tap_n=$((tap_n + 1))
	if [ "$2" -eq 0 ]; then
		echo "ok $tap_n - $1"
		return
	fi
	echo "not ok $tap_n - $1"
	[ ! -s "$tmp/why" ] || cut -c1-500 "$tmp/why" | sed 's/^/# /'
	tap_failed=$((tap_failed + 1))
}

# equal WHAT EXPECTED SEEN
equal() {
	printf 'expected: %s\nseen: %s\n' "$2" "$3" >"$tmp/why"
	[ "$2" = "$3" ]
	ok "$1" $?
}

# matches WHAT PATTERN SEEN: PATTERN is the shell's.
matches() {
	local status=1
	printf 'expected: %s\nseen: %s\n' "$2" "$3" >"$tmp/why"
	# shellcheck disable=SC2254 # it is a pattern
	case $3 in
	$2) status=0 ;;
	esac
	ok "$1" $status
}

# runs WHAT STATUS STDOUT STDERR COMMAND...: run it; STDOUT and STDERR are
# patterns of the shell for all of what it prints, which stays in $tmp/out and
# $tmp/err.
runs() {
	local what="$1" status="$2" out="$3" err="$4"
	shift 4
	"$@" >"$tmp/out" 2>"$tmp/err" </dev/null
	matches "$what" "status $status, stdout $out, stderr $err" \
		"status $?, stdout $(cat "$tmp/out"), stderr $(cat "$tmp/err")"
}

# run_tap PROGRAM [ARGUMENT]...: take the TAP that a program prints, and its exit status, into ours.
run_tap() {
	local line status
	timeout 120 "$@" >"$tmp/tap" 2>&1
	status=$?
	while read -r line; do
		: >"$tmp/why"
		case $line in
		'ok '*) ok "${line#* - }" 0 ;;
		'not ok '*) ok "${line#* - }" 1 ;;
		*) echo "# $line" ;;
		esac
	done <"$tmp/tap"
	for line; do
		:
	done
	equal "${line##*/} ends well" 0 $status
}

# The last line of a test script; its status is the script's.
tap_done() {
	echo "1..$tap_n"
	echo "# $((tap_n - tap_failed)) passed, $tap_failed failed"
	[ $tap_failed -eq 0 ]
}
