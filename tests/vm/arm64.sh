# An emulated Raspberry Pi with systemd: the files are in the folder of the same name.

main() {
    exec "$here/arm64/run" "$@"
}
