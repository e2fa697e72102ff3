#!/bin/sh
# Builds the emulated libcuda, links a cust program against it, and runs it under some seeds.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
cargo build --manifest-path "$root/Cargo.toml" -p cuda-emulator-libcuda --target-dir "$target"
toolkit=$target/cust-toolkit
mkdir -p "$toolkit/lib64"
# cust links `-lcuda`; the SONAME inside makes the program ask for libcuda.so.1.
ln -sf "$target/debug/libcuda_emulator_libcuda.so" "$toolkit/lib64/libcuda.so"
ln -sf "$target/debug/libcuda_emulator_libcuda.so" "$toolkit/lib64/libcuda.so.1"
CUDA_LIBRARY_PATH=$toolkit cargo build --manifest-path "$here/Cargo.toml" --target-dir "$target/cust"
for seed in 0 1 2 3 4; do
    CUDA_EMULATOR_SEED=$seed LD_LIBRARY_PATH=$toolkit/lib64 "$target/cust/debug/cust-program"
done
