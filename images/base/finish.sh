#!/bin/sh
# Runs on the host at the end of mmdebstrap; $1 is the new root file system.
set -eu
root=$1

# Documentation, translations: what Debian's "slim" images leave out too. (mmdebstrap could filter
# while it unpacks; that took 30 s against 1 s here.)
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* \
    "$root"/usr/share/locale/* "$root"/usr/share/lintian "$root"/var/log/*.log "$root"/var/log/apt/*
cp "$(dirname "$0")/slim.cfg" "$root/etc/dpkg/dpkg.cfg.d/slim"
chmod 644 "$root/etc/dpkg/dpkg.cfg.d/slim"

# Packages that an image adds are configured without a person at a terminal.
echo 'debconf debconf/frontend select Noninteractive' | chroot "$root" debconf-set-selections

# Nothing of the machine that built it: package sources, proxies, name servers, names.
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \
    "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
for name in hosts hostname resolv.conf; do
    rm -f "$root/etc/$name"
    : > "$root/etc/$name"
    chmod 644 "$root/etc/$name"
done
