sluice_fuzzer(sqlite_database_header SOURCES sqlite_database_header.cc)
sluice_fuzzer(sqlite_wal SOURCES sqlite_wal.cc)
sluice_fuzzer(sqlite_journal SOURCES sqlite_journal.cc)
sluice_fuzzer(sqlite_wal_index SOURCES sqlite_wal_index.cc)
