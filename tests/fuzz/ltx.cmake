sluice_fuzzer(ltx_decode SOURCES ltx_decode.cc)
sluice_fuzzer(ltx_compact SOURCES ltx_compact.cc)
sluice_fuzzer(change_log SOURCES change_log.cc LIBS sluice_storage sluice_test_support)
sluice_fuzzer(page_checksums SOURCES page_checksums.cc LIBS sluice_storage sluice_test_support)
