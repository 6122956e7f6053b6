#!/bin/sh
# The sqlite3 shell, as an operator uses it:  shell_app.sh write|read FOLDER SCRATCH
set -eu
role=$1 db=$2/shell.db scratch=$3
expect() { [ "$2" = "$3" ] || { echo "not as it should be: $1: '$2', not '$3'" >&2; exit 1; }; }

if [ "$role" = write ]; then
  for mode in delete wal truncate persist wal; do
    expect "journal_mode=$mode" "$(sqlite3 "$db" "PRAGMA journal_mode=$mode")" "$mode"
    sqlite3 "$db" "CREATE TABLE IF NOT EXISTS t(mode TEXT, n INT); BEGIN;
      INSERT INTO t SELECT '$mode', value FROM json_each('[1,2,3]'); COMMIT;"
  done
  printf 'a,1\nb,2\nc,3\n' > "$scratch/in.csv"
  sqlite3 "$db" -cmd '.mode csv' "CREATE TABLE csv(k TEXT, v INT)" ".import $scratch/in.csv csv"
  sqlite3 "$db" "PRAGMA integrity_check; ANALYZE; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA optimize;" "VACUUM;" > /dev/null
fi
expect rows "$(sqlite3 "$db" 'SELECT count(*) FROM t')" 15
expect csv "$(sqlite3 "$db" 'SELECT sum(v) FROM csv')" 6
expect integrity "$(sqlite3 "$db" 'PRAGMA integrity_check')" ok
sqlite3 "$db" ".backup $scratch/shell-backup.db"
sqlite3 "$db" .dump | sqlite3 "$scratch/shell-dump.db"
cp "$db" "$scratch/shell-copy.db"   # nobody writes now, and the WAL is in the copy's database or empty
for copy in shell-backup shell-dump; do
  expect "$copy" "$(sqlite3 "$scratch/$copy.db" 'SELECT count(*) FROM t')" 15
done
rm -f "$scratch"/shell-*.db
if [ "$role" = read ]; then
  refusal=$(sqlite3 "$db" "INSERT INTO t VALUES('nobody',0)" 2>&1) && { echo "a write was accepted" >&2; exit 1; }
  case $refusal in *"attempt to write a readonly database"*) ;; *) echo "writing says: $refusal" >&2; exit 1;; esac
fi
