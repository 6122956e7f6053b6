sluice_fuzzer(stream_frames SOURCES stream_frames.cc LIBS sluice_replication)
