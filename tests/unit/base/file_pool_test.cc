// More files open than descriptors: who was not used lately is closed and comes back by its name, unless that would lose something.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <thread>

#include "base/os.h"

namespace sluice {
namespace {

constexpr std::size_t kLimit = 8;

class FilePool : public testing::Test {
 protected:
  FilePool() {
    const char* base = std::getenv("TMPDIR");
    dir_ = std::string(base != nullptr ? base : "/tmp") + "/sluice-pool-XXXXXX";
    EXPECT_NE(::mkdtemp(dir_.data()), nullptr);
    set_open_file_limit(kLimit);
  }
  ~FilePool() override {
    set_open_file_limit(1024);
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  std::string path(std::size_t number) const { return dir_ + "/" + std::to_string(number); }
  std::unique_ptr<File> create(std::size_t number, bool sync = true) {
    auto file = real_file_system().open(path(number), {.write = true, .create = true});
    EXPECT_TRUE(file.has_value());
    EXPECT_TRUE((*file)->write_at(0, as_bytes(std::to_string(number))).has_value());
    if (sync) {
      EXPECT_TRUE((*file)->sync_data().has_value());
    }
    return std::move(*file);
  }
  static std::string text(const File& file) {
    Bytes bytes(32);
    const auto n = file.read_at(0, bytes);
    return n.has_value() ? std::string(as_text(ByteView(bytes).first(*n))) : n.error().to_string();
  }
  /// So many others that nothing which may be closed stays open.
  void push_out() {
    for (std::size_t i = 0; i < 4 * kLimit; ++i) others_.push_back(create(1000 + others_.size()));
  }

  std::string dir_;
  std::vector<std::unique_ptr<File>> others_;
};

TEST_F(FilePool, ManyFilesShareFewDescriptors) {
  std::vector<std::unique_ptr<File>> files;
  for (std::size_t i = 0; i < 10 * kLimit; ++i) files.push_back(create(i));
  EXPECT_LE(open_file_count(), kLimit);
  for (std::size_t i = 0; i < files.size(); ++i) EXPECT_EQ(text(*files[i]), std::to_string(i));
  for (std::size_t i = 0; i < files.size(); ++i) {
    ASSERT_TRUE(files[i]->write_at(0, as_bytes("again")).has_value());
    ASSERT_TRUE(files[i]->sync_data().has_value());
  }
  EXPECT_LE(open_file_count(), kLimit);
  EXPECT_EQ(text(*files[3]), "again");
}

TEST_F(FilePool, AnotherFileOfThatNameIsNotTheSameFile) {
  const auto file = create(1);
  push_out();
  std::filesystem::remove(path(1));
  const auto other = create(1);
  const auto read = file->size();
  ASSERT_TRUE(read.has_error());
  EXPECT_EQ(read.error().code, Errc::not_found);
  EXPECT_TRUE(file->write_at(0, as_bytes("x")).has_error());
  EXPECT_EQ(text(*other), "1") << "nothing of the old one reached it";
}

TEST_F(FilePool, WhatHasNoNameAnyMoreStaysOpen) {
  const auto gone = create(1);
  const auto moved = create(2);
  std::filesystem::remove(path(1));
  std::filesystem::rename(path(2), path(3));
  push_out();
  EXPECT_EQ(text(*gone), "1");
  EXPECT_EQ(text(*moved), "2");
}

TEST_F(FilePool, ADescriptorThatWasGivenOutStaysOpen) {
  const auto file = create(1);
  const int fd = file->fd();
  push_out();
  struct stat st {};
  ASSERT_EQ(::fstat(fd, &st), 0);
  struct stat named {};
  ASSERT_EQ(::stat(path(1).c_str(), &named), 0);
  EXPECT_EQ(st.st_ino, named.st_ino);
  EXPECT_EQ(file->fd(), fd);
}

TEST_F(FilePool, UnsyncedFilesAreSyncedTogetherBeforeTheyAreClosed) {
  std::vector<std::unique_ptr<File>> files;
  for (std::size_t i = 0; i < 6 * kLimit; ++i) files.push_back(create(i, false));
  EXPECT_LE(open_file_count(), kLimit + 1);
  for (std::size_t i = 0; i < files.size(); ++i) EXPECT_EQ(text(*files[i]), std::to_string(i));
}

TEST_F(FilePool, ThreadsUseFilesWhileOthersCloseThem) {
  std::vector<std::unique_ptr<File>> files;
  for (std::size_t i = 0; i < 5 * kLimit; ++i) files.push_back(create(i));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(t);
      for (int round = 0; round < 3000; ++round) {
        const std::size_t i = random() % files.size();
        if (text(*files[i]) != std::to_string(i)) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace sluice
