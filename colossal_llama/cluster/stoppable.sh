#!/usr/bin/env bash
# Runs a launcher so that SIGTERM, SIGINT or SIGHUP to this process reaches the ranks, which then save and end:
#
#     bash stoppable.sh HOSTFILE colossalai run … train.py …
#
# colossalai run passes nothing on: SIGTERM ends it alone, and the ranks train on. When it is killed so, the ranks are told here, too. Ranks
# agree on stopping, so those of one host are enough: this host's, or where it has none, the hostfile's hosts are asked by ssh in turn.
set -uo pipefail

readonly here=${BASH_SOURCE[0]%/*}
readonly hostfile=$1
shift
COLOSSAL_LLAMA_LAUNCH="$(uname -n)-$$-$(date +%s)" # colossalai run hands its environment to every host
export COLOSSAL_LLAMA_LAUNCH
# A torchrun that is signalled itself, as SLURM does, kills its ranks after 30 s otherwise: a checkpoint of 98 GB takes 900 s at 110 MB/s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"

interrupted= passed_on=

pass_on() {
    interrupted=yes passed_on=yes
    local signal=$1 host
    if [[ -n $(bash "$here/signal_ranks.sh" "$COLOSSAL_LLAMA_LAUNCH" "$signal") ]]; then
        echo "SIG$signal passed on to the ranks of this host: the run ends when all is saved" >&2
        return
    fi
    while read -r -u 3 host; do
        if [[ -n $host && -n $(ssh -o BatchMode=yes "$host" \
            "cd '$PWD' && bash '$here/signal_ranks.sh' '$COLOSSAL_LLAMA_LAUNCH' $signal" 2>/dev/null </dev/null) ]]; then
            echo "SIG$signal passed on to the ranks of $host: the run ends when all is saved" >&2
            return
        fi
    done 3<"$hostfile"
    echo "SIG$signal: no rank is there yet, or any more; the launcher is ended" >&2
    kill -s TERM -- "-$launcher" 2>/dev/null
}

set -m # gives the launcher a process group of its own: Ctrl-C reaches this process only, which passes it on once
"$@" </dev/null &
launcher=$!
set +m
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

while true; do
    interrupted=
    wait "$launcher"
    code=$?
    [[ -n $interrupted ]] || break # else a signal ended the waiting, and not the launcher
done
if ((code > 128)) && [[ -z $passed_on ]]; then
    pass_on TERM
fi
while [[ -n $passed_on && -n $(bash "$here/signal_ranks.sh" "$COLOSSAL_LLAMA_LAUNCH" 0) ]]; do
    sleep 0.5 # a launcher that was killed is outlived by its ranks, which are saving; who waits for this process waits for that
done
if ((code > 128)); then
    kill -s TERM -- "-$launcher" 2>/dev/null # processes of a killed colossalai run that wait for it
fi
exit "$code"
