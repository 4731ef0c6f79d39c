# shellcheck shell=bash
# What deploy/local-cluster and deploy/test share: they bring a fresh machine to where `cargo build --release` works,
# say what they install, and build RocksDB once for all later builds. To be sourced, with ROOT set to the checkout.

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    warn "$*"
    exit 1
}

mailring_cache() { printf '%s/mailring' "${XDG_CACHE_HOME:-$HOME/.cache}"; }

# The directory of the newest libclang, which generates RocksDB's bindings.
libclang_dir() {
    local dir
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        printf '%s' "$LIBCLANG_PATH"
        return
    fi
    for dir in "$(llvm-config --libdir 2>/dev/null || true)" \
        $(printf '%s\n' /usr/lib/llvm-*/lib | sort -rV) /usr/lib64 /usr/lib /usr/local/lib; do
        # libclang-cpp, which other packages bring, is another library.
        if [ -n "$dir" ] && compgen -G "$dir/libclang[.-][s0-9]*" >/dev/null; then
            printf '%s' "$dir"
            return
        fi
    done
    return 1
}

# Debian's names of the packages that a build needs and this machine lacks.
missing_packages() {
    if ! command -v c++ >/dev/null || ! command -v make >/dev/null; then echo build-essential; fi
    if ! command -v pkg-config >/dev/null; then echo pkg-config; fi
    if ! libclang_dir >/dev/null; then echo libclang-dev; fi
    if ! command -v flock >/dev/null || ! command -v setsid >/dev/null; then echo util-linux; fi
    if [ ! -e /etc/ssl/certs/ca-certificates.crt ] && [ ! -d /etc/pki/tls/certs ]; then echo ca-certificates; fi
}

need_packages() {
    local missing as_root=()
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "please install what Debian calls ${missing[*]}: there is no apt-get here to do it"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "please install as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing packages: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -eq 0 ] || die "still missing after installation: ${missing[*]}"
}

# need_rust [COMPONENT...]: cargo of at least the workspace's rust-version, with these rustup components.
# shellcheck disable=SC2120 # nobody has to name a component
need_rust() {
    local wanted have component
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml")
    [ -n "$wanted" ] || die "no rust-version in Cargo.toml"
    if ! command -v cargo >/dev/null && [ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    command -v cargo >/dev/null || die "Rust $wanted or newer is needed; install it with rustup"
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2 || true)
    if [ -z "$have" ] || ! printf '%s\n' "$wanted" "$have" | sort -CV; then
        command -v rustup >/dev/null || die "Rust $wanted or newer is needed; here is ${have:-none}, and no rustup"
        say "installing Rust $wanted with rustup: here is ${have:-none}"
        rustup toolchain install "$wanted" --profile minimal
        export RUSTUP_TOOLCHAIN=$wanted
    fi
    for component in "$@"; do
        if ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
            command -v rustup >/dev/null || die "please install $component: there is no rustup here to do it"
            say "installing $component with rustup"
            rustup component add "$component"
        fi
    done
}

# Builds RocksDB's archive once for this machine, in the user's cache, and tells later builds where it is. Built inside
# the workspace it would cost half an hour of CPU again with every clean build.
rocksdb_archive() {
    local version features host key cache dir lock
    LIBCLANG_PATH=$(libclang_dir) || die "no libclang: set LIBCLANG_PATH to the directory that holds libclang.so"
    export LIBCLANG_PATH ROCKSDB_STATIC=1
    # Somebody who has an archive of their own knows that it fits.
    if [ -n "${ROCKSDB_LIB_DIR:-}" ]; then
        export ROCKSDB_LIB_DIR
        return
    fi
    version=$(awk '$0 == "name = \"librocksdb-sys\"" { getline; gsub(/"/, "", $3); print $3 }' "$ROOT/Cargo.lock")
    features=$(sed -n 's/^rocksdb = .*features = \[\([^]]*\)\].*/\1/p' "$ROOT/Cargo.toml")
    host=$(cd "$ROOT" && rustc -vV | sed -n 's/^host: //p')
    if [ -z "$version" ] || [ -z "$features" ] || [ -z "$host" ]; then
        die "cannot tell RocksDB's version and features from Cargo.lock and Cargo.toml"
    fi
    key=$(printf '%s\n' "$features" "$host" | sha256sum | cut -c1-12)
    cache=$(mailring_cache)
    dir=$cache/rocksdb-$version-$key
    mkdir -p "$cache"
    exec {lock}>"$cache/rocksdb.lock"
    flock "$lock"
    if [ ! -e "$dir/librocksdb.a" ]; then
        say "building RocksDB $version once, into $dir (about 15 minutes on two cores)"
        build_rocksdb "$dir"
    fi
    exec {lock}>&-
    export ROCKSDB_LIB_DIR=$dir
}

build_rocksdb() {
    local dir=$1 archives
    rm -rf "$dir.build" "$dir.new"
    (cd "$ROOT" && env -u ROCKSDB_STATIC cargo build --locked --release -p rocksdb --target-dir "$dir.build")
    mapfile -t archives < <(compgen -G "$dir.build/release/build/librocksdb-sys-*/out/librocksdb.a")
    [ "${#archives[@]}" -eq 1 ] || die "${#archives[@]} archives in $dir.build, not one"
    mkdir "$dir.new"
    cp "${archives[0]}" "$dir.new/"
    rm -rf "$dir"
    mv -T "$dir.new" "$dir"
    rm -rf "$dir.build"
}

# Where cargo puts what it builds with --release.
release_dir() { printf '%s/release' "${CARGO_TARGET_DIR:-$ROOT/target}"; }

# A process of a cluster has a descriptor for each connection and file.
raise_file_limit() { ulimit -Sn "$(ulimit -Hn)" 2>/dev/null || true; }
