// The worker's side of its guardian (server/guardian.h), which keeps descriptors for it and is told how it is doing. The messages are
// those of systemd's descriptor store.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "base/descriptor_store.h"
#include "base/mutex.h"

namespace sluice::server {

/// Environment of a worker: "SOCKET:LIST", numbers of two descriptors. LIST has a line "FD NAME" for each kept descriptor.
inline constexpr const char* kGuardianVariable = "SLUICE_GUARDIAN";

class DescriptorLink : public DescriptorStore {
 public:
  /// From the environment, which is cleared of it; nullptr: this process has no guardian. Before other threads.
  static std::unique_ptr<DescriptorLink> from_environment();

  bool has(const std::string& name) const override EXCLUDES(mutex_);
  UniqueFd take(const std::string& name) override EXCLUDES(mutex_);
  Result<void> keep(const std::string& name, int fd) override;
  void drop(const std::string& name) override;

  /// "READY=1", "SYNCED=1", "STOPPING=1", "UPGRADE=1".
  Result<void> tell(const std::string& text) const;
  /// Hung up when the guardian has died.
  int guardian_fd() const { return socket_.get(); }

 private:
  Result<void> send(const std::string& text, int fd) const;
  void take_list(int list_fd);

  UniqueFd socket_;
  mutable Mutex mutex_;
  std::map<std::string, UniqueFd> left_ GUARDED_BY(mutex_);
};

}  // namespace sluice::server
