# shellcheck shell=bash disable=SC2154
# Installs what the cluster needs. Sourced by dev-cluster.sh.

install_packages() {
    local -A package=([slurmctld]=slurmctld [slurmd]=slurmd [sbatch]=slurm-client [munged]=munge)
    if [[ $ACCOUNTING == yes ]]; then
        package+=(
            [slurmdbd]=slurmdbd [mariadbd]=mariadb-server-core [mariadb-install-db]=mariadb-server-core
            [mariadb]=mariadb-client-core
        )
    fi
    local command missing=()
    for command in "${!package[@]}"; do
        command -v "$command" >/dev/null || missing+=("${package[$command]}")
    done
    ((${#missing[@]})) || return 0
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    local lacking="these packages are missing: ${missing[*]}"
    command -v apt-get >/dev/null || die "$lacking; there is no apt-get here: install Slurm and munge another way"
    ((EUID == 0)) || die "$lacking; install them as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    forbid_services
    local log=$DIR/log/apt.log
    if ! {
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    } </dev/null >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        die "the packages could not be installed; whole log: $log"
    fi
    permit_services
}

# Installing these packages would start daemons of the system; a policy forbids that while apt runs.
readonly POLICY=/usr/sbin/policy-rc.d

forbid_services() {
    [[ ! -e $POLICY ]] || return 0
    trap permit_services EXIT
    printf '#!/bin/sh\n# %s\nexit 101\n' "$PROGRAM" >"$POLICY"
    chmod +x "$POLICY"
}

permit_services() {
    trap - EXIT
    if grep -qsF "# $PROGRAM" "$POLICY"; then rm -f "$POLICY"; fi
}
