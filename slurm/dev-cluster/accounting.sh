# shellcheck shell=bash disable=SC2154
# slurmdbd with a private MariaDB. Sourced by dev-cluster.sh.

readonly CLUSTER=asiarch-dev

write_accounting() { # HOST USER DBD_PORT SQL_PORT
    local password
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    cat >>"$DIR/slurm.conf" <<EOT
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$3
# For slurmdbd this "password" is the socket of munge.
AccountingStoragePass=$DIR/run/munge.socket
EOT
    (umask 077 && cat >"$DIR/slurmdbd.conf") <<EOT
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.socket
DbdHost=$1
DbdAddr=127.0.0.1
DbdPort=$3
SlurmUser=$2
PidFile=$DIR/run/slurmdbd.self
LogFile=$DIR/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$4
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm_acct
EOT
}

dbd_setting() { sed -n "s/^$1=//p" "$DIR/slurmdbd.conf"; }

start_accounting() {
    local user
    user=$(id -un)
    if [[ ! -d $DIR/mysql/mysql ]]; then
        mariadb-install-db --no-defaults --datadir="$DIR/mysql" --auth-root-authentication-method=normal \
            --skip-test-db --user="$user" >"$DIR/log/mariadb-install.log" 2>&1 ||
            die "mariadb-install-db failed; see $DIR/log/mariadb-install.log"
    fi
    launch mariadb mariadbd --no-defaults --datadir="$DIR/mysql" --socket="$DIR/run/mariadb.socket" \
        --port="$(dbd_setting StoragePort)" --bind-address=127.0.0.1 --pid-file="$DIR/run/mariadb.self" \
        --user="$user" --innodb-buffer-pool-size=32M --innodb-lock-wait-timeout=900 \
        --innodb-flush-log-at-trx-commit=2 --skip-log-bin
    wait_until "$START_SECONDS" create_database || die "MariaDB does not answer; see $DIR/log/mariadb.out"
    launch slurmdbd slurmdbd -D
    wait_until "$START_SECONDS" register_cluster || die "slurmdbd does not answer; see $DIR/log/slurmdbd.log"
}

create_database() { # the password goes through standard input, out of sight of ps
    mariadb --no-defaults --socket="$DIR/run/mariadb.socket" --user=root >/dev/null 2>&1 <<EOT
CREATE DATABASE IF NOT EXISTS slurm_acct;
CREATE OR REPLACE USER slurm@'127.0.0.1' IDENTIFIED BY '$(dbd_setting StoragePass)';
CREATE OR REPLACE USER slurm@localhost IDENTIFIED BY '$(dbd_setting StoragePass)';
GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1', slurm@localhost;
EOT
}

register_cluster() {
    sacctmgr -nP show cluster format=cluster 2>/dev/null | grep -qxF "$CLUSTER" ||
        sacctmgr -Qi add cluster "$CLUSTER" >/dev/null 2>&1
}
