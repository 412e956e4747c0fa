# What quickstart.sh, test.sh and .ci/run share: installing packages, configuring a build directory, counting tests.
# Sourced by bash, with the repository's root as the current directory.

# libssl-dev: for TLS, which may be left out, and because libmemcached.pc requires libcrypto and libmemcached-dev does not depend on it.
# liblz4-dev and libzstd-dev are optional, for l2.compression; so is liburing-dev, for the disk tier (disk.io)
packages_build="gcc libc6-dev make autoconf automake libtool pkg-config libhiredis-dev libmemcached-dev libssl-dev libxxhash-dev liblz4-dev libzstd-dev"
packages_examples="libsqlite3-dev libzstd-dev"
packages_tests="libcmocka-dev redis-server memcached zstd"
packages_models="spin gcc"
packages_manual="cmark-gfm mandoc"
packages_debian="git abigail-tools binutils build-essential cmake debhelper dpkg-dev fakeroot g++ liburing-dev lintian systemtap-sdt-dev zlib1g-dev"
modules="hiredis libmemcached libxxhash openssl liblz4 sqlite3 libzstd cmocka"

jobs=$(nproc 2>/dev/null || echo 2)

say()
{
    printf '==> %s\n' "$*"
}

die()
{
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# need PACKAGE...: install those that are not there.
need()
{
    local package missing=() root=()

    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        say "no apt here: these Debian packages, or their like, must be installed: $*"
        return
    fi
    for package; do
        case $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) in
        installed*) ;;
        *) missing+=("$package") ;;
        esac
    done
    if [ ${#missing[@]} -eq 0 ]; then
        say "packages: all installed"
        return
    fi
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "not root and no sudo; please install: ${missing[*]}"
        root=(sudo)
    fi
    say "packages: installing ${missing[*]}"
    "${root[@]}" apt-get -qq update || say "apt-get update failed; trying with the lists that are there"
    # RUNLEVEL=1: invoke-rc.d then starts no service.  Where systemd runs, Debian starts the new packages' services
    # nevertheless (on 127.0.0.1 only); the tests use neither them nor their ports.
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install "${missing[@]}" >/dev/null ||
        die "apt-get could not install ${missing[*]}"
    if [ -d /run/systemd/system ]; then
        case " ${missing[*]} " in
        *" redis-server "* | *" memcached "*)
            say "Debian has started the services of redis-server and memcached; nothing here needs them" ;;
        esac
    fi
}

# What a build directory was configured for: when any of it changes, it is configured anew.
configured_for()
{
    local module

    printf '%s\n' "$@"
    env | grep -E '^(CC|CFLAGS|CPPFLAGS|LDFLAGS)=' | sort
    for module in $modules; do
        printf '%s %s\n' "$module" "$(pkg-config --modversion "$module" 2>/dev/null)"
    done
}

# configured DIRECTORY [ARGUMENT...]: make DIRECTORY a configured build directory.
configured()
{
    local directory=$1 wanted

    shift
    [ ! -e config.status ] || die "the source directory itself is configured: run make distclean in it first"
    if [ ! -x configure ] || [ ! -e Makefile.in ] || [ configure.ac -nt configure ]; then
        say "autogen.sh"
        ./autogen.sh >autogen.log 2>&1 || { cat autogen.log >&2; die "autogen.sh failed"; }
    fi
    mkdir -p "$directory" || exit 1
    wanted=$(configured_for "$@")
    if [ -e "$directory/Makefile" ] && [ "$wanted" = "$(cat "$directory/.configured" 2>/dev/null)" ]; then
        return
    fi
    say "configure $* in $directory"
    rm -f "$directory/.configured"
    (cd "$directory" && "$OLDPWD/configure" "$@" >configure.log 2>&1) ||
        { grep -E '^configure: error|^.*error:' "$directory/configure.log" >&2 || tail -n 20 "$directory/configure.log" >&2
          die "configure failed; $directory/configure.log has all of it"; }
    printf '%s\n' "$wanted" >"$directory/.configured"
}

# quietly LOG COMMAND...: the output goes to LOG, and is shown when the command fails.
quietly()
{
    local log=$1

    shift
    "$@" >"$log" 2>&1 || { tail -n 100 "$log" >&2; die "failed: $* ($log has all of it)"; }
}

# count_tests DIRECTORY: "PASSED FAILED SKIPPED", summed over the logs of make check in DIRECTORY.  They count cmocka's tests; a
# program that failed without saying how (a crash, a sanitizer's report) is one failed test, one that skipped itself one skipped.
count_tests()
{
    find "$1/tests" -name '*.trs' | sort | while read -r trs; do
        sed -n 's/^:test-result: \([A-Z]*\).*/result \1/p' "$trs"
        cat "${trs%.trs}.log" 2>/dev/null
        echo "end of program"
    done | awk '
        /^result /                                { result = $2 }
        /^\[  PASSED  \] [0-9]+ test/             { p += $4 }
        /^\[  FAILED  \] [0-9]+ test/             { f += $4 }
        /^\[  SKIPPED \] [0-9]+ test/             { s += $4 }
        /^end of program$/ {
            if (result == "SKIP" && p + f + s == 0) s = 1
            if (result != "PASS" && result != "SKIP" && f == 0) f = 1
            passed += p; failed += f; skipped += s
            p = f = s = 0; result = "NONE"
        }
        END { printf "%d %d %d\n", passed, failed, skipped }'
}
