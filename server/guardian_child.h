// What the guardian does to processes: starting a worker with the kept descriptors, and finding out what one that does not end
// waits for.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/errors.h"
#include "base/fd.h"

namespace sluice::server {

/// The descriptors that are kept. No allocation after construction.
class KeptDescriptors {
 public:
  KeptDescriptors() : slots_(kMost) {}
  void keep(std::string_view name, UniqueFd fd);
  void drop(std::string_view name);
  /// -1: there is none.
  int find(std::string_view name) const;
  /// Writes the list of them for a worker, see DescriptorLink.
  Result<void> write_list(int fd) const;
  /// In a new process: they stay open over exec.
  void pass_on() const;

 private:
  static constexpr std::size_t kMost = 32768;
  struct Slot {
    UniqueFd fd;
    std::array<char, 64> name{};
  };
  std::vector<Slot> slots_;
  std::size_t used_ = 0;  ///< slots from here on were never used
};

/// Runs the program `executable` (any open descriptor of it) with our own arguments as a worker. Returns its process id.
Result<pid_t> start_worker(int executable, const KeptDescriptors& kept, int socket);

/// A killed process that does not end: what do its last threads wait for?
enum class Remains {
  mount,  ///< only for answers of the mount: they end when somebody serves it
  other,  ///< something else, or it cannot be told
  none,
};
Remains what_remains(pid_t process);
/// Answers the requests of the threads of a killed process that wait for the mount, so that it can end: with an error, which nobody
/// sees. `device`: /dev/fuse, which nobody else reads; all other requests stay for the next worker to ask for. `buffer`: room for one.
void answer_waiting(int device, pid_t process, std::vector<std::byte>& buffer);
inline constexpr std::size_t kRequestRoom = (1u << 20) + 4096;
/// Killed: its main thread has ended, or is about to, whatever others do.
bool is_dying(pid_t process);

/// A worker keeps the switch that aborts its connection (fuse::Mount::open_abort_file) under this name.
inline constexpr const char* kAbortName = "fuse-abort";

}  // namespace sluice::server
