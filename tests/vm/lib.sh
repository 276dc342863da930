# What all virtual machines here share: packages into a cache, an initramfs, a boot with one command in it.
# Must not know which kernel or which tests; that is for the file of the target. Read by `run`, in the project's root.

cache=.cache/vm

fail() {
    echo "tests/vm: $*" >&2
    exit 125
}

# fetch DIRECTORY PACKAGE…: unpacks Debian packages under $cache/DIRECTORY, once for a given list.
fetch() {
    local into=$cache/$1 list
    shift
    list=$*
    [[ $(cat "$into.list" 2>/dev/null) == "$list" ]] && return
    rm -rf "$into" "$into.debs"
    mkdir -p "$into" "$into.debs"
    echo "tests/vm: downloading $# packages" >&2
    (cd "$into.debs" && apt-get -qq download "$@" 2>"../download.log") ||
        fail "apt-get download: $(tail -n1 "$cache/download.log"); try apt-get update"
    local package
    for package in "$into.debs"/*.deb; do
        dpkg-deb -x "$package" "$into"
    done
    rm -rf "$into.debs"
    echo "$list" >"$into.list"
}

# missing PACKAGE: the package and whatever it needs, as far as this machine has it not.
missing() {
    apt-get install -s --no-install-recommends "$1" 2>/dev/null | awk '$1 == "Inst" { print $2 }'
}

# depended PACKAGE: the first package that a meta-package stands for.
depended() {
    apt-cache depends "$1" | awk '$1 == "Depends:" { print $2; exit }'
}

# initramfs OUT BUSYBOX KERNEL-ROOT INIT MODULE…: an archive with a static busybox, /init and modules, which are listed
# in /modules in the order in which they must be loaded.
initramfs() {
    local out=$1 busybox=$2 kernel=$3 init=$4 work version file
    shift 4
    version=$(basename "$kernel"/lib/modules/*)
    work=$(mktemp -d)
    mkdir -p "$work"/{bin,proc,sys,dev,run,root,lib}
    cp "$busybox" "$work/bin/busybox"
    cp "$init" "$work/init"
    depmod -b "$kernel" "$version"
    while read -r _ file _; do
        cp "$file" "$work/lib/"
        echo "/lib/$(basename "$file")"
    done < <(modprobe -d "$kernel" -S "$version" --show-depends -a "$@" | awk '$1 == "insmod" && !seen[$2]++') \
        >"$work/modules"
    (cd "$work" && find . | "$(command -v cpio || echo bin/busybox)" $(command -v cpio >/dev/null || echo cpio) \
        -o -H newc 2>/dev/null) >"$out"
    rm -rf "$work"
}

# boot QEMU-COMMAND…: runs the machine, shows what it prints between the lines `vm: start` and `vm: exit N`, and returns
# that N. What it prints before is shown only if it never comes to a start.
boot() {
    local line early= state=booting
    while IFS= read -r line; do
        line=${line%$'\r'}
        case $state:$line in
            booting:*'vm: start') state=running ;;
            booting:*) early+=$line$'\n' ;;
            # The kernel may add to this line.
            running:'vm: exit '*) line=${line#vm: exit } state=${line%%[!0-9]*} ;;
            running:*) printf '%s\n' "$line" ;;
        esac
    done < <(exec setpriv --pdeathsig TERM "$@" </dev/null 2>&1)
    [[ $state != booting ]] || printf '%s' "$early" >&2
    [[ $state == [0-9]* ]] || return 125
    return "$state"
}
