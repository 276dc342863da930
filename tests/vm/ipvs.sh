# The target `ipvs`: Debian's cloud kernel, which has IPVS, with this machine's files underneath: read-only over
# virtio-fs, with a file system in memory on top. Read by `run`.

# How many processors and how much memory the machine gets (it is emulated: that works everywhere), and where the traffic
# conformance cases are, if they are.
: "${VM_CPUS:=2}" "${VM_MEMORY:=2G}" "${CONFORMANCE:=../shared/conformance}"

main() {
    fetch amd64 "$(depended linux-image-cloud-amd64)" busybox-static
    local qemu=/usr/bin/qemu-system-x86_64 virtiofsd=/usr/lib/qemu/virtiofsd libraries=
    if [[ ! -x $qemu || ! -x $virtiofsd ]]; then
        [[ -d $cache/qemu ]] || fetch qemu qemu-system-common qemu-system-data seabios $(missing qemu-system-x86)
        qemu=$cache/qemu$qemu virtiofsd=$cache/qemu$virtiofsd libraries=$cache/qemu/usr/lib/x86_64-linux-gnu
    fi
    [[ $(id -u) == 0 ]] || fail "sharing this machine's files with the virtual one needs root"

    local work
    work=$(mktemp -d)
    trap "rm -rf '$work'" EXIT
    if (($#)); then
        printf '%q ' "$@" >"$work/command"
    else
        everything >"$work/command"
    fi
    {
        cat "$(dirname "${BASH_SOURCE[0]}")/ipvs.init"
        printf 'cat >/sysroot/run/command <<"END-OF-COMMAND"\n'
        printf 'cd %q\nexport PATH=%q HOME=/root\n' "$PWD" "$PATH:/usr/sbin:/sbin"
        cat "$work/command"
        printf '\nEND-OF-COMMAND\n'
        printf 'mkdir -p /sysroot/lib/modules; mount --bind /sysroot%q /sysroot/lib/modules\n' "$PWD/$cache/amd64/lib/modules"
        printf 'exec switch_root /sysroot /bin/sh -c '\''echo vm: start; bash /run/command; echo "vm: exit $?"; echo o >/proc/sysrq-trigger; sleep 60'\''\n'
    } >"$work/init"
    chmod +x "$work/init"
    initramfs "$work/initramfs" "$cache/amd64/bin/busybox" "$cache/amd64" "$work/init" \
        virtio_pci virtiofs overlay
    LD_LIBRARY_PATH=$libraries "$virtiofsd" --socket-path="$work/files" -o source=/ -o sandbox=chroot -o cache=always \
        >"$work/virtiofsd.log" 2>&1 &
    local kernel=("$cache"/amd64/boot/vmlinuz-*) waited=0
    until [[ -S $work/files ]]; do
        ((waited++ < 50)) || fail "virtiofsd: $(tail -n1 "$work/virtiofsd.log")"
        sleep 0.1
    done
    LD_LIBRARY_PATH=$libraries boot "$qemu" \
        -M q35 -cpu max -accel tcg -smp "$VM_CPUS" -m "$VM_MEMORY" \
        -object memory-backend-memfd,id=memory,size="$VM_MEMORY",share=on -numa node,memdev=memory \
        -chardev socket,id=files,path="$work/files" -device vhost-user-fs-pci,chardev=files,tag=files \
        -kernel "${kernel[0]}" -initrd "$work/initramfs" -append "console=ttyS0 quiet loglevel=1 panic=-1" \
        -nographic -no-reboot -nodefaults -serial stdio -monitor none
}

# test_binary NAME: builds a test, and says where it is.
test_binary() {
    cargo test --quiet --no-run --test "$1" --message-format=json |
        sed -n "s/.*\"executable\":\"\([^\"]*deps\/$1-[^\"]*\)\".*/\1/p"
}

# The command line of a complete run.
everything() {
    cargo build --quiet --release
    echo "status=0"
    echo "export KUBE_PROXY_REQUIRE_IPVS=1"
    echo "$(test_binary ipvs) --test-threads=1 || status=1"
    echo "$(test_binary agent) --test-threads=1 ipvs_mode || status=1"
    if [[ -f $CONFORMANCE/run.py ]]; then
        # All but affinity-lapses: affinity is the kernel's persistence, which lasts longer, for upstream too.
        local cases
        for cases in '[!a]*' 'a[!f]*' 'affinity-[!l]*'; do
            echo "python3 $CONFORMANCE/run.py --proxy target/release/kube-proxy --mode ipvs --family dual --slow 3 \
                --case '$cases' || status=1"
        done
    fi
    echo "exit \$status"
}
