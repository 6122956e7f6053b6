#include "server/index_process.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "server/spawn_self.h"
#include "storage/apply/index_helper.h"

namespace sluice::server {
namespace {

constexpr int kSocket = 3;

}  // namespace

Result<storage::HelperProcess> start_index_process() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) return errno_error("socketpair", errno);
  storage::HelperProcess process;
  process.socket = UniqueFd(ends[0]);
  const UniqueFd theirs(ends[1]);
  TRY_ASSIGN(process.pid, spawn_self({"internal-wal-index"}, theirs.get(), kSocket));
  return process;
}

int run_index_process() { return storage::apply::serve_index_helper(kSocket); }

}  // namespace sluice::server
