#!/usr/bin/env bash
# Prints the path of an sshd for tests/support/hosts.py: the machine's own, or Debian's, unpacked into a directory. Installs nothing.
#
#   bash tests/fetch_sshd.sh DIRECTORY
#
# Prints nothing, and says why on standard error, where there is neither; the tests that need two hosts are skipped then.
set -euo pipefail

directory=$1
found=$(PATH=$PATH:/usr/sbin:/usr/local/sbin:/sbin command -v sshd || true)
unpacked=$directory/usr/sbin/sshd
if [[ -n $found ]]; then
    echo "$found"
    exit
elif [[ -x $unpacked ]]; then
    echo "$unpacked"
    exit
elif ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "no sshd, and no apt-get to fetch one: tests over two hosts are skipped" >&2
    exit
fi

mkdir -p "$directory/archives"
directory=$(cd "$directory" && pwd)
# The first try uses the machine's lists of packages, the second fetches lists of its own.
own_lists=(-o "Dir::State::lists=$directory/lists" -o "Dir::Cache=$directory/cache" -o APT::Sandbox::User=root)
download() {
    (cd "$directory/archives" && apt-get "$@" download openssh-server libwrap0)
}
mkdir -p "$directory/lists/partial" "$directory/cache/archives/partial"
if ! { download -o APT::Sandbox::User=root || { apt-get "${own_lists[@]}" update && download "${own_lists[@]}"; }; } >"$directory/log" 2>&1; then
    echo "sshd could not be fetched ($directory/log): tests over two hosts are skipped" >&2
    exit
fi
for archive in "$directory"/archives/*.deb; do
    dpkg-deb --extract "$archive" "$directory"
done
rm -rf "$directory/lists" "$directory/cache" "$directory/archives"
echo "$directory/usr/sbin/sshd"
