// A directory of one test, removed with everything in it at the end.
#pragma once

#include <string>

namespace sluice::test {

class TempDir {
 public:
  /// Under $TMPDIR or /tmp. Aborts the test program if that fails.
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace sluice::test
