// .primary, .lag and X-pos as LiteFS defines them.
#pragma once

#include <functional>
#include <string>

#include "fuse/observer.h"
#include "storage/store.h"

namespace sluice::server {

class NodeFiles final : public fuse::VirtualFiles {
 public:
  struct Sources {
    storage::Store* store = nullptr;
    /// Host name of the primary; empty on the primary.
    std::function<std::string()> primary_host;
    /// Milliseconds; nullopt: never synchronised. 0 on the primary.
    std::function<std::optional<std::int64_t>()> lag_ms;
    /// Position of a database that has content, after capturing what is committed.
    std::function<std::optional<Pos>(const std::string&)> position;
  };
  explicit NodeFiles(Sources sources) : sources_(std::move(sources)) {}

  std::string primary() override;
  std::string lag() override;
  std::string position(std::string_view database) override;

 private:
  const Sources sources_;
};

}  // namespace sluice::server
