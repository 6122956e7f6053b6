#include "base/os.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <type_traits>

namespace sluice {
namespace {

class Os : public testing::Test {
 protected:
  Os() {
    const char* base = std::getenv("TMPDIR");
    dir_ = std::string(base != nullptr ? base : "/tmp") + "/sluice-os-XXXXXX";
    EXPECT_NE(::mkdtemp(dir_.data()), nullptr);
  }
  ~Os() override {
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  std::unique_ptr<File> create(const std::string& name) {
    auto file = fs_.open(path(name), {.write = true, .create = true});
    EXPECT_TRUE(file.has_value());
    return std::move(*file);
  }
  std::string content(const std::string& name) {
    const auto bytes = read_file(fs_, path(name), 1 << 20);
    return bytes.has_value() ? std::string(as_text(*bytes)) : bytes.error().to_string();
  }

  FileSystem& fs_ = real_file_system();
  std::string dir_;
};

TEST_F(Os, ReadsAreShortOnlyAtTheEnd) {
  const auto file = create("a");
  ASSERT_TRUE(file->write_at(3, as_bytes("hello")).has_value());
  EXPECT_EQ(*file->size(), 8u);
  Bytes buffer(6);
  EXPECT_EQ(*file->read_at(3, ByteSpan(buffer).first(5)), 5u);
  EXPECT_EQ(as_text(ByteView(buffer).first(5)), "hello");
  EXPECT_EQ(*file->read_at(5, buffer), 3u);
  EXPECT_EQ(*file->read_at(8, buffer), 0u);
  EXPECT_EQ(*file->read_at(1000, buffer), 0u);
  EXPECT_TRUE(file->sync_data().has_value());
  ASSERT_TRUE(file->truncate(4).has_value());
  EXPECT_EQ(*file->size(), 4u);
  EXPECT_EQ(content("a"), std::string("\0\0\0h", 4));
  EXPECT_EQ(file->path(), path("a"));
  EXPECT_NE(::fcntl(file->fd(), F_GETFD) & FD_CLOEXEC, 0) << "not inherited by children";
}

TEST_F(Os, OpenModes) {
  EXPECT_EQ(fs_.open(path("none"), {}).error().code, Errc::not_found);
  EXPECT_EQ(fs_.open(path("none"), {.write = true}).error().code, Errc::not_found);
  create("a");
  EXPECT_EQ(fs_.open(path("a"), {.write = true, .create = true, .exclusive = true}).error().code,
            Errc::exists);
  const auto reader = fs_.open(path("a"), {});
  ASSERT_TRUE(reader.has_value());
  const auto written = (*reader)->write_at(0, as_bytes("x"));
  ASSERT_TRUE(written.has_error());
  EXPECT_EQ(written.error().sys_errno, EBADF);
  EXPECT_NE(written.error().message.find(path("a")), std::string::npos) << "names the file";
  struct stat st {};
  ASSERT_EQ(::stat(path("a").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0133u, 0u) << "0644 less the umask";
}

TEST_F(Os, FullDiskHasItsOwnCode) {
  const auto full = fs_.open("/dev/full", {.write = true});
  ASSERT_TRUE(full.has_value());
  EXPECT_EQ((*full)->write_at(0, as_bytes("x")).error().code, Errc::no_space);
}

TEST_F(Os, SharedMappingIsTheFile) {
  const auto file = create("m");
  ASSERT_TRUE(file->truncate(8192).has_value());
  auto mapping = file->map_shared(8192);
  ASSERT_TRUE(mapping.has_value());
  ASSERT_EQ(mapping->size(), 8192u);
  mapping->data()[5000] = std::byte{'q'};
  Bytes one(1);
  EXPECT_EQ(*file->read_at(5000, one), 1u);
  EXPECT_EQ(one[0], std::byte{'q'});
  ASSERT_TRUE(file->write_at(5001, as_bytes("r")).has_value());
  EXPECT_EQ(mapping->data()[5001], std::byte{'r'});
  Mapping moved = std::move(*mapping);
  EXPECT_FALSE(static_cast<bool>(*mapping));
  EXPECT_EQ(moved.data()[5001], std::byte{'r'});
}

TEST_F(Os, NamesInDirectories) {
  ASSERT_TRUE(fs_.make_directories(path("x/y/z")).has_value());
  ASSERT_TRUE(fs_.make_directories(path("x/y/z")).has_value()) << "again is fine";
  EXPECT_TRUE(*fs_.exists(path("x/y/z")));
  EXPECT_FALSE(*fs_.exists(path("x/nothing")));
  create("x/f");
  EXPECT_FALSE(*fs_.exists(path("x/f/g"))) << "below a file";
  EXPECT_EQ(fs_.make_directories(path("x/f")).error().sys_errno, ENOTDIR);
  EXPECT_TRUE(fs_.make_directories(path("x/f/g")).has_error());

  auto entries = fs_.list(path("x"));
  ASSERT_TRUE(entries.has_value());
  std::sort(entries->begin(), entries->end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  ASSERT_EQ(entries->size(), 2u);
  EXPECT_EQ((*entries)[0].name, "f");
  EXPECT_FALSE((*entries)[0].is_directory);
  EXPECT_EQ((*entries)[1].name, "y");
  EXPECT_TRUE((*entries)[1].is_directory);
  EXPECT_EQ(fs_.list(path("none")).error().code, Errc::not_found);

  EXPECT_TRUE(fs_.rename(path("x/f"), path("x/g")).has_value());
  EXPECT_FALSE(*fs_.exists(path("x/f")));
  EXPECT_TRUE(fs_.unlink(path("x/g")).has_value());
  EXPECT_EQ(fs_.unlink(path("x/g")).error().code, Errc::not_found);
  EXPECT_EQ(fs_.rename(path("x/g"), path("x/h")).error().code, Errc::not_found);
  EXPECT_TRUE(fs_.remove_directory(path("x")).has_error()) << "not empty";
  EXPECT_TRUE(fs_.remove_directory(path("x/y/z")).has_value());
  EXPECT_TRUE(fs_.sync_directory(path("x")).has_value());
  EXPECT_TRUE(fs_.sync_directory(path("none")).has_error());
}

TEST_F(Os, WholeFiles) {
  ASSERT_TRUE(write_file_atomically(fs_, path("w"), as_bytes("first, and longer")).has_value());
  EXPECT_EQ(content("w"), "first, and longer");
  ASSERT_TRUE(write_file_atomically(fs_, path("w"), as_bytes("second")).has_value());
  EXPECT_EQ(content("w"), "second");
  EXPECT_EQ(fs_.list(dir_)->size(), 1u) << "no temporary file is left";
  EXPECT_EQ(read_file(fs_, path("w"), 5).error().code, Errc::too_large);
  EXPECT_EQ(read_file(fs_, path("w"), 6)->size(), 6u);
  EXPECT_EQ(read_file(fs_, path("none"), 6).error().code, Errc::not_found);
  EXPECT_TRUE(write_file_atomically(fs_, path("none/w"), as_bytes("x")).has_error());
}

TEST_F(Os, LeftOverTemporaryFileDoesNotLeakIntoTheNext) {
  ASSERT_TRUE(create("w.tmp")->write_at(0, as_bytes("a torn and much longer file")).has_value());
  ASSERT_TRUE(write_file_atomically(fs_, path("w"), as_bytes("short")).has_value());
  EXPECT_EQ(content("w"), "short");
}

TEST(ParentDirectory, EveryShape) {
  EXPECT_EQ(parent_directory("/a/b"), "/a");
  EXPECT_EQ(parent_directory("/a"), "/");
  EXPECT_EQ(parent_directory("a"), ".");
  EXPECT_EQ(parent_directory("a/b/c"), "a/b");
}

TEST(UniqueFd, ClosesOnceAndMoves) {
  static_assert(!std::is_copy_constructible_v<UniqueFd>);
  const int raw = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(raw, 0);
  {
    UniqueFd a(raw);
    UniqueFd b = std::move(a);
    EXPECT_FALSE(static_cast<bool>(a));
    EXPECT_EQ(b.get(), raw);
    UniqueFd& alias = b;
    b = std::move(alias);
    EXPECT_EQ(b.get(), raw) << "self-assignment";
    EXPECT_EQ(::fcntl(raw, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  }
  EXPECT_EQ(::fcntl(raw, F_GETFD), -1);
  UniqueFd c(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int released = c.release();
  EXPECT_FALSE(static_cast<bool>(c));
  EXPECT_EQ(::close(released), 0);
}

}  // namespace
}  // namespace sluice
