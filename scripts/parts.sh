# shellcheck shell=bash
# Sourced by .ci/run and scripts/nightly: a job in parts, each held to a budget of time.
#
#   part NAME BUDGET_S COMMAND...   run it; it fails when COMMAND fails or takes too long
#   optional NAME BUDGET_S ...      likewise, but COMMAND may skip itself by exit code 77
#   finish                          print what became of each; fail if one has failed

table=()
passed=0
failed=0
skipped=0

part() {
    run_part '' "$@"
}

optional() {
    run_part 77 "$@"
}

run_part() {
    local skip_code=$1 name=$2 budget_s=$3
    shift 3
    printf '\n==> %s (at most %s s): %s\n' "$name" "$budget_s" "$*"

    local began_s=$SECONDS status=0
    timeout --kill-after=60 "$budget_s" "$@" </dev/null || status=$?
    local outcome took_s=$((SECONDS - began_s))
    case $status in
        0) outcome=passed passed=$((passed + 1)) ;;
        "$skip_code") outcome="skipped: cannot be set up here" skipped=$((skipped + 1)) ;;
        124 | 137) outcome="failed: out of time" failed=$((failed + 1)) ;;
        *) outcome="failed: exit code $status" failed=$((failed + 1)) ;;
    esac

    table+=("$(printf '%-18s %5s s of %5s s   %s' "$name" "$took_s" "$budget_s" "$outcome")")
    printf '<== %s\n' "${table[-1]}"
}

finish() {
    printf '\n'
    printf '%s\n' "${table[@]}"
    printf '\n%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
    [ "$failed" = 0 ]
}
