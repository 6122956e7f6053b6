/* hk: a SQLite connection driven line by line, for the counter-examples; linked to a SQLite with fault hooks.
**
**   open PATH [VFS]      close      sql TEXT      repeat N TEXT      checkpoint MODE(0-3)
**   hook N die|wait [SKIP]     act when the hook is reached the (SKIP+1)th time
**   persist_wal          no_close_checkpoint      busy MS
**
** Answers: "row a|b|…", "error EXTENDED-CODE message", then "done". A waiting hook says "hook N" and goes on after the
** line "go". End of input closes the connection and ends the program.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sqlite3.h"

extern void (*sluice_fault_hook)(int);

static sqlite3 *db;
static int hook_number;
static int hook_skip;
static int hook_dies;

static void at_hook(int number) {
  char line[64];
  if (number != hook_number || hook_skip-- > 0) return;
  hook_number = 0;
  if (hook_dies) _exit(9);
  printf("hook %d\n", number);
  do {
    if (!fgets(line, sizeof line, stdin)) _exit(3);
  } while (strncmp(line, "go", 2) != 0);
}

static int print_row(void *unused, int count, char **values, char **names) {
  int i;
  (void)unused;
  (void)names;
  printf("row ");
  for (i = 0; i < count; i++) printf("%s%s", i ? "|" : "", values[i] ? values[i] : "NULL");
  printf("\n");
  return 0;
}

static void check(int rc) {
  if (rc != SQLITE_OK) printf("error %d %s\n", sqlite3_extended_errcode(db), sqlite3_errmsg(db));
}

static void run_line(char *line) {
  int number = 0;
  int other = 0;
  int used = 0;
  char word[512];
  char second[64] = "";
  if (strncmp(line, "sql ", 4) == 0) {
    check(sqlite3_exec(db, line + 4, print_row, 0, 0));
  } else if (sscanf(line, "repeat %d %n", &number, &used) == 1) {
    int rc = SQLITE_OK;
    while (number-- > 0 && rc == SQLITE_OK) rc = sqlite3_exec(db, line + used, print_row, 0, 0);
    check(rc);
  } else if (sscanf(line, "open %511s %63s", word, second) >= 1) {
    check(sqlite3_open_v2(word, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, second[0] ? second : 0));
    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_timeout(db, 2000);
  } else if (sscanf(line, "checkpoint %d", &number) == 1) {
    check(sqlite3_wal_checkpoint_v2(db, 0, number, 0, 0));
  } else if (sscanf(line, "hook %d %63s %d", &number, second, &other) >= 2) {
    hook_number = number;
    hook_skip = other;
    hook_dies = strcmp(second, "die") == 0;
  } else if (sscanf(line, "busy %d", &number) == 1) {
    sqlite3_busy_timeout(db, number);
  } else if (strcmp(line, "persist_wal") == 0) {
    number = 1;
    check(sqlite3_file_control(db, "main", SQLITE_FCNTL_PERSIST_WAL, &number));
  } else if (strcmp(line, "no_close_checkpoint") == 0) {
    check(sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, (int *)0));
  } else if (strcmp(line, "close") == 0) {
    sqlite3_close(db);
    db = 0;
  } else {
    printf("error -1 unknown command: %s\n", line);
  }
  printf("done\n");
}

int main(void) {
  static char line[65536];
  setvbuf(stdout, 0, _IOLBF, 0);
  sluice_fault_hook = at_hook;
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    run_line(line);
  }
  sqlite3_close(db);
  return 0;
}
