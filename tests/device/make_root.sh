#!/bin/sh
# Makes a folder with what a Raspberry Pi OS consists of: Debian's packages for another processor, unpacked, not
# configured, so that nothing of it has to run here. For this machine's own processor: a phone's adbd instead of sshd.
#
#   make_root.sh arm64|armhf|amd64 FOLDER
#
# Needs root, mmdebstrap and the network.
set -eu
arch=$1
root=$2

packages=python3,base-passwd,libstdc++6,libgomp1,libc-bin,coreutils,dash,bash,tar,util-linux,ca-certificates
pin=
case $arch in
    arm64) packages=$packages,python3-venv,openssh-server ;;
    # PyPI has no 32-bit wheels of these: a Pi takes them from piwheels, this one from Debian.
    armhf) packages=$packages,python3-numpy,python3-pil ;;
    amd64) packages=$packages,adbd pin=bookworm-backports ;;
esac

# The mirror that this machine's apt uses. The release alone: it is enough, and its index stands still.
mirror=$(apt-get indextargets --format '$(SITE)' 'Codename: bookworm' 'Component: main' | head -n 1)
: "${mirror:?this machine has no apt source of bookworm}"
set -- "deb $mirror bookworm main"
[ -n "$pin" ] && set -- "$@" "deb $mirror $pin main"
mmdebstrap --quiet --mode=root --arch="$arch" --variant=extract --include="$packages" \
    ${pin:+--aptopt="APT::Default-Release \"$pin\""} bookworm "$root.part" "$@"
cd "$root.part"

# What the packages' own scripts would have done.
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
echo 'sshd:x:100:65534::/run/sshd:/usr/sbin/nologin' >> etc/passwd
mkdir -p run/sshd home/pi data/local/tmp
if [ "$arch" = armhf ]; then
    ln -s blas/libblas.so.3 lapack/liblapack.so.3 usr/lib/arm-linux-gnueabihf/
fi
rm -rf var/cache/apt usr/share/doc usr/share/locale usr/share/man

if [ "$arch" = amd64 ]; then
    mv "$root.part" "$root"
    exit
fi
# The processor of a Pi 4. XNNPACK asks for it here, and does without its kernels where it finds nothing.
mkdir -p proc sys/devices/system/cpu
for cpu in possible present online; do echo 0-3 > sys/devices/system/cpu/$cpu; done
for core in 0 1 2 3; do
    if [ "$arch" = arm64 ]; then
        printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n' $core
        printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
    else
        printf 'processor\t: %s\nmodel name\t: ARMv7 Processor rev 3 (v7l)\nBogoMIPS\t: 108.00\n' $core
        printf 'Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32\n'
        printf 'CPU implementer\t: 0x41\nCPU architecture: 7\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
    fi
done > proc/cpuinfo
printf 'Model\t\t: Raspberry Pi 4 Model B (emulated)\n' >> proc/cpuinfo

mv "$root.part" "$root"
