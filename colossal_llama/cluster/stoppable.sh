#!/usr/bin/env bash
# Runs a launcher so that SIGTERM, SIGINT or SIGHUP to this process reaches the ranks, which then save and end:
#
#     bash stoppable.sh HOSTFILE colossalai run … train.py …
#
# colossalai run forwards no signal: SIGTERM ends it alone, and the ranks train on. When it is killed so, this script signals the ranks, too.
# It is started by colossalai_run.py, which quotes the words for the shells of the hosts and refuses what cannot reach them.
# The ranks reach a consensus on stopping, so signalling those of one host is enough: this host's, or where it has none, the first host of the
# hostfile that has some (over ssh).
set -uo pipefail

here=$(dirname -- "${BASH_SOURCE[0]}")
readonly here hostfile=$1
shift
if [[ "${1:-} ${2:-}" == "colossalai run" ]]; then
    shift 2
    set -- "$(command -v python || command -v python3)" "$here/colossalai_run.py" "$@"
fi
COLOSSAL_LLAMA_LAUNCH="$(uname -n)-$$-$(date +%s)" # colossalai run hands its environment to every host
export COLOSSAL_LLAMA_LAUNCH
# A torchrun that is signalled itself, as SLURM does, kills its ranks after 30 s otherwise: a checkpoint of 98 GB takes 900 s at 110 MB/s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"

interrupted= forwarded=

forward() {
    interrupted=yes forwarded=yes
    local signal=$1 host
    if [[ -n $(bash "$here/signal_ranks.sh" "$COLOSSAL_LLAMA_LAUNCH" "$signal") ]]; then
        echo "SIG$signal forwarded to the ranks of this host: the run ends when all is saved" >&2
        return
    fi
    local there
    printf -v there 'cd %q && bash %q %q %q' "$PWD" "$here/signal_ranks.sh" "$COLOSSAL_LLAMA_LAUNCH" "$signal"
    while read -r -u 3 host; do
        host=${host%$'\r'}
        if [[ -n $host && -n $(ssh -o BatchMode=yes -- "$host" "$there" 2>/dev/null </dev/null) ]]; then
            echo "SIG$signal forwarded to the ranks of $host: the run ends when all is saved" >&2
            return
        fi
    done 3<"$hostfile"
    echo "SIG$signal: no rank is running (yet, or any more): the launcher is ended" >&2
    kill -s TERM -- "-$launcher" 2>/dev/null
}

set -m # gives the launcher a process group of its own: Ctrl-C reaches this process only, which forwards it once
"$@" </dev/null &
launcher=$!
set +m
trap 'forward TERM' TERM HUP
trap 'forward INT' INT

while true; do
    interrupted=
    wait "$launcher"
    code=$?
    [[ -n $interrupted ]] || break # otherwise a signal interrupted wait, and the launcher still runs
done
if ((code > 128)) && [[ -z $forwarded ]]; then
    forward TERM
fi
while [[ -n $forwarded && -n $(bash "$here/signal_ranks.sh" "$COLOSSAL_LLAMA_LAUNCH" 0) ]]; do
    sleep 0.5 # the ranks of a killed launcher are still saving: this process ends after them
done
if ((code > 128)); then
    kill -s TERM -- "-$launcher" 2>/dev/null # child processes of a killed colossalai run
fi
exit "$code"
