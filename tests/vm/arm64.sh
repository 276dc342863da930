# The target "arm64": see arm64/run.

main() {
    exec "$here/arm64/run" "$@"
}
