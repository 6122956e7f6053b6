// A test that is ended by SIGTERM (a time-out, a person) leaves no dead mount behind.
#pragma once

#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstring>
#include <string>

namespace sluice::test {

inline char unmount_this[4096] = {};

/// From now on SIGTERM, SIGINT and SIGHUP detach this mount point before they end the process. One mount at a time.
inline void unmount_on_signals(const std::string& mountpoint) {
  std::strncpy(unmount_this, mountpoint.c_str(), sizeof unmount_this - 1);
  struct sigaction action {};
  action.sa_handler = [](int number) {
    ::umount2(unmount_this, MNT_DETACH);
    ::_exit(128 + number);
  };
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::sigaction(number, &action, nullptr);
}

}  // namespace sluice::test
